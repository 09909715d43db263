"""Whether the parts of a model fit together: spec, suite, reader, pipeline."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from perennial.data.sources import check_readers
from perennial.errors import PerennialError, SpecError
from perennial.measures import checks
from perennial.model.training import load_pipeline
from perennial.records import MEASURED_IN_BATCH
from perennial.settings import Settings
from perennial.spec import ModelSpec, RenamedKey, load_specs, unknown_model

PARTS = ("spec", "suite", "reader", "pipeline")


@dataclass(frozen=True)
class Checked:
    """One model and the problems of its parts."""

    name: str
    #: part -> what is wrong with it, None where it is good; a part that was not checked is absent
    problems: Mapping[str, str | None]
    #: None where the spec itself is bad
    spec: ModelSpec | None = None
    #: former names of keys that the spec still uses, each with its line and the new name; guardrails that guard nothing
    warnings: tuple[str, ...] = ()


def check_models(names: list[str], settings: Settings) -> Iterator[Checked]:
    """Check each model: all of them where `names` is empty.

    Raises:
        SpecError: no folder holds a model of that name.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RenamedKey)
        good, bad = load_specs()
    renamed = [str(each.message) for each in caught if issubclass(each.category, RenamedKey)]
    models = [*good, *(file.parent.name for file in bad)]
    for name in names:
        if name not in models:
            raise unknown_model(name, models)
    for file, error in bad.items():
        if not names or file.parent.name in names:
            yield Checked(file.parent.name, {"spec": str(error)})
    part_checks: dict[str, Callable[[ModelSpec, Settings], None]] = {
        "suite": _check_suite,
        "reader": _check_reader,
        "pipeline": _check_pipeline,
    }
    for name, spec in good.items():
        if not names or name in names:
            problems = {part: _problem(part, check, spec, settings) for part, check in part_checks.items()}
            own = tuple(text for text in renamed if text.startswith(f"{spec.folder / 'spec.yaml'}:"))
            yield Checked(name, {"spec": None, **problems}, spec, (*own, *_unguarded(spec)))


def _unguarded(spec: ModelSpec) -> Iterator[str]:
    """A warning where no guardrail of the spec is measured in the batch loop: every rollout would wait for a person."""
    named = spec.rollout.guardrails
    if not set(named) & set(MEASURED_IN_BATCH):
        yield (
            f"{spec.folder / 'spec.yaml'}: rollout.guardrails names {list(named)}, which the batch loop does not "
            f"measure: every rollout would wait for a person. Name one of {list(MEASURED_IN_BATCH)}."
        )


def missing_folders(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each folder that PERENNIAL_MODELS names and that is none."""
    return [
        f"PERENNIAL_MODELS names {folder}, which is not a folder. Correct it."
        for folder in environment.get("PERENNIAL_MODELS", "").split(os.pathsep)
        if folder and not Path(folder).is_dir()
    ]


@contextmanager
def blamed(spec: ModelSpec, what: str) -> Iterator[None]:
    """Whatever goes wrong with one model is that model's problem: the others are checked all the same.

    Raises:
        PerennialError: as raised; any other error as a SpecError that names the file.
    """
    try:
        yield
    except PerennialError:
        raise
    except Exception as error:
        msg = (
            f"{spec.folder / 'spec.yaml'}: {what} cannot be checked ({type(error).__name__}: {str(error)[:200]}). "
            "Mend the value that it comes from."
        )
        raise SpecError(msg) from error


def _problem(
    part: str, check: Callable[[ModelSpec, Settings], None], spec: ModelSpec, settings: Settings
) -> str | None:
    try:
        with blamed(spec, f"the {part}"):
            check(spec, settings)
    except PerennialError as error:
        return str(error)
    return None


def _check_suite(spec: ModelSpec, settings: Settings) -> None:
    checks.check_suite(checks.load_suite(settings.suites, spec.expectations), spec)


def _check_reader(spec: ModelSpec, settings: Settings) -> None:
    check_readers(spec, settings.environment)


def _check_pipeline(spec: ModelSpec, settings: Settings) -> None:  # noqa: ARG001 - one signature for all parts
    build = load_pipeline(spec)
    try:
        build(dict(spec.training.params), spec.training.seed)
    except Exception as error:
        msg = (
            f"{spec.folder / 'pipeline.py'}: build({dict(spec.training.params)}, {spec.training.seed}) failed "
            f"({type(error).__name__}: {error}). Mend it, or training.params."
        )
        raise SpecError(msg) from error
