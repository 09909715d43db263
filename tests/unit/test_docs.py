"""The texts name only what exists, show what is printed, and say what was measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import generate
import jsonschema
import pytest
import reference_pages
import transcript
from ruamel.yaml import YAML

from perennial import errors
from perennial.measures import checks
from perennial.model.training import load_pipeline
from perennial.replay import replay
from perennial.settings import Settings
from perennial.spec import ModelSpec, load_spec
from perennial.spec.scaffold import create_model

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
TEXTS = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
RUNBOOKS = PROJECT / "docs" / "runbooks"
ARCHITECTURE = (PROJECT / "ARCHITECTURE.md").read_text(encoding="utf-8")

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


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_make_command_that_a_text_names_is_in_the_makefile(file: Path) -> None:
    asked = set(re.findall(r"\bmake ([a-z-]+)", code(file.read_text(encoding="utf-8"))))
    assert asked <= make_targets()


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_variable_that_a_text_gives_to_make_is_read(file: Path) -> None:
    readers = [PROJECT / "Makefile", *(p for d in ("demo", "benchmarks", "local") for p in (PROJECT / d).glob("*"))]
    read = "\n".join(reader.read_text(encoding="utf-8") for reader in readers if reader.is_file())
    for variable in re.findall(r"\bmake (?:[a-z-]+ )?([A-Z]+)=", code(file.read_text(encoding="utf-8"))):
        assert re.search(rf'"{variable}"|\$\({variable}\)|\$\(if \$\({variable}\)|\$\{{{variable}:', read), variable


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_script_that_a_text_runs_has_the_options_it_names(file: Path) -> None:
    text = " ".join(code(file.read_text(encoding="utf-8")).split("\n"))
    for script, option in re.findall(r"\.venv/bin/python ([\w/]+\.py) (--[a-z-]+)", text):
        assert f'"{option}"' in (PROJECT / script).read_text(encoding="utf-8"), f"{script} {option}"


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
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, f"perennial {line}"
        assert name != "ledger" or words[1:2] in ([], ["[OPTIONS]"]), f"perennial {line}"
        options = {option for p in known[name].params for option in (*p.opts, *p.secondary_opts)}
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


SECTIONS = {
    name: kind
    for name, field in ModelSpec.model_fields.items()
    for kind in (field.annotation, *getattr(field.annotation, "__args__", ()))
    if hasattr(kind, "model_fields")
}


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: file.name)
def test_every_key_of_a_spec_that_a_text_names_exists(file: Path) -> None:
    for name, key in re.findall(rf"`({'|'.join(SECTIONS)})\.(\w+)", file.read_text(encoding="utf-8")):
        assert key == "py" or key in SECTIONS[name].model_fields, f"{name}.{key}"


@pytest.mark.parametrize(
    "file", [*(PROJECT / "docs" / "how-to").glob("*.md"), *RUNBOOKS.glob("*.md")], ids=lambda file: file.name
)
def test_every_error_that_a_guide_names_exists(file: Path) -> None:
    for name in re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", file.read_text(encoding="utf-8")):
        assert hasattr(errors, name), name


def test_the_guide_to_alerts_has_every_alert_and_its_runbook() -> None:
    source = (PROJECT / "plugins" / "perennial_airflow" / "notify.py").read_text(encoding="utf-8")
    sent = {}
    for block in re.split(r"\bAlert\(\n", source)[1:]:
        headline, first = re.search(r'headline="([^"]+)"', block), block.split("links=")[0]
        runbook = re.search(r"docs/runbooks/(\w+\.md)", first)
        if headline:
            sent[headline[1]] = runbook[1] if runbook else None
    guide = (PROJECT / "docs" / "how-to" / "alerts.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in guide.splitlines() if row.startswith("| ")]
    shown = {alert: re.search(r"runbooks/(\w+\.md)", todo) for alert, _, todo in rows[1:]}
    assert {alert: runbook and runbook[1] for alert, runbook in shown.items()} == sent


# --- specs -----------------------------------------------------------------------------------------------------------


def churn(root: Path) -> Path:
    """The spec of a model as `perennial new churn` writes it."""
    return create_model(root / "models", "churn", suites=root / "great_expectations", tests=root / "tests")[0]


def snippets() -> list[tuple[str, str]]:
    """Every YAML block of the texts that people write, with the name of its file."""
    texts = [(file.name, file.read_text(encoding="utf-8")) for file in TEXTS]
    return [
        (name, block)
        for name, text in texts
        if not text.endswith(reference_pages.MADE)
        for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    ]


@pytest.mark.parametrize(("name", "snippet"), snippets(), ids=[name for name, _ in snippets()])
def test_every_part_of_a_spec_in_a_text_is_good(name: str, snippet: str, tmp_path: Path) -> None:
    spec = churn(tmp_path)
    part = read_yaml(snippet)
    assert part, name
    YAML().dump({**read_yaml(spec.read_text(encoding="utf-8")), **part}, spec)
    load_spec(spec)


def test_the_spec_of_the_readme_works(tmp_path: Path) -> None:
    file = churn(tmp_path)
    (snippet,) = [snippet for name, snippet in snippets() if name == "README.md"]
    file.write_text(snippet, encoding="utf-8")
    spec = load_spec(file)
    required = {name for name, field in ModelSpec.model_fields.items() if field.is_required()}
    assert set(read_yaml(snippet)) == required
    assert len(snippet.splitlines()) == len(required)
    checks.check_suite(checks.load_suite(tmp_path / "great_expectations", spec.expectations), spec)
    assert load_pipeline(spec)(dict(spec.training.params), spec.training.seed) is not None
    settings = Settings(home=tmp_path / "home", suites=tmp_path / "great_expectations")
    report = replay(spec, settings=settings, until=datetime(2025, 3, 17, tzinfo=UTC), retrain_every_batch=False)
    assert (report.batches, report.rows) == (2, 1400)


def read_yaml(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def as_an_editor_reads(file: Path) -> Any:
    """The values of a spec as YAML 1.2 has them, where a date is text."""
    return json.loads(json.dumps(read_yaml(file.read_text(encoding="utf-8")), default=str))


def test_the_json_schema_accepts_every_spec_of_the_project(tmp_path: Path) -> None:
    schema = jsonschema.Draft202012Validator(reference_pages.spec_schema())
    files = [churn(tmp_path), *(PROJECT / "include" / "models").glob("*/spec.yaml")]
    assert len(files) >= 3
    for file in files:
        schema.validate(as_an_editor_reads(file))
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert (
            file.parent / first.removeprefix("# yaml-language-server: $schema=")
        ).resolve() == reference_pages.SCHEMA


@pytest.mark.parametrize("rule", ["unknown_key", "missing_key", "wrong_value", "duration", "moment"])
def test_the_json_schema_refuses_what_an_editor_can_see(rule: str) -> None:
    schema = jsonschema.Draft202012Validator(reference_pages.spec_schema())
    bad = as_an_editor_reads(PROJECT / "tests" / "data" / "bad_specs" / rule / "spec.yaml")
    assert not schema.is_valid(bad)


# --- pages -----------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_every_made_page_is_what_would_be_made_now() -> None:
    stale = [file.name for file, text in generate.pages().items() if file.read_text(encoding="utf-8") != text]
    assert stale == [], "Run: make docs"


@pytest.mark.parametrize("file", generate.OUTSIDE, ids=lambda file: file.name)
def test_no_link_of_a_text_outside_the_site_is_dead(file: Path) -> None:
    assert list(generate.dead_links(file)) == []


def test_a_dead_link_and_a_dead_anchor_are_named(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# A Heading, with `code`\n")
    text = tmp_path / "text.md"
    text.write_text(
        "[a](there.md#a-heading-with-code) [b](gone.md) [c](there.md#gone) `[d](gone.md)` [e](https://e.example)"
    )
    assert list(generate.dead_links(text)) == [
        "text.md: gone.md: no such file",
        "text.md: there.md#gone: no such heading in there.md",
    ]


def build_site(root: Path) -> subprocess.CompletedProcess[str]:
    """The site of the pages in `root/docs`, built strictly into `root/site`."""
    shutil.copy(PROJECT / "mkdocs.yml", root / "mkdocs.yml")
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_builds_and_a_reader_fetches_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    built = build_site(tmp_path)
    assert built.returncode == 0, built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= len(list((PROJECT / "docs").rglob("*.md")))
    for page in pages:
        html = page.read_text(encoding="utf-8")
        # a link that a reader clicks is no fetch
        assert re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>", html) == [], page
        assert 'class="mermaid"' not in html, "Material fetches mermaid.js from a CDN; draw with text"
    for style in (tmp_path / "site").rglob("*.css"):
        assert not re.search(r"url\([\"']?(?:https?:)?//", style.read_text(encoding="utf-8")), style


@pytest.mark.parametrize("link", ["gone.md", "reference/spec.md#gone", "/absolute.md"])
def test_a_dead_link_in_a_page_ends_the_build(tmp_path: Path, link: str) -> None:
    shutil.copytree(PROJECT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "index.md").open("a", encoding="utf-8") as index:
        index.write(f"\n[a link]({link})\n")
    assert build_site(tmp_path).returncode != 0


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_the_readme_shows_an_excerpt_of_the_tutorial() -> None:
    tutorial = (PROJECT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    # the first output of a command: the second time the tutorial has broken the spec
    full = dict(reversed(transcript.steps(tutorial)))
    shown = transcript.steps(README)
    assert [command for command, _ in shown] == [f"perennial {word} churn" for word in ("new", "check", "replay")]
    for command, excerpt in shown:
        left = iter(full[command].splitlines())
        for line in excerpt.splitlines():
            assert line == "..." or line in left, f"{command}: {line!r} is not what the tutorial shows, or not there"
