"""What the spec leaves open, derived from the length of a partition."""

from __future__ import annotations

from datetime import timedelta

from perennial.spec import Retraining

_YEAR = timedelta(days=365)
#: a month: the shortest spell in which a season moves most models
_LEAST_AGE = timedelta(days=28)
#: a monthly model is fitted anew three times a year. Settled on lives, together with the budget below: before (six,
#: three a year for monthly models) PM2.5's trees captured .76 of what the best fixed rule gains, after 1.03
_AGE_PARTITIONS = 4
#: a week holds every weekday once
_LEAST_COOLDOWN = timedelta(days=7)
#: a look may come early by so much of a partition, February too
_EARLY = 0.1
#: one partition in five may be followed by a retrain
_BUDGET_SHARE = 5
#: once a season at least (a monthly model has too few partitions for the share), and no more than every twenty days
_LEAST_BUDGET, _MOST_BUDGET = 4, 18
#: a mean of fewer rows is no loss to judge; more would leave models of thirty rows a batch unjudged
_MIN_LABELS = 20


def derived(policy: Retraining, partition: timedelta, label_delay: timedelta = timedelta(0)) -> Retraining:
    """The policy with a value for every key that the spec leaves open; `partition` is the mean length of one.

    The newest rows with labels are `label_delay` old, so a fit of today is no younger than that.
    """
    values = {
        "max_age": max(_LEAST_AGE, _AGE_PARTITIONS * partition) + label_delay,
        "min_labels": _MIN_LABELS,
        "cooldown": max(_LEAST_COOLDOWN, partition) - _EARLY * partition,
        "budget": _budget(policy, partition),
    }
    return policy.model_copy(update={name: value for name, value in values.items() if getattr(policy, name) is None})


def _budget(policy: Retraining, partition: timedelta) -> int:
    """Retrains in the budget's window: the bounds are those of a year."""
    years = policy.budget_window / _YEAR
    share = policy.budget_window / partition / _BUDGET_SHARE
    return max(1, round(min(_MOST_BUDGET * years, max(_LEAST_BUDGET * years, share))))
