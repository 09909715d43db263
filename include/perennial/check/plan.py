"""What is derived where a spec names no number: printed before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from perennial.data.holdout import FIRST_SHARE, NEW_SHARE
from perennial.spec import ModelSpec
from perennial.spec.grammar import show_duration
from perennial.spec.policies import LEAST_ROWS

_DAY = timedelta(days=1)


def first_holdout(spec: ModelSpec) -> timedelta:
    """Width of the first champion's holdout where rows come evenly; the spec's own where it has one."""
    first = spec.training.first_moment(spec.schedule.zone)
    return spec.training.holdout or (spec.schedule.start - first) * FIRST_SHARE


def derived(spec: ModelSpec) -> Iterator[str]:
    """One line for all keys that the spec leaves open, with what stands in for them; none where it names them all."""
    training, gate = spec.training, spec.gate
    said = []
    if training.holdout is None:
        days = max(1, round(first_holdout(spec) / _DAY))
        said.append(
            f"training.holdout: the newest {FIRST_SHARE:.0%} of the rows (about {days} days) for the first champion, "
            f"later the newest {NEW_SHARE:.0%} of those new to the champion"
        )
    if training.min_rows is None:
        said.append(f"training.min_rows: {LEAST_ROWS}")
    if gate.min_rows is None:
        said.append(f"gate.min_rows: the root of the rows learnt from, {LEAST_ROWS} at least")
    if gate.slices and gate.slice_min_rows is None:
        said.append("gate.slice_min_rows: as gate.min_rows")
    if gate.max_calibration_error is None:
        said.append("gate.max_calibration_error: what the trivial baseline misses by, and chance")
    if "seed" not in training.model_fields_set:
        said.append("training.seed: 0")
    if training.window.policy == "auto":
        width = f"the last {show_duration(training.window.last)}" if training.window.last else "the last 90 days"
        said.append(f"training.window: all rows, {width} or those since a change, whichever serves better")
    if said:
        yield f"{spec.name}: derived: {'; '.join(said)}."
