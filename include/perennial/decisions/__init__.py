"""The verdicts: pure functions of evidence, policy and history."""
