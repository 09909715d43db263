"""Which record every kind of ledger entry holds."""

from __future__ import annotations

from perennial.records import (
    AdvanceBody,
    ArtifactBody,
    Body,
    Decision,
    Event,
    FirstChampionBody,
    HealthBody,
    Kind,
    LedgerEntry,
    MeasuredBody,
    OpenedBody,
    OverrideBody,
    RetrainBody,
    ScoringBody,
    SnapshotBody,
    StageBody,
    SupersededBody,
    ValidationBody,
    Verdict,
    WatchBody,
)

#: what the entries of a kind hold; where a verdict stands beside it, those of this verdict
BODIES: dict[tuple[Kind, str | None], type[Body | Decision]] = {
    (Kind.VALIDATION, None): ValidationBody,
    (Kind.SCORING, None): ScoringBody,
    (Kind.DRIFT, None): Decision,
    (Kind.LABEL_DRIFT, None): Decision,
    (Kind.MEASUREMENT, None): MeasuredBody,
    (Kind.HEALTH, None): HealthBody,
    (Kind.RETRAINING, None): Decision,
    (Kind.RETRAIN, None): RetrainBody,
    (Kind.SNAPSHOT, None): SnapshotBody,
    (Kind.ARTIFACT, None): ArtifactBody,
    (Kind.REUSE, None): Decision,
    (Kind.PROMOTION, None): Decision,
    (Kind.DEPLOYMENT, Event.FIRST_CHAMPION): FirstChampionBody,
    (Kind.DEPLOYMENT, Event.OPENED): OpenedBody,
    (Kind.DEPLOYMENT, Event.STAGE): StageBody,
    (Kind.ROLLOUT, None): Decision,
    (Kind.DEPLOYMENT, Event.SUPERSEDED): SupersededBody,
    (Kind.OVERRIDE, None): OverrideBody,
    (Kind.WATCH, None): WatchBody,
    (Kind.OVERRIDE, Verdict.ADVANCE): AdvanceBody,
    (Kind.OVERRIDE, Verdict.PROMOTE): AdvanceBody,
}


def body_of(entry: LedgerEntry) -> type[Body | Decision]:
    kind = Kind(entry.kind)
    return BODIES.get((kind, entry.verdict)) or BODIES[kind, None]
