"""How many holdout rows the gate of a model needs, and whether it has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta

from perennial.check.parts import blamed
from perennial.check.plan import derived, first_holdout
from perennial.decisions import planning
from perennial.errors import LedgerError, SpecError
from perennial.records import LedgerEntry, PromotionEvidence, from_json
from perennial.spec import ModelSpec
from perennial.spec.grammar import show_duration
from perennial.stores.ports import Ledger

#: a model's newest gates; one of them measured how much differences vary, or none did
_GATES = 10


def describe(
    specs: Sequence[ModelSpec], ledger: Ledger | None, on_problem: Callable[[str], None] | None = None
) -> Iterator[str]:
    """A line a model on what is derived, and one on how many holdout rows its gate needs; warnings where they lack.

    Args:
        specs: the models.
        ledger: holds what earlier gates have measured; None: planning values.
        on_problem: hears of a model about which nothing can be said, and the others go on; None: that is raised.

    Raises:
        SpecError: its numbers cannot be computed with; the file is named.
    """
    for spec in specs:
        try:
            entries = ledger.entries(spec.name, kind="promotion", newest=_GATES) if ledger else ()
        except LedgerError as error:
            yield f"warning: {error} The gate's rows are planned without it."
            ledger, entries = None, ()
        try:
            with blamed(spec, "what its gate can show"):
                lines = [*derived(spec), *_power_of(spec, entries)]
        except SpecError as error:
            if on_problem is None:
                raise
            on_problem(str(error))
        else:
            yield from lines


def _power_of(spec: ModelSpec, entries: Sequence[LedgerEntry]) -> Iterator[str]:
    gate, days = spec.gate, int(first_holdout(spec) / timedelta(days=1))
    own = spec.training.holdout
    width = f"the holdout of {show_duration(own)}" if own else f"the derived holdout of about {days} days"
    components, source = planning.PLANNING_VALUES, "planning values; no gate has judged yet"
    for entry in reversed(entries):
        evidence = from_json(PromotionEvidence, entry.body["evidence"])
        measured = planning.measured_components(evidence, gate)
        if measured is not None:
            components, source = measured, f"measured at the gate of {entry.as_of:%Y-%m-%d}"
            break
        if components.rows_a_day is None and evidence.clusters:
            rows_a_day = sum(pair.rows for pair in evidence.clusters) / len(evidence.clusters)
            components = replace(components, rows_a_day=rows_a_day)
            source = f"planning values; rows a day of the gate of {entry.as_of:%Y-%m-%d}"
    need = planning.holdout_needed(components, gate, days)
    yield (
        f"{spec.name}: {need.rows:,} holdout rows in {need.days} days are needed to admit a challenger that is better "
        f"by {100 * gate.margin:.3g} % in {100 * planning.TARGET_POWER:.0f} % of the gates ({source})."
    )
    if days < 2:  # noqa: PLR2004 - the gate needs the variance between days
        yield f"warning: {spec.name}: {width} has fewer than 2 whole days; the gate needs the variance between days."
    elif components.rows_a_day is not None and days < need.days:
        have = planning.HoldoutSize(round(components.rows_a_day * days), days)
        power = planning.power(components, gate, have, gate.margin)
        yield (
            f"warning: {spec.name}: {width} has about {have.rows:,} rows in {days} days, where such a challenger is "
            f"admitted in {100 * power:.0f} % of the gates. Lengthen training.holdout, or take a wider gate.margin."
        )
    elif components.rows_a_day is None and days < need.days:
        yield (
            f"warning: {spec.name}: {width} has {days} days, fewer than that. Lengthen training.holdout, or take a "
            "wider gate.margin."
        )
