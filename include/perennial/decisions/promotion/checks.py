"""The checks of one challenger, with what each found."""

from __future__ import annotations

from perennial.records import Json, PromotionEvidence
from perennial.spec import Gate


class Checks:
    """The checks of one challenger, in the order in which a person would make them."""

    def __init__(self, evidence: PromotionEvidence, policy: Gate) -> None:
        self.evidence, self.policy = evidence, policy
        self.checks: dict[str, tuple[bool, str]] = {}
        self.statistics: dict[str, Json] = {}
        self.alerts: list[Json] = []
        #: the challenger is shown to be better than the champion, whatever the mode asks
        self.better = False
        self.least = policy.least_rows(evidence.training_rows)
        self.least_slice = policy.least_slice_rows(evidence.training_rows)
        self.thresholds: dict[str, Json] = {"min_rows": self.least}

    def check(self, name: str, passed: bool, reason: str) -> None:  # noqa: FBT001 - the finding is the subject
        """Note what one check found; the reason says what would be accepted."""
        self.checks[name] = (passed, reason)

    def lacks(self, name: str, reason: str) -> None:
        """Evidence without which nothing passes."""
        self.checks[name] = (False, reason)

    @property
    def grounds(self) -> list[str]:
        """Why it may pass: the comparison with the champion first, then what a person should know, then the rest."""
        names = sorted(self.checks, key=lambda name: name != "difference")
        first, *others = (self.checks[name][1] for name in names)
        return [first, *map(str, self.alerts), *others]

    def size(self, rows: int) -> None:
        """Rows enough to be judged; with a champion those that it has not learnt from."""
        needed = self.least
        enough = rows >= needed
        self.check(
            "min_rows",
            enough,
            f"The holdout is {'large enough' if enough else 'too small'}: {rows} holdout rows, {needed} needed"
            f"{'' if enough else self.how_more(needed - rows)}",
        )

    def how_more(self, lacking: int) -> str:
        """What would make the rows enough."""
        return f". Wait for {lacking} more labelled rows there, lengthen training.holdout, or lower gate.min_rows"
