"""Console blocks of a page: the commands in them, what they print in an empty folder, and the page with that."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(r"```console\n(.*?)```", re.DOTALL)


def steps(text: str) -> list[tuple[str, str]]:
    """Each command of a page and the output that the page shows below it."""
    pairs = []
    for block in BLOCK.findall(text):
        for step in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = step.partition("\n")
            pairs.append((command, output.strip("\n")))
    return pairs


def commands(text: str) -> list[str]:
    """The commands of a page, in order."""
    return [command for command, _ in steps(text)]


def run(lines: list[str]) -> list[str]:
    """What each command prints, run one after the other in one empty folder; a failed one also what it complains of."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PERENNIAL_HOME": str(root / ".perennial"),
            "PERENNIAL_MODELS": str(root / "include" / "models"),
            "PERENNIAL_SUITES": str(root / "great_expectations"),
            "NO_COLOR": "1",
        }
        environment.pop("COLUMNS", None)
        (root / "include" / "models").mkdir(parents=True)
        return [_output(line, root, environment) for line in lines]


def _output(line: str, root: Path, environment: dict[str, str]) -> str:
    # in a checkout these are the folders anyway
    here = f"{line} --models include/models --tests tests/models" if line.startswith("perennial new ") else line
    done = subprocess.run(
        ["/bin/sh", "-c", here], cwd=root, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    printed = done.stdout + (done.stderr if done.returncode else "")
    plain = "\n".join(text.rstrip() for text in printed.replace(f"{root}/", "").splitlines())
    return plain.strip("\n")


def with_outputs(text: str, outputs: list[str]) -> str:
    """The page with other outputs below its commands."""
    left = iter(outputs)

    def block(match: re.Match[str]) -> str:
        inside = [f"$ {command}\n{next(left)}".rstrip() for command, _ in steps(match[0])]
        return "```console\n" + "\n".join(inside) + "\n```"

    return BLOCK.sub(block, text)
