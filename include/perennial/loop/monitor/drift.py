"""Have the columns, the predictions or the labels of a batch changed?"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from perennial.context import TaskContext
from perennial.data.labels import labels_known
from perennial.decisions import drift
from perennial.loop.monitor.predictions import predictions_of, scoring_of
from perennial.measures import profiles
from perennial.records import (
    ColumnProfile,
    DataQuality,
    Decision,
    Deployment,
    DriftConclusion,
    DriftEvidence,
    Kind,
    OrdinaryVariation,
    Partition,
    Profile,
    ReferenceKind,
    Verdict,
    concluded,
    from_json,
)

#: partitions that a trailing reference is made of
TRAILING_PARTITIONS = 4
#: the season where the spec names none: whole weeks, so that a day is compared with the same day of the week
YEAR = timedelta(weeks=52)


def drifted_columns(decision: Decision) -> list[str]:
    """Names of the columns that somebody must look at now."""
    return sorted(concluded(DriftConclusion, decision).drifted)


def judge_drift(
    context: TaskContext, partition: Partition, deployment: Deployment, run_id: str
) -> tuple[Decision, dict[str, ColumnProfile]]:
    """Judge features and predictions of a batch; the decision, and a profile of the predictions of each version."""
    spec = context.spec
    bins = context.stores.registry.profile(spec.name, deployment.champion)
    features = Profile(rows=bins.rows, columns={name: bins.columns[name] for name in spec.features.names})
    history = _History(context, features, lambda keys: _profile_rows(context, features, keys))
    evidence = replace(history.compared(partition.key), earlier=history.earlier(Kind.DRIFT, partition.key))
    predictions: dict[str, ColumnProfile] = {}
    if "prediction" in bins.columns:
        output = Profile(rows=bins.columns["prediction"].rows, columns={"prediction": bins.columns["prediction"]})
        for version in deployment.versions:
            rows = predictions_of(context, partition, run_id, named=False).filter(pc.field("model_version") == version)
            predictions[version] = profiles.profile(rows.select(["prediction"]).to_reader(), output).columns[
                "prediction"
            ]

        def predicted(side: Profile | None, keys: Sequence[str]) -> Profile | None:
            before = None
            if side is not None:
                before = _reference_predictions(context, keys, deployment.champion, output, side.rows)
            return side if side is None or before is None else _with(side, before)

        keys = history.reference_keys(partition.key)[0]
        evidence = replace(
            evidence,
            current=_with(evidence.current, predictions[deployment.champion]),
            reference=(predicted(evidence.reference, keys) or evidence.reference)
            if keys
            else _with(evidence.reference, bins.columns["prediction"]),
            season=predicted(evidence.season, history.season_keys(partition.key)),
            training=None if evidence.training is None else _with(evidence.training, bins.columns["prediction"]),
        )
    return drift.decide(evidence, spec.monitoring, None), predictions


def judge_labels(context: TaskContext, partition: Partition, champion: Profile) -> Decision | None:
    """Have the labels changed, by the rule that judges the features; None where the version's profile has no label.

    Unlabelled rows are left out of both sides: labels that are missing are no change of the labels.
    """
    if "label" not in champion.columns:
        return None  # saved before labels were profiled
    bins = Profile(rows=champion.columns["label"].rows, columns={"label": champion.columns["label"]})

    def known(keys: Sequence[str]) -> Profile:
        spans = map(context.spec.schedule.partition_of_key, keys)
        tables = [labels_known(context, span.start, span.end) for span in spans]
        none = pa.table({"label": pa.array([], _label_type(bins))})
        return profiles.profile(
            pa.concat_tables([rows.select(["label"]) if rows.num_rows else none for rows in tables]), bins
        )

    history = _History(context, bins, known)
    # fewer labels are no change of the labels
    evidence = replace(history.compared(partition.key), rows_expected=None)
    earlier = history.earlier(Kind.LABEL_DRIFT, partition.key, count_rows=False)
    return drift.decide(replace(evidence, earlier=earlier), context.spec.monitoring, None)


def data_quality(decision: Decision) -> DataQuality:
    """Share of nulls, and of levels the reference never saw, per column of the batch; zero shares are left out."""
    columns = from_json(DriftEvidence, decision.evidence).current.columns
    return DataQuality(
        null_share={
            name: column.nulls / column.rows for name, column in columns.items() if column.rows and column.nulls
        },
        unseen_share={
            name: column.counts[-1] / column.rows
            for name, column in columns.items()
            if column.kind == "categorical" and column.rows and column.counts[-1]
        },
    )


class _History:
    """The accepted batches before one, counted in the bins of one champion, and what each of them is compared with."""

    def __init__(self, context: TaskContext, training: Profile, profile: Callable[[Sequence[str]], Profile]) -> None:
        self._context = context
        self._training = training
        self._profile = profile
        self._keys = sorted(context.stores.lake.partitions("accepted", context.model))
        self._profiles: dict[str, Profile] = {}

    def reference_keys(self, key: str) -> tuple[list[str], ReferenceKind]:
        return compared_with(self._context, key, self._keys)

    def season_keys(self, key: str) -> list[str]:
        """The batch of the same season, where it stands beside the batches before."""
        keys, kind = self.reference_keys(key)
        season = _same_season(self._context, key, self._keys)
        return [season] if kind == "trailing" and season and season not in keys else []

    def compared(self, key: str) -> DriftEvidence:
        """The batch beside what it is compared with, without earlier batches."""
        keys, kind = self.reference_keys(key)
        season = self.season_keys(key)
        reference = self._of(keys) if keys else self._training
        return DriftEvidence(
            partition=key,
            reference=reference,
            current=self._of([key]),
            reference_kind=kind,
            rows_expected=self._rows_expected(key, keys, reference.rows) if keys else None,
            training=self._training if keys else None,
            season=self._of(season) if season else None,
        )

    def _rows_expected(self, key: str, keys: Sequence[str], rows: int) -> float:
        """As many rows a unit of time as the reference has: February is shorter than March."""
        partition_of = self._context.spec.schedule.partition_of_key
        spans = [partition.end - partition.start for partition in map(partition_of, (key, *keys))]
        return rows * (spans[0] / sum(spans[1:], timedelta()))

    def earlier(self, kind: Kind, key: str, *, count_rows: bool = True) -> OrdinaryVariation:
        """The distances of the batches before this one from their own references.

        They stand in the entry of the batch just before. Where it has none, or another champion's bins, they are
        measured anew from the lake: once a champion, at most `MAX_BATCHES` batches.
        """
        before = self._before(key)
        policy = self._context.spec.monitoring
        if before and (last := self._judged(kind, before[-1])) and last.reference_kind == self.reference_keys(key)[1]:
            return drift.extended(last, policy)
        earlier = OrdinaryVariation()
        for batch in before[-drift.MAX_BATCHES :]:
            evidence = self.compared(batch)
            if evidence.reference_kind != policy.reference:
                continue
            if not count_rows:
                evidence = replace(evidence, rows_expected=None)
            earlier = drift.extended(replace(evidence, earlier=earlier), policy)
        return earlier

    def _judged(self, kind: Kind, key: str) -> DriftEvidence | None:
        """What the batch was judged by, where this rule did and in these bins."""
        entries = self._context.stores.ledger.entries(self._context.model, kind=kind, subject=key, newest=1)
        if not entries or (decision := entries[0].read(Decision)).rule_version != drift.VERSION:
            return None
        evidence = from_json(DriftEvidence, decision.evidence)
        judged = evidence.current.columns
        same = all(
            name in judged and (judged[name].edges, judged[name].categories) == (column.edges, column.categories)
            for name, column in self._training.columns.items()
        )
        return evidence if same else None

    def _before(self, key: str) -> list[str]:
        return self._keys[: bisect_left(self._keys, key)]

    def _of(self, keys: Sequence[str]) -> Profile:
        for key in keys:
            if key not in self._profiles:
                self._profiles[key] = self._profile([key])
        return reduce(profiles.merge, (self._profiles[key] for key in keys))


def compared_with(context: TaskContext, key: str, accepted: Sequence[str]) -> tuple[list[str], ReferenceKind]:
    """The accepted batches that this one is compared with; none and `training` where the lake does not hold them."""
    policy = context.spec.monitoring
    before = list(accepted[: bisect_left(accepted, key)])
    if policy.reference == "trailing" and before:
        return _trailing(context, before), "trailing"
    if policy.reference == "season" and (season := _same_season(context, key, accepted)):
        return [season], "season"
    return [], "training"


def _trailing(context: TaskContext, before: Sequence[str]) -> list[str]:
    """The newest batches, without single ones that were called DRIFTED: beside a fault every sound batch looks odd.

    Where the batch after it was called too, the world has changed, and it is what the next one is compared with.
    """
    near = before[-2 * TRAILING_PARTITIONS :]
    heads = context.stores.ledger.heads(context.model, kind=Kind.DRIFT, since=near[0])
    verdicts = {head.subject: head.verdict for head in heads}
    called = [verdicts.get(key) == Verdict.DRIFTED for key in near]
    followed = [*called[1:], False]
    sound = [key for key, here, after in zip(near, called, followed, strict=True) if after or not here]
    return (sound or list(near))[-TRAILING_PARTITIONS:]


def _same_season(context: TaskContext, key: str, accepted: Sequence[str]) -> str | None:
    spec = context.spec
    start = spec.schedule.partition_of_key(key).start
    season = spec.schedule.key_at(start - (spec.monitoring.season or YEAR))
    place = bisect_left(accepted, season)
    return season if place < len(accepted) and accepted[place] == season else None


def _with(side: Profile, prediction: ColumnProfile) -> Profile:
    return replace(side, columns={**side.columns, "prediction": prediction})


def _reference_predictions(
    context: TaskContext, keys: Sequence[str], version: str, bins: Profile, rows: int
) -> ColumnProfile | None:
    """What this version predicted for the reference's own rows; None where it did not score all of them.

    Predictions follow the season as features do, so the holdout of training is no reference for them; and another
    version's predictions differ because the version does.
    """
    tables: list[pa.Table] = []
    for key in keys:
        if not context.stores.ledger.entries(context.model, kind=Kind.SCORING, subject=key, newest=1):
            return None
        run_id = scoring_of(context, key).run.run_id
        scored = predictions_of(context, context.spec.schedule.partition_of_key(key), run_id, named=False)
        tables.append(scored.filter(pc.field("model_version") == version).select(["prediction"]))
    if sum(table.num_rows for table in tables) != rows:
        return None
    return profiles.profile(pa.concat_tables(tables), bins).columns["prediction"]


def _label_type(bins: Profile) -> pa.DataType:
    return pa.float64() if bins.columns["label"].kind == "numeric" else pa.string()


def _profile_rows(context: TaskContext, bins: Profile, keys: Sequence[str]) -> Profile:
    features = context.spec.features
    rows = context.stores.lake.scan(
        "accepted",
        context.model,
        columns=list(features.names),
        since=keys[0],
        before=context.spec.schedule.partition_of_key(keys[-1]).bound,
        categorical=features.categorical,
    )
    return profiles.profile(rows, bins)
