"""From the rows that are known now to a challenger that the gate has judged."""

from __future__ import annotations

from perennial.loop.retrain.lease import abandon, abandoned_on_error, expired, lease_holder, took_over
from perennial.loop.retrain.steps import freeze, gate, train

__all__ = ["abandon", "abandoned_on_error", "expired", "freeze", "gate", "lease_holder", "took_over", "train"]
