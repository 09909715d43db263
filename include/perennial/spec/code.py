"""The Python that a person writes beside the spec: `source.py` and `pipeline.py`, imported by path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from perennial.errors import SpecError


def load_function(
    model: str, file: Path, function: str, contract: str, *, keep_module: bool = False
) -> Callable[..., Any]:
    """A function of a file in the model's folder.

    Args:
        model: whose file; part of the name under which the module is known to Python.
        file: as in `<folder>/source.py`.
        function: its name.
        contract: how a person writes it, for errors, as in "`def read(start, end)` that returns a pyarrow Table".
        keep_module: import the file once, and again only when it has changed, so that it may keep data in memory.
            Otherwise the file is run anew at every call, so that nothing is left over from the last one.

    Raises:
        SpecError: the file is absent, cannot be imported, or has no such function.
    """
    if not file.is_file():
        raise SpecError(f"{file}: not found. Write it with {contract}.")
    name = f"perennial_models.{model}.{file.stem}"
    module = _import_once(name, file, file.stat().st_mtime_ns) if keep_module else _import(name, file)
    loaded = getattr(module, function, None)
    if not callable(loaded):
        names = sorted(n for n, value in vars(module).items() if callable(value) and not n.startswith("_"))
        raise SpecError(f"{file}: has no function {function!r}, only {names}. Add {contract}.")
    return loaded  # type: ignore[no-any-return]


def _import(name: str, file: Path) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise SpecError(f"{file}: cannot be imported. Is it a Python file?")
    module = importlib.util.module_from_spec(specification)
    # before it is run: dataclasses look their module up by name, and so does whoever saves a model of its classes
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SpecError(
            f"{file}: cannot be imported ({type(error).__name__}: {error}). Mend it, then run `perennial check`."
        ) from error
    return module


@lru_cache(maxsize=256)
def _import_once(name: str, file: Path, modified_ns: int) -> ModuleType:  # noqa: ARG001 - modified_ns is part of the key
    return _import(name, file)
