"""Validate a batch, score it with every version that is deployed, and publish what is served."""

from __future__ import annotations

from perennial.loop.score.rows import assign
from perennial.loop.score.serving import score, validate

__all__ = ["assign", "score", "validate"]
