"""The tutorial's commands, run one after the other in an empty folder, print what the tutorial shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transcript

PROJECT = Path(__file__).resolve().parents[2]
TUTORIAL = PROJECT / "docs" / "tutorial.md"
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?(?![\w.])")


def words(output: str) -> str:
    """An output without ids, which differ from run to run, and without the values of its numbers."""
    return NUMBER.sub("0", re.sub(r"\b(?=[0-9a-f]*[a-f])(?=[0-9a-f]*\d)[0-9a-f]{12,}\b", "ID", output))


def numbers(output: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(output)]


def test_the_tutorial_shows_what_its_commands_print() -> None:
    if (PROJECT / "include" / "models" / "churn").exists():
        pytest.skip("this checkout has a model churn of its own, as after following the tutorial in it")
    steps = transcript.steps(TUTORIAL.read_text(encoding="utf-8"))
    printed = transcript.run([command for command, _ in steps])
    assert len(steps) > 10
    for (command, shown), real in zip(steps, printed, strict=True):
        assert words(real) == words(shown), f"{command} prints something else. Run: docs/generate.py --outputs"
        # the last digits of a fit differ between processors
        assert numbers(real) == pytest.approx(numbers(shown), rel=0.02, abs=0.001), command
