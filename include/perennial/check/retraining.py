"""What a spec leaves open about retraining, and what stands there instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from perennial.decisions.retraining import derived
from perennial.spec import ModelSpec, Retraining

_DAY = timedelta(days=1)


def describe(specs: Sequence[ModelSpec]) -> Iterator[str]:
    """One line a model: the values that were derived for it; none where the spec names all of them."""
    for spec in specs:
        cadence = spec.schedule.cadence
        wanted, given = derived(spec.retraining, cadence, spec.label.delay), spec.retraining
        shown = [
            f"{name} {_show(getattr(wanted, name))}"
            for name in Retraining.model_fields
            if getattr(given, name) is None and getattr(wanted, name) is not None
        ]
        if shown:
            yield f"{spec.name}: retraining, derived from partitions of {_show(cadence)}: {', '.join(shown)}."


def _show(value: object) -> str:
    return f"{value / _DAY:.3g} days" if isinstance(value, timedelta) else str(value)
