"""Specs from their files."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from perennial.errors import SpecError
from perennial.spec.model import ModelSpec
from perennial.spec.renamed import with_present_names
from perennial.spec.text import KeyPath, explain, line_at, lines_of, read_yaml


def models_path(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Folders that hold model folders: the project's own, then those of `PERENNIAL_MODELS` (separated as PATH is)."""
    own = Path(__file__).resolve().parents[2] / "models"
    more = [Path(p) for p in environment.get("PERENNIAL_MODELS", "").split(os.pathsep) if p]
    return (own, *more)


def spec_files(environment: Mapping[str, str] = os.environ) -> tuple[Path, ...]:
    """Every `<models>/<name>/spec.yaml`, sorted by model name."""
    files = [f for folder in models_path(environment) for f in folder.glob("*/spec.yaml")]
    return tuple(sorted(files, key=lambda f: f.parent.name))


def load_spec(file: Path) -> ModelSpec:
    """Read and check one spec.yaml. The former name of a key warns (`RenamedKey`) and counts as the present one.

    Raises:
        SpecError: with file, line, the value found, and the cure for every problem at once.
    """
    try:
        return _load(file)
    except (SpecError, Warning):
        raise
    except Exception as error:
        # whatever is wrong with one spec is that spec's error: it must not hide the other models
        msg = (
            f"{file}: cannot be read as a spec ({type(error).__name__}: {str(error)[:200]}). Mend or remove that value."
        )
        raise SpecError(msg, rules=("unreadable",)) from error


def _load(file: Path) -> ModelSpec:
    data, lines = read_yaml(file)
    if "folder" in data:
        line = line_at(lines, ("folder",))
        msg = f"{file}:{line}: folder: unknown key 'folder'; it is where this file lies. Take it out."
        raise SpecError(msg, rules=("unknown_key",))
    data, lines = with_present_names(file, data, lines)
    try:
        spec = ModelSpec.model_validate({**data, "folder": file.parent})
    except ValidationError as error:
        problems = [dict(problem) for problem in error.errors(include_url=False)]
        raise explain(file, lines, problems, _keys_at) from None
    if spec.name != file.parent.name:
        line = line_at(lines, ("name",))
        msg = f"{file}:{line}: name is {spec.name!r}, its folder is {file.parent.name!r}. Make them the same."
        raise SpecError(msg, rules=("name_is_not_folder",))
    return spec


def load_specs(environment: Mapping[str, str] = os.environ) -> tuple[dict[str, ModelSpec], dict[Path, SpecError]]:
    """All good specs by name, and the error of each bad file: one bad spec never hides the others."""
    good: dict[str, ModelSpec] = {}
    bad: dict[Path, SpecError] = {}
    for file in spec_files(environment):
        try:
            spec = load_spec(file)
        except SpecError as error:
            bad[file] = error
            continue
        if spec.name in good:
            msg = f"{file}: a model {spec.name!r} stands also in {good[spec.name].folder}. Rename one."
            bad[file] = SpecError(msg, rules=("doubled_name",))
        else:
            good[spec.name] = spec
    return good, bad


def load_spec_of(name: str, environment: Mapping[str, str] = os.environ) -> ModelSpec:
    """The spec of one model, by its name.

    Raises:
        SpecError: its spec is bad, or there is none; the nearest name is offered.
    """
    # a spec bears its folder's name: of a thousand models one file is read
    files = spec_files(environment)
    problem: SpecError | None = None
    for file in (file for file in files if file.parent.name == name):
        try:
            return load_spec(file)
        except SpecError as error:
            problem = problem or error
    raise problem or unknown_model(name, [file.parent.name for file in files])


def unknown_model(name: str, models: list[str]) -> SpecError:
    """The error for a model that no folder holds; the nearest of the existing `models` is offered."""
    near = difflib.get_close_matches(name, models, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"models: {', '.join(sorted(models)) or 'none'}."
    return SpecError(f"no model {name!r}; {hint} `perennial new {name}` would make one.")


def line_of_column(spec: ModelSpec, column: str) -> int | None:
    """1-based line of spec.yaml that names `column`; None where the spec does not, or was not read from a file."""
    file = spec.folder / "spec.yaml"
    if not file.is_file():
        return None
    lines = lines_of(file.read_text(encoding="utf-8"))
    return next((lines[path] for path in spec.paths_of(column) if path in lines), None)


def _keys_at(path: KeyPath) -> list[str]:
    """The keys that a person may write in the section at `path`."""
    section: type[BaseModel] = ModelSpec
    for part in path:
        field = section.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())]
        section = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), section)
    return sorted(name for name in section.model_fields if name != "folder")
