"""The texts name only what exists: files, commands, settings, runbooks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
TEXTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
RUNBOOKS = PROJECT / "docs" / "runbooks"

#: What a word in backticks must begin with to be a path of this repository.
FOLDERS = "benchmarks|config|dags|demo|docker|docs|great_expectations|include|local|plugins|tests"
PATH = re.compile(
    rf"`((?:{FOLDERS}|\.ci)/[^`\s<>*]*|[A-Z]\w+\.md|Procfile|Makefile|Dockerfile|LICENSE|[a-z-]+\.(?:yml|toml|lock))`"
)


def names(text: str) -> Iterator[str]:
    yield from PATH.findall(text)


def section(text: str, heading: str) -> str:
    """The part of a Markdown text under one second-level heading."""
    return text.split(f"\n## {heading}\n")[1].split("\n## ", maxsplit=1)[0]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def code(text: str) -> str:
    """Code blocks and words in backticks, and nothing else."""
    blocks = re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    return "\n".join([*blocks, *re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))])


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_path_that_a_text_names_exists(file: Path) -> None:
    missing = [name for name in names(file.read_text(encoding="utf-8")) if not (PROJECT / name).exists()]
    assert missing == []


def test_the_map_covers_every_module_group_of_the_core() -> None:
    mapped = set(names(section(README, "The map of the code")))
    assert len(mapped) > 12
    for folder in (PROJECT / "include" / "perennial").iterdir():
        if folder.is_dir() and (folder / "__init__.py").exists():
            assert f"include/perennial/{folder.name}/" in mapped, f"the README's map lacks {folder.name}"


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_make_command_that_a_text_names_is_in_the_makefile(file: Path) -> None:
    asked = set(re.findall(r"\bmake ([a-z-]+)", code(file.read_text(encoding="utf-8"))))
    assert asked <= make_targets()


def test_every_command_of_the_makefile_runs_a_file_that_exists() -> None:
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    run = re.findall(rf"\b((?:{FOLDERS})/[\w./-]+\.(?:py|sh))", makefile)
    assert len(run) >= 4
    assert [path for path in run if not (PROJECT / path).exists()] == []


def commands() -> dict[str, Any]:
    """`perennial` commands, in full (`ledger verify`), with their click objects."""
    from typer.main import get_command

    from perennial.cli import app

    def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
        for word, inner in getattr(command, "commands", {}).items():
            yield f"{name} {word}".strip(), inner
            yield from walk(inner, f"{name} {word}".strip())

    return dict(walk(get_command(app), ""))


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_perennial_command_and_option_that_a_text_names_exists(file: Path) -> None:
    known = commands()
    for line in re.findall(r"\bperennial ((?:[a-z]+)[^`\n#,;|]*)", code(file.read_text(encoding="utf-8"))):
        words = line.split()
        name = " ".join(words[:2]) if words[0] == "ledger" and len(words) > 1 else words[0]
        assert name in known, f"perennial {line}"
        options = {option for parameter in known[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options | {"--help"}, f"perennial {line}"


def test_every_setting_that_a_text_names_is_read_somewhere() -> None:
    read = "\n".join(
        file.read_text(encoding="utf-8")
        for folder in ("include", "plugins", "demo", "local", "tests", "config")
        for file in (PROJECT / folder).rglob("*.py")
        if file != Path(__file__)
    )
    from perennial.settings import Settings

    settings = {f"PERENNIAL_{name.upper()}" for name in Settings.model_fields}
    for text in TEXTS:
        for name in set(re.findall(r"\bPERENNIAL_[A-Z_]*[A-Z]\b", text.read_text(encoding="utf-8"))):
            assert name in settings or f'"{name}"' in read, f"{text.name}: {name}"


def test_every_runbook_that_the_code_names_exists_and_each_is_named() -> None:
    sources = [*(PROJECT / "dags").glob("*.py"), *(PROJECT / "plugins" / "perennial_airflow").glob("*.py")]
    named = {
        name for file in sources for name in re.findall(r"docs/runbooks/(\w+\.md)", file.read_text(encoding="utf-8"))
    }
    assert named == {file.name for file in RUNBOOKS.glob("*.md")}


@pytest.mark.parametrize("file", sorted(RUNBOOKS.glob("*.md")), ids=lambda file: file.stem)
def test_a_runbook_says_what_happened_where_to_look_what_to_type_and_when_to_escalate(file: Path) -> None:
    headings = re.findall(r"^## (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert headings == ["What happened", "First look", "Commands", "When to escalate"]


def test_every_alert_that_sends_a_person_to_a_runbook_is_in_its_first_lines() -> None:
    source = (PROJECT / "plugins" / "perennial_airflow" / "notify.py").read_text(encoding="utf-8")
    for block in source.split("Alert(")[1:]:
        headline = re.search(r'headline="([^"]+)"', block)
        runbook = re.search(r"docs/runbooks/(\w+\.md)", block.split("Alert(")[0])
        if headline and runbook:
            text = (RUNBOOKS / runbook[1]).read_text(encoding="utf-8").split("## What happened")[0]
            assert headline[1] in text, f"{runbook[1]} does not name its alert {headline[1]!r}"


@pytest.mark.parametrize("file", sorted((PROJECT / "docs" / "decisions").glob("[0-9]*.md")), ids=lambda file: file.stem)
def test_a_decision_record_has_its_four_parts_on_one_page(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    for part in ("Status", "Context", "Decision", "Consequences"):
        assert f"**{part}" in text or f"## {part}" in text, part
    assert len(text.splitlines()) <= 80


def test_the_ten_minutes_of_the_readme_go_through_commands_in_order() -> None:
    steps = section(README, "A model in ten minutes")
    order = [steps.index(f"perennial {command} churn") for command in ("new", "check", "replay")]
    assert order == sorted(order)
