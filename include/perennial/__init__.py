"""Perennial keeps production models healthy; see ARCHITECTURE.md."""
