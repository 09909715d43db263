"""How far may the challenger go? Guarded against harm at every look, sent on by evidence, and always brought to an end.

Five questions, in this order:

1. Harm. Null: the challenger is not worse (loss, errors, latency; for missing predictions: not beyond `max_missing`).
   An always-valid one-sided test (`statistics.mixture_bound`) may be looked at as often as one likes; `alpha` is split
   over the guardrails that the policy names and somebody measures. ROLL_BACK where the test rejects and the harm is as
   big as the margin.
2. Is the experiment sound? Served rows must split as planned (chi-square at a tiny alpha), or it HOLDs.
3. Is it shown to be better? Null: it is not. Two always-valid tests with half of `alpha` each: the mirror of the guard
   on all paired rows, and an e-value of the partitions' relative gains (`statistics.symmetry_e_value`), which uneven
   gains cannot undo. Either rejects: PROMOTE, from any stage. `pace: stages` leaves this question out.
4. Is it no worse? Null: the challenger is worse by `margin` of the champion's loss or more (`ab`: not better).
   Group-sequential (Lan-DeMets) over the looks of a stage, on all paired rows so far. Rejected: ADVANCE, at the last
   stage PROMOTE; else HOLD. A canary that has also lost less so far is promoted from any stage, unless `pace: stages`.
   `blue_green` bakes first.
5. Is its time over (`max_age`)? Then the version with the lower paired loss so far serves: PROMOTE_UNDECIDED or
   ROLL_BACK_UNDECIDED. No test: `benchmarks/rates/canary.py` says how often that errs.

Both versions score every row, so the loss is paired on the same rows. Rows need not be independent: all tests on rows
are widened by how much partitions vary beyond what their rows explain (`statistics.dispersion`). Partitions are taken
as independent of each other. Rows that the challenger may have learnt from are no evidence.
"""

from perennial.decisions.rollout.better import START_ALPHA, Start, start
from perennial.decisions.rollout.look import GUARDRAILS
from perennial.decisions.rollout.rule import FORMER, RULE, VERSION, decide
from perennial.decisions.rollout.soundness import SAMPLE_RATIO_ALPHA, SHIFT_ALPHA

__all__ = [
    "FORMER",
    "GUARDRAILS",
    "RULE",
    "SAMPLE_RATIO_ALPHA",
    "SHIFT_ALPHA",
    "START_ALPHA",
    "VERSION",
    "Start",
    "decide",
    "start",
]
