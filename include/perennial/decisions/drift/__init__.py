"""Has the batch changed so that somebody must look now? Never a reason to retrain by itself.

A column has drifted when its distance from what came just before, or from the same season of a year before, is

1. beyond the ordinary variation between batches: the distances of earlier batches from their own references
   (`ordinary.py`), at the chance `alpha` a batch over all columns; or beyond anything that any history knows; and
2. surprising for independent rows (`rows.py`), so that a batch of few rows is not called for its few rows; and
3. big enough: `min_psi`.

Columns that lie far from the champion's training rows are `shifted`. That is a figure: seasons and growth do it too.
"""

from perennial.decisions.drift.distances import distances
from perennial.decisions.drift.ordinary import MIN_BATCHES
from perennial.decisions.drift.rule import FORMER, MAX_BATCHES, RULE, VERSION, decide, extended

__all__ = ["FORMER", "MAX_BATCHES", "MIN_BATCHES", "RULE", "VERSION", "decide", "distances", "extended"]
