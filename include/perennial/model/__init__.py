"""Fitting and predicting with a team's pipeline."""
