"""The reference pages, made from code: spec and JSON Schema, commands, settings, functions, design decisions."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from ruamel.yaml import YAML

from perennial.settings import Settings
from perennial.spec import ModelSpec
from perennial.spec.grammar import show_duration

PROJECT = Path(__file__).resolve().parent.parent
REFERENCE = PROJECT / "docs" / "reference"
SCHEMA = PROJECT / "include" / "perennial" / "spec" / "spec.schema.json"
#: at the end: mkdocs takes a page's title from a heading that comes first
MADE = "\n<!-- Made by `make docs`; do not edit. -->\n"

SPEC_HEAD = """\
# Spec

Every key of `include/models/<name>/spec.yaml`. `perennial check NAME` checks all of them and names each problem with
file, line and cure. Unknown keys are refused.

Editors that speak the YAML language server check a spec while it is written, and show these texts. The first line of a
spec tells them where the schema is; `perennial new` writes it:

```yaml
# yaml-language-server: $schema=../../perennial/spec/spec.schema.json
```

Durations are a whole number and a unit: `m` minutes, `h` hours, `d` days, `w` weeks. Times without an offset are in
`schedule.timezone`. Shares and chances lie between 0 and 1. Examples are other values than the defaults.

## The top of a spec
"""
SETTINGS_HEAD = """\
# Settings

Variables of the environment. By default all state lies below one folder, and `rm -r` starts afresh. Inside Airflow's
tasks the connections `perennial_lake`, `perennial_ledger` and `perennial_mlflow` override lake, ledger and MLflow.

| variable | default | meaning |
|---|---|---|"""
#: variables that are read outside the settings' record
OTHER_VARIABLES = (
    ("PERENNIAL_MODELS", "", "More folders of model folders beside `include/models`, separated as `PATH` is."),
    (
        "PERENNIAL_POKE_SECONDS",
        "`30`",
        "How often a waiting stage of a rollout looks for a measured batch, in seconds.",
    ),
    ("AIRFLOW_PORT", "`8080`", "Port of Airflow on loopback, for `make up` and `make demo`."),
    ("MLFLOW_PORT", "`5000`", "Port of MLflow on loopback, for `make up` and `make demo`."),
)
FUNCTIONS_HEAD = """\
# Functions

What tests and scripts of a team may call. `perennial new` writes tests that use most of them. A model folder itself
holds two functions, which Perennial calls: `read(start, end)` in `source.py` and `build(params, seed)` in
`pipeline.py`; [the tutorial](../tutorial.md) shows both.
"""
#: what a team's own tests and scripts may call
PUBLIC = (
    "perennial.spec:load_spec",
    "perennial.spec:load_specs",
    "perennial.data.sources:read_batch",
    "perennial.data.sources:read_labels",
    "perennial.data.sources:check_readers",
    "perennial.measures.checks:load_suite",
    "perennial.measures.checks:check_suite",
    "perennial.measures.checks:validate",
    "perennial.model.training:load_pipeline",
    "perennial.model.training:fit",
    "perennial.model.training:predict",
    "perennial.replay:replay",
)


# --- the spec --------------------------------------------------------------------------------------------------------


class SpecSchema(GenerateJsonSchema):
    """Durations as a person writes them, also where they are defaults."""

    def encode_default(self, dft: Any) -> Any:  # noqa: D102 - of the base class
        return show_duration(dft) if isinstance(dft, timedelta) else super().encode_default(dft)


def spec_schema() -> dict[str, Any]:
    """The JSON Schema of a spec.yaml, for editors."""
    schema = ModelSpec.model_json_schema(schema_generator=SpecSchema)
    for section in (schema, *schema["$defs"].values()):
        for key in section["properties"].values():
            # an editor shows all of this when a key is touched: no word twice, no break inside a sentence
            key.pop("title", None)
            if name := _section_of(key):
                key.pop("default", None)
                # pydantic leaves it out where the section says the same of itself
                key.setdefault("description", schema["$defs"][name]["description"])
            key["description"] = " ".join(key["description"].split())
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Perennial model spec"}


def spec_page() -> str:
    """Every key of a spec: type, default, meaning, example."""
    schema = spec_schema()
    lines = [SPEC_HEAD, *_keys(schema, schema, "")]
    for path, name in _sections(schema, schema, ""):
        section = schema["$defs"][name]
        lines += [f"## {path}", "", *section["description"].splitlines(), "", *_keys(schema, section, f"{path}.")]
    return "\n".join(lines)


def _sections(schema: dict[str, Any], section: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Path and name of every section, each name at its first path only."""
    known: set[str] = set()
    for key, field in section["properties"].items():
        name = _section_of(field)
        if name and name not in known:
            known.add(name)
            yield f"{path}{key}", name
            for inner, inner_name in _sections(schema, schema["$defs"][name], f"{path}{key}."):
                if inner_name not in known:
                    known.add(inner_name)
                    yield inner, inner_name


def _section_of(field: dict[str, Any]) -> str | None:
    references = [kind["$ref"] for kind in (field, *field.get("anyOf", ())) if "$ref" in kind]
    return references[0].rpartition("/")[2] if references else None


