"""After a batch was scored: measure it, and write its health record."""

from __future__ import annotations

from perennial.loop.monitor.health import monitor
from perennial.loop.monitor.predictions import prediction_values
from perennial.loop.monitor.reports import report

__all__ = ["monitor", "prediction_values", "report"]
