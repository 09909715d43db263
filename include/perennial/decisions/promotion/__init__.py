"""May this challenger start a rollout?"""

from __future__ import annotations

from perennial.decisions.promotion.comparison import BETTER_ALPHA
from perennial.decisions.promotion.labels import LASTING_DAYS, LASTING_PARTITIONS
from perennial.decisions.promotion.rule import FORMER, RULE, VERSION, decide

__all__ = ["BETTER_ALPHA", "FORMER", "LASTING_DAYS", "LASTING_PARTITIONS", "RULE", "VERSION", "decide"]
