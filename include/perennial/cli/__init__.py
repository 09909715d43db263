"""`perennial`: the same use cases from a shell, one file a group of commands."""

from __future__ import annotations

from perennial.cli.main import app

__all__ = ["app"]
