"""The numbers, never verdicts."""