def _keys(schema: dict[str, Any], section: dict[str, Any], path: str) -> Iterator[str]:
    where = {name: at for at, name in _sections(schema, schema, "")}
    for key, field in section["properties"].items():
        name = _section_of(field)
        needed = key in section.get("required", ())
        if name:
            kind = f"section, see [{where[name]}](#{where[name].replace('.', '')})"
            facts = [kind, "required" if needed else "may be left out"]
        else:
            facts = [_type(field), "required" if needed else f"default {_default(field.get('default', {}))}"]
        yield from (f"### `{path}{key}`", "", "; ".join(facts), "", field["description"], "")
        for example in field.get("examples", ()):
            yield from ("```yaml", _yaml(key, example, field), "```", "")


def _type(field: dict[str, Any]) -> str:
    """In words, as in "list of text", "one of `a`, `b`", "whole number, at least 1"."""
    if "anyOf" in field:
        kinds = [_type(kind) for kind in field["anyOf"] if kind.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return "one of " + ", ".join(f"`{value}`" for value in field["enum"])
    if field.get("type") == "array":
        return "list of " + (_type(field["items"]) if "items" in field else "values")
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    kind = field.get("$comment") or words.get(field.get("type", ""), "mapping")
    limits = {"minimum": "at least", "maximum": "at most", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    return ", ".join([kind, *(f"{word} {field[limit]}" for limit, word in limits.items() if limit in field)])


def _default(value: object) -> str:
    return "none" if value is None else f"`{json.dumps(value)}`"


def _yaml(key: str, example: object, field: dict[str, Any]) -> str:
    writer, sink = YAML(typ="safe", pure=True), io.StringIO()
    writer.default_flow_style, writer.width = True, 200
    writer.dump([example], sink)
    text = f"{key}: {sink.getvalue().strip()[1:-1]}"
    # a date in quotes is read as well, but nobody writes it
    return text.replace("'", "") if "moment" in json.dumps(field) else text


# --- commands, settings, functions -----------------------------------------------------------------------------------


def cli_page() -> str:
    """What `perennial --help` and its commands say."""
    command = [sys.executable, "-m", "typer", "perennial.cli", "utils", "docs", "--name", "perennial"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT / "include")}
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    return text.replace("# `perennial`\n", "# Commands\n", 1)


def settings_page() -> str:
    """The variables of the environment."""
    lines = [SETTINGS_HEAD]
    lines += [f"| `{name}` | {default} | {meaning} |" for name, default, meaning in OTHER_VARIABLES]
    for name, field in Settings.model_fields.items():
        variable = field.validation_alias or f"PERENNIAL_{name.upper()}"
        default = str(field.default).replace(f"{PROJECT}/", "")
        meaning = " ".join((field.description or "").split())
        lines.append(f"| `{variable}` | {f'`{default}`' if default else ''} | {meaning} |")
    return "\n".join(lines)


def functions_page() -> str:
    """Signatures and docstrings of the functions that a team may call."""
    lines = [FUNCTIONS_HEAD]
    for name in PUBLIC:
        module, _, function = name.partition(":")
        documented = getattr(importlib.import_module(module), function)
        source = textwrap.dedent(inspect.getsource(documented))
        definition = ast.parse(source).body[0]
        assert isinstance(definition, ast.FunctionDef)
        signature = "\n".join(source.splitlines()[: definition.body[0].lineno - 1])
        lines += [f"## {module}.{function}", "", "```python", signature, "```", "", *_docstring(documented), ""]
    tree = inspect.cleandoc(importlib.import_module("perennial.errors").__doc__ or "").split("\n\n")[1]
    return "\n".join(
        [*lines, "## Errors", "", "All of them are in `perennial.errors`.", "", "```text", tree, "```", ""]
    )


def _docstring(documented: Callable[..., object]) -> Iterator[str]:
    """A docstring in Google's style as Markdown: headings in bold, one item an argument or error."""
    part = ""
    for line in inspect.cleandoc(documented.__doc__ or "").splitlines():
        if heading := re.fullmatch(r"(Args|Returns|Raises|Yields):", line):
            part = heading[1]
            yield from (f"**{part}**", "")
        elif part in {"Args", "Raises"} and (item := re.match(r"    (\w[\w, ]*): (.*)", line)):
            yield f"- `{item[1]}`: {item[2]}"
        else:
            yield re.sub(r"^    ( *)", lambda m: "  " if m[1] else "", line)


def decisions_page() -> str:
    """The design decisions, by number."""
    lines = [
        "# Design decisions",
        "",
        "Why the system is built as it is: one page a decision, in the order of time.",
        "",
    ]
    for file in sorted((PROJECT / "docs" / "decisions").glob("[0-9]*.md")):
        number, _, title = file.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ").partition(". ")
        lines.append(f"{number}. [{title}]({file.name})")
    return "\n".join(lines)


# --- all -------------------------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Every file and what it must hold."""
    return {
        SCHEMA: json.dumps(spec_schema(), indent=1),
        REFERENCE / "spec.md": spec_page() + MADE,
        REFERENCE / "cli.md": cli_page() + MADE,
        REFERENCE / "settings.md": settings_page() + MADE,
        REFERENCE / "functions.md": functions_page() + MADE,
        PROJECT / "docs" / "decisions" / "index.md": decisions_page() + MADE,
    }
