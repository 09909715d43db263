"""A challenger's way from 0 % to 100 %, or back: stages by compare-and-set, verdicts on evidence, aliases."""

from __future__ import annotations

from perennial.loop.rollout.deployments import newest_change, reconcile, stage_due, wanted_aliases
from perennial.loop.rollout.evidence import collect_evidence, evidence_marker, is_measured_since
from perennial.loop.rollout.opening import first_share, open_rollout, require_approval, require_digest
from perennial.loop.rollout.overrides import advance, roll_back
from perennial.loop.rollout.steps import ends_at, enter_stage, judge

__all__ = [
    "advance",
    "collect_evidence",
    "ends_at",
    "enter_stage",
    "evidence_marker",
    "first_share",
    "is_measured_since",
    "judge",
    "newest_change",
    "open_rollout",
    "reconcile",
    "require_approval",
    "require_digest",
    "roll_back",
    "stage_due",
    "wanted_aliases",
]
