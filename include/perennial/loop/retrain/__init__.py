"""From the rows that are known now to a challenger that the gate has judged."""

from __future__ import annotations

from perennial.loop.retrain.steps import abandon, abandoned_on_error, freeze, gate, lease_holder, train

__all__ = ["abandon", "abandoned_on_error", "freeze", "gate", "lease_holder", "train"]
