"""Fits and checks kept by content: the same rows, parameters, seed and code give what they gave before.

A kept fit can change no figure: the key holds every byte that the fit sees, the text of the pipeline and the versions
of the libraries that fit. A kept check's key holds the batch and the suite.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from perennial.data.rows import digest_of
from perennial.measures import checks
from perennial.model import training
from perennial.records import ValidationReport, from_json, to_json
from perennial.spec import ModelSpec

LIBRARIES = ("scikit-learn", "numpy", "pandas", "scipy")


def cache_folder() -> Path:
    """Where fits are kept: outside the project, as caches are."""
    base = os.environ.get("PERENNIAL_FITS") or os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "perennial-fits"


class Fits:
    """The kept fits, and how many were made and found."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made = 0
        self.found = 0
        self.seconds = 0.0

    def fit(self, estimator: Any, code: str, inputs: pd.DataFrame, labels: np.ndarray) -> Any:
        """The fitted estimator; `code` says how it was built."""
        file = self.folder / f"{key_of(code, inputs, labels)}.pickle"
        if file.is_file():
            try:
                with file.open("rb") as stream:
                    fitted = pickle.load(stream)  # noqa: S301 - our own file, in the user's cache
            except (pickle.UnpicklingError, EOFError):
                file.unlink(missing_ok=True)  # a run that was killed in the middle of writing
            else:
                self.found += 1
                return fitted
        begun = time.perf_counter()
        fitted = estimator.fit(inputs, labels)
        self.seconds += time.perf_counter() - begun
        self.made += 1
        _write(file, pickle.dumps(fitted))
        return fitted


def key_of(code: str, inputs: pd.DataFrame, labels: np.ndarray) -> str:
    """SHA-256 over everything that the fit sees."""
    sink = hashlib.sha256(code.encode())
    sink.update(",".join(f"{name}={importlib.metadata.version(name)}" for name in LIBRARIES).encode())
    sink.update(",".join(f"{name}:{kind}" for name, kind in inputs.dtypes.items()).encode())
    for name in inputs.columns:
        sink.update(pd.util.hash_array(inputs[name].to_numpy(), categorize=True).tobytes())
    values = labels.astype(str) if labels.dtype == object else labels
    sink.update(np.ascontiguousarray(values).tobytes())
    return sink.hexdigest()


class _Kept:
    """An unfitted estimator whose `fit` asks the kept fits first."""

    def __init__(self, fits: Fits, inner: Any, code: str) -> None:
        self._fits, self._inner, self._code = fits, inner, code

    def fit(self, inputs: pd.DataFrame, labels: np.ndarray) -> Any:
        """The inner estimator, fitted."""
        return self._fits.fit(self._inner, self._code, inputs, labels)


@contextmanager
def kept(fits: Fits) -> Iterator[None]:
    """Inside, every fit and every check of a batch asks what is kept first: the loop's own, and those of the rivals."""
    original, validate = training.load_pipeline, checks.validate

    def load_pipeline(spec: ModelSpec) -> Callable[[dict[str, Any], int], Any]:
        build = original(spec)
        text = (spec.folder / "pipeline.py").read_text(encoding="utf-8")

        def build_kept(params: dict[str, Any], seed: int) -> Any:
            return _Kept(fits, build(params, seed), f"{text}\n{sorted(params.items())}\n{seed}")

        return build_kept

    def validate_kept(batch: pa.Table, suite: Any, *, docs: Path | None = None, **others: Any) -> ValidationReport:
        """Production's own checks of a batch, once; without the page for people."""
        del docs
        text = f"{suite.expectations}{others.get('parameters')}{digest_of(batch)}"
        file = fits.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.checks"
        if file.is_file():
            known = from_json(ValidationReport, json.loads(file.read_text(encoding="utf-8")))
            return replace(known, suite=suite.name, suite_digest=suite.digest)
        report: ValidationReport = validate(batch, suite, **others)
        _write(file, json.dumps(to_json(report)).encode())
        return report

    training.load_pipeline = load_pipeline
    checks.validate = validate_kept
    try:
        yield
    finally:
        training.load_pipeline, checks.validate = original, validate


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all: two processes may write the same."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
        stream.write(content)
    Path(stream.name).replace(file)
