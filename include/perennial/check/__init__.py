"""What can be said of a model before anything runs: do its parts fit together, and what can its gate show."""

from __future__ import annotations

from perennial.check.parts import PARTS, Checked, check_models, missing_folders

__all__ = ["PARTS", "Checked", "check_models", "missing_folders"]
