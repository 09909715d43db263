"""The text of a spec.yaml: its keys with their lines, and sentences about what is wrong with them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from perennial.errors import SpecError
from perennial.schedule import RuleBroken, RulesBroken

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]
Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_yaml(file: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping that a YAML file holds, and the 1-based line of every key and item.

    Raises:
        SpecError: absent, not UTF-8, not YAML, a key twice, an impossible date, not a mapping.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror}). A model folder holds spec.yaml, source.py, pipeline.py."
        raise SpecError(msg, rules=("absent",)) from error
    except UnicodeDecodeError as error:
        msg = f"{file}: byte {error.start} is not UTF-8 ({error.object[error.start]:#x}). Save the file as UTF-8."
        raise SpecError(msg, rules=("not_utf8",)) from error
    loader = None
    try:
        loader = Loader(text)
        root = loader.get_single_node()
        lines = _walk(file, root)
        data = None if root is None else _construct(file, loader, root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        msg = f"{where}: not YAML ({getattr(error, 'problem', error)}). Mend the line."
        raise SpecError(msg, rules=("not_yaml",)) from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(data, dict):
        msg = f"{file}:1: a spec is a mapping of keys, found {type(data).__name__}; see `perennial new`."
        raise SpecError(msg, rules=("not_a_mapping",))
    return data, lines


def lines_of(text: str) -> Lines:
    """1-based line of every key and item of a YAML text, by path."""
    return _walk(Path("spec.yaml"), yaml.compose(text, Loader=Loader))


def _walk(file: Path, root: yaml.Node | None) -> Lines:
    lines: Lines = {}
    # an anchor's node hangs at several places (or inside itself): its first place counts
    seen: set[int] = set()
    stack: list[tuple[yaml.Node | None, KeyPath]] = [(root, ())]
    while stack:
        node, path = stack.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, str(key.value))
                line = key.start_mark.line + 1
                if here in lines:
                    msg = (
                        f"{file}:{line}: {'.'.join(map(str, here))}: the key stands twice, as on line {lines[here]}; "
                        "YAML would keep the last one only. Take one out."
                    )
                    raise SpecError(msg, rules=("doubled_key",))
                lines[here] = line
                stack.append((value, here))
        elif isinstance(node, yaml.SequenceNode):
            for index, value in enumerate(node.value):
                lines[(*path, index)] = value.start_mark.line + 1
                stack.append((value, (*path, index)))
    return lines


def _construct(file: Path, loader: Any, root: yaml.Node) -> object:
    try:
        return loader.construct_document(root)
    except (ValueError, OverflowError) as error:  # 2013-02-30: shaped like a date, and none
        bad = next(n for n in _scalars(root) if not _is_sound(n))
        msg = (
            f"{file}:{bad.start_mark.line + 1}: {bad.value!r} is no day of the calendar ({error}). "
            "Write one, as in 2013-03-04."
        )
        raise SpecError(msg, rules=("impossible_date",)) from error


def _scalars(root: yaml.Node) -> list[yaml.ScalarNode]:
    found, seen, stack = [], set(), [root]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.ScalarNode):
            found.append(node)
        elif isinstance(node, yaml.MappingNode):
            stack += [part for pair in node.value for part in pair]
        else:
            stack += node.value
    return found


def _is_sound(node: yaml.ScalarNode) -> bool:
    try:
        Loader("").construct_object(node)
    except (ValueError, OverflowError):
        return False
    return True


def explain(
    file: Path, lines: Lines, problems: Sequence[Mapping[str, Any]], keys_at: Callable[[KeyPath], list[str]]
) -> SpecError:
    """One error for all of pydantic's problems: file, line, the value found, and the cure for each.

    Args:
        file: the spec.
        lines: where its keys are.
        problems: `ValidationError.errors()`.
        keys_at: the known keys of the section at a path.
    """
    sentences: list[tuple[int, str]] = []
    rules: list[str] = []
    told: set[KeyPath] = set()
    for problem in problems:
        path: KeyPath = tuple(problem["loc"])
        cause = (problem.get("ctx") or {}).get("error")
        if isinstance(cause, RuleBroken | RulesBroken):
            for broken in cause.broken if isinstance(cause, RulesBroken) else (cause,):
                sentences.append(_sentence(file, lines, (*path, *broken.path), f"{broken}."))
                rules.append(broken.rule)
            continue
        known = _known(lines, path)
        if known in told and problem["type"] not in {"missing", "extra_forbidden"}:
            continue  # the other members of a union: one complaint about one value is enough
        told.add(known)
        rule, text = _built_in(problem, path, keys_at)
        rules.append(rule)
        sentences.append(_sentence(file, lines, path if rule != "wrong_value" else known or path, text))
    return SpecError("\n".join(text for _, text in sorted(sentences, key=lambda s: s[0])), rules=tuple(rules))


def _built_in(problem: Mapping[str, Any], path: KeyPath, keys_at: Callable[[KeyPath], list[str]]) -> tuple[str, str]:
    if problem["type"] == "extra_forbidden":
        known = keys_at(path[:-1])
        close = difflib.get_close_matches(str(path[-1]), known, n=1)
        cure = f"did you mean {close[0]!r}?" if close else f"known keys here: {', '.join(known)}."
        return "unknown_key", f"unknown key {path[-1]!r}; {cure}"
    if problem["type"] == "missing":
        return "missing_key", f"missing. Add the key {path[-1]!r}."
    found = problem.get("input")
    shown = "" if isinstance(found, dict) else f" Found {found!r}."
    return "wrong_value", f"{problem['msg']}.{shown}"


def _sentence(file: Path, lines: Lines, path: KeyPath, text: str) -> tuple[int, str]:
    line = lines.get(_known(lines, path), 1)
    return line, f"{file}:{line}: {'.'.join(map(str, path)) or 'spec'}: {text}"


def _known(lines: Lines, path: KeyPath) -> KeyPath:
    """The longest start of `path` that the file has."""
    return next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), ())
