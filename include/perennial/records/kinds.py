"""The names that the ledger's entries go by. What is stored is the text: old entries keep theirs."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """What a ledger entry is about. `bodies.py` says what each kind holds."""

    #: the checks of one batch
    VALIDATION = "validation"
    #: one batch was scored
    SCORING = "scoring"
    #: decision of the drift rule on the features and predictions of one batch
    DRIFT = "drift"
    #: decision of the drift rule on the labels of one batch
    LABEL_DRIFT = "label_drift"
    #: the digests of figures that were measured
    MEASUREMENT = "measurement"
    #: one batch was measured
    HEALTH = "health"
    #: decision of the retraining rule
    RETRAINING = "retraining"
    #: a retrain was skipped, failed, or lost its lease
    RETRAIN = "retrain"
    #: the rows of a retrain were frozen
    SNAPSHOT = "snapshot"
    #: the bytes of a fitted model: their digest, which every later load demands
    ARTIFACT = "artifact"
    #: decision whether a former champion is used again
    REUSE = "reuse"
    #: decision of the promotion gate
    PROMOTION = "promotion"
    #: who serves changed without a verdict: the first champion, a rollout opened, a stage entered
    DEPLOYMENT = "deployment"
    #: decision of the rollout rule
    ROLLOUT = "rollout"
    #: a person's word
    OVERRIDE = "override"
    #: something stands still for longer than its plan
    WATCH = "watch"


#: kinds whose entries hold the decision of a rule
RULE_KINDS = (
    Kind.DRIFT,
    Kind.LABEL_DRIFT,
    Kind.RETRAINING,
    Kind.REUSE,
    Kind.PROMOTION,
    Kind.ROLLOUT,
)
#: kinds that a person asks about; the others are bookkeeping
DECISION_KINDS = (
    Kind.VALIDATION,
    Kind.DRIFT,
    Kind.LABEL_DRIFT,
    Kind.HEALTH,
    Kind.RETRAINING,
    Kind.REUSE,
    Kind.PROMOTION,
    Kind.ROLLOUT,
    Kind.DEPLOYMENT,
    Kind.OVERRIDE,
)


class Event(StrEnum):
    """What an entry says where no rule gave a verdict."""

    #: scoring: the first run of a partition, whose predictions count
    SERVED = "SERVED"
    #: scoring: a later run; its predictions are kept and not served
    BACKFILLED = "BACKFILLED"
    #: scoring: a version has scored a batch that others served, when its labels became due; nothing of it is served
    RESCORED = "RESCORED"
    #: retrain: another one, or a rollout, was under way
    SKIPPED = "SKIPPED"
    #: retrain: it ended without a verdict of the gate, or its rollout was not opened
    FAILED = "FAILED"
    #: retrain: it gave no sign of life, and another one has taken over its lease
    EXPIRED = "EXPIRED"
    #: watch
    STUCK = "STUCK"
    #: snapshot
    FROZEN = "FROZEN"
    #: measurement: figures were written
    MEASURED = "MEASURED"
    #: artifact: a model was fitted and written to MLflow; the subject is its run there
    LOGGED = "LOGGED"
    #: artifact: it became a version; the subject is the version
    REGISTERED = "REGISTERED"
    #: artifact: a version that an older release registered was loaded for the first time since; the subject is it
    RECORDED = "RECORDED"
    #: deployment: a model's first version that serves
    FIRST_CHAMPION = "FIRST_CHAMPION"
    #: deployment: a rollout began, with a share of 0
    OPENED = "OPENED"
    #: deployment: a rollout's next share
    STAGE = "STAGE"
    #: deployment: a rollout ended because a newer challenger was admitted
    SUPERSEDED = "SUPERSEDED"


class Trigger(StrEnum):
    """Why the retraining rule asked for a retrain, most urgent first."""

    #: the champion predicts worse than a constant
    INCIDENT = "incident"
    LOST_QUALITY = "lost_quality"
    ESTIMATED_HARM = "estimated_harm"
    FOLLOW_UP = "follow_up"
    SCHEDULE = "schedule"
    NEW_DATA = "new_data"


class Outcome(StrEnum):
    """What became of a retrain that was asked for."""

    RUNNING = "running"
    ADMITTED = "admitted"
    REFUSED = "refused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"
