"""The loop over a model's history in one process, without Airflow: how a team tries a policy before it trusts it.

The steps, decisions and measures are those of production; only the stores are in memory. Beside the loop run two
policies on the same rows: never retraining, and retraining before every batch on all labels known by then.
"""

from __future__ import annotations

from perennial.replay.life import replay
from perennial.replay.report import Progress, Replay
from perennial.replay.rivals import Comparison, compare

__all__ = ["Comparison", "Progress", "Replay", "compare", "replay"]
