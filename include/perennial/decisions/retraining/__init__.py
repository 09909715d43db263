"""Is a retrain worth it? Acts on harm, on age, or on enough new rows; never on drift alone, never on missing labels.

Null hypothesis (lost quality): since the newest possible change point the champion's expected loss is not above the
loss it was admitted with. Test: windows of the newest `patience`, twice, four times so many judged partitions (up to 8)
against the admitted loss pooled with the partitions before the window. All rows together find harm that is everywhere.
Rows in one score bin (rows with like predictions), by themselves and with those of the next bin, find harm that the
noise of all other rows would hide.
Windows, and score bins in a window, share alpha (Bonferroni). The error holds two parts: rows, with the variance that
they have under the null, and the ordinary variance between partitions (weeks differ by season). A score bin, or a
window, with too few big losses for a normal law is judged by their count.
The loss of all rows must also be bigger than `min_loss` of the admitted loss, and show in each of the newest `patience`
partitions. The comparison is always with the quality at admission, not with yesterday's bad model.
Follow-ups of a change: the new champion's mean loss against that before the change, one-sided at 95 %, rows
independent. It steers how often the change is learnt anew, and claims no error rate.
Assumes partitions independent given the variance between them. Source of the scan: Page (1954), Biometrika 41; change
point: Hinkley (1970), Biometrika 57.
"""

from perennial.decisions.retraining.defaults import derived
from perennial.decisions.retraining.rule import FORMER, RULE, VERSION, decide

__all__ = ["FORMER", "RULE", "VERSION", "decide", "derived"]
