"""`perennial new NAME`: a model that works on made data at once, for a team to make its own piece by piece."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from string import Template

from perennial.errors import SpecError
from perennial.spec.model import NAME

_TEMPLATES = files("perennial.spec") / "templates"
_SCHEMA = files("perennial.spec") / "spec.schema.json"


def create_model(models: Path, name: str, *, suites: Path, tests: Path) -> tuple[Path, ...]:
    """Write a model folder, its expectation suite and its tests; all of them, or none.

    Args:
        models: folder of model folders.
        name: of the model, and of its folder.
        suites: folder with `expectations/`.
        tests: folder in which `test_<name>.py` is written.

    Returns:
        The files written: spec.yaml, source.py, pipeline.py, the suite, the tests.

    Raises:
        SpecError: the name is no model name, a file of it exists already, or one cannot be written.
    """
    if not re.fullmatch(NAME, name):
        plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_0123456789") or "my_model"
        msg = f"{name!r} is no model name: small letters, digits and _, a letter first, as in {plain!r}."
        raise SpecError(msg)
    targets = {
        "spec.yaml": models / name / "spec.yaml",
        "source.py": models / name / "source.py",
        "pipeline.py": models / name / "pipeline.py",
        "suite.json": suites / "expectations" / f"{name}.json",
        "test_model.py": tests / f"test_{name}.py",
    }
    present = [path for path in (models / name, *targets.values()) if path.exists()]
    if present:
        msg = f"{present[0]} exists already; nothing was written. Take another name than {name!r}, or remove it first."
        raise SpecError(msg)
    fields = {
        "name": name,
        # relative, so that the project can be moved
        "to_model": Path(os.path.relpath(models / name, tests)).as_posix(),
        "to_suites": Path(os.path.relpath(suites, tests)).as_posix(),
        "to_schema": Path(os.path.relpath(str(_SCHEMA), models / name)).as_posix(),
    }
    texts = {
        path: Template((_TEMPLATES / f"{template}.template").read_text(encoding="utf-8")).substitute(fields)
        for template, path in targets.items()
    }
    _write_all(texts)
    return tuple(texts)


def _write_all(texts: Mapping[Path, str]) -> None:
    """Write every file, or none: what was written is removed again when one cannot be."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            _make_folder(path.parent, written)
            # x: two people who take the same name at the same moment do not overwrite each other
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except OSError as error:
        for path in reversed(written):
            path.rmdir() if path.is_dir() else path.unlink()
        msg = f"{error.filename}: cannot be written ({error.strerror}); nothing was left behind. Mend it and try again."
        raise SpecError(msg) from error


def _make_folder(folder: Path, written: list[Path]) -> None:
    if not folder.exists():
        _make_folder(folder.parent, written)
        folder.mkdir()
        written.append(folder)
