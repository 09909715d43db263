"""The text of a spec.yaml: its keys with their lines, and sentences about what is wrong with them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from perennial.errors import SpecError
from perennial.spec.grammar import RuleBroken, RulesBroken

KeyPath = tuple[str | int, ...]
Lines = dict[KeyPath, int]

#: 5,000 columns fit. What is larger is refused before anything is parsed: parsing so much takes seconds at the worst.
MAX_BYTES = 128 * 1024
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
#: an escape may write what no database and no terminal takes: half a character, or the end of a text
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
#: characters of a value that an error shows
LONGEST_SHOWN = 200
#: the deepest key of a spec lies five levels down
MAX_DEPTH = 20
#: keys and values, each as often as its aliases repeat it
MAX_NODES = 20_000


def read_yaml(file: Path) -> tuple[dict[str, Any], Lines]:
    """The mapping that a YAML 1.2 file holds, and the 1-based line of every key and item.

    Raises:
        SpecError: absent, not UTF-8, not YAML, too large, a key twice, an impossible date, an escape that is no text,
            not a mapping.
    """
    text = _read(file)
    yaml = _safe_yaml()
    try:
        root = yaml.compose(text)
        lines = _Walk(file).lines_of(root)
        data = None if root is None else yaml.constructor.construct_document(root)
    except _ImpossibleValue as error:
        where = f"{file}:{error.node.start_mark.line + 1}: {error.node.value!r}"
        if error.node.tag != _TIMESTAMP:
            msg = f"{where} is not what its tag {error.node.tag} says ({error.__cause__}). Take the tag out."
            raise SpecError(msg, rules=("not_yaml",)) from error
        msg = f"{where} is no day of the calendar ({error.__cause__}). Write one, as in 2013-03-04."
        raise SpecError(msg, rules=("impossible_date",)) from error
    except MaxDepthExceededError as error:
        line = error.problem_mark.line + 1
        msg = f"{file}:{line}: lists and mappings are nested more than {MAX_DEPTH} deep. Write them flat."
        raise SpecError(msg, rules=("too_large",)) from error
    # ruamel.yaml 0.19 lets an escaped character beyond Unicode through as chr() refuses it: an OverflowError, and from
    # Python 3.13 on a ValueError
    except (YAMLError, OverflowError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else f"{file}"
        problem = str(getattr(error, "problem", None) or error)
        cure = "YAML 1.2 takes no tab between words: write spaces." if "'\\t'" in problem else "Mend the line."
        msg = f"{where}: not YAML ({problem}). {cure}"
        raise SpecError(msg, rules=("not_yaml",)) from error
    if not isinstance(data, dict):
        msg = f"{file}:1: a spec is a mapping of keys, found {type(data).__name__}; see `perennial new`."
        raise SpecError(msg, rules=("not_a_mapping",))
    return data, lines


def lines_of(text: str) -> Lines:
    """1-based line of every key and item of a YAML text, by path."""
    return _Walk(Path("spec.yaml")).lines_of(_safe_yaml().compose(text))


def _read(file: Path) -> str:
    try:
        if file.exists() and not file.is_file():
            # a pipe would be waited for without end
            msg = f"{file}: not a file. A model folder holds spec.yaml, source.py, pipeline.py."
            raise SpecError(msg, rules=("absent",))
        with file.open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            msg = f"{file}: larger than {MAX_BYTES} bytes. A spec names columns and rules; keep data in the source."
            raise SpecError(msg, rules=("too_large",))
        return content.decode("utf-8")
    except OSError as error:
        msg = f"{file}: cannot be read ({error.strerror}). A model folder holds spec.yaml, source.py, pipeline.py."
        raise SpecError(msg, rules=("absent",)) from error
    except UnicodeDecodeError as error:
        msg = f"{file}: byte {error.start} is not UTF-8 ({error.object[error.start]:#x}). Save the file as UTF-8."
        raise SpecError(msg, rules=("not_utf8",)) from error


class _ImpossibleValue(YAMLError):
    """A scalar that is shaped like what it stands for, and is none, as 2013-02-30."""

    def __init__(self, node: ScalarNode) -> None:
        super().__init__()
        self.node = node


class _Constructor(SafeConstructor):
    """Plain values only, as the safe constructor of ruamel.yaml, which tells of a bad one without its line."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:  # noqa: FBT001, FBT002 - ruamel's signature
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, TypeError, OverflowError, AttributeError, LookupError) as error:
            if not isinstance(node, ScalarNode):
                raise
            raise _ImpossibleValue(node) from error


def _safe_yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.max_depth = MAX_DEPTH
    return yaml


class _Walk:
    """Lines of all keys, in the order of the file, with what ruamel does not refuse: doubled keys and alias bombs."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lines: Lines = {}
        #: nodes and levels below each node; None while it is being walked
        self.sizes: dict[int, tuple[int, int] | None] = {}

    def lines_of(self, root: Node | None) -> Lines:
        if root is not None:
            self._walk(root, ())
        return self.lines

    def _walk(self, node: Node, path: KeyPath) -> tuple[int, int]:
        """Nodes and levels of a node. An alias is the node of its anchor, which came before it: its size is known."""
        if id(node) in self.sizes:
            known = self.sizes[id(node)]
            if known is None:
                raise self._too_large(node, "an alias stands inside its own anchor. Write the value out")
            return known
        if isinstance(node, ScalarNode) and _NO_TEXT.search(node.value):
            msg = f"{self.file}:{node.start_mark.line + 1}: not YAML ({node.value!r} is no text). Take the escape out."
            raise SpecError(msg, rules=("not_yaml",))
        self.sizes[id(node)] = None
        parts = [self._walk(child, at) for child, at in self._children(node, path)]
        size = 1 + sum(nodes for nodes, _ in parts), 1 + max((levels for _, levels in parts), default=0)
        if size[0] > MAX_NODES or size[1] > MAX_DEPTH:
            what = f"{size[0]} values, {size[1]} levels deep"
            raise self._too_large(node, f"{what}; {MAX_NODES} and {MAX_DEPTH} are the most. Use fewer aliases")
        self.sizes[id(node)] = size
        return size

    def _children(self, node: Node, path: KeyPath) -> list[tuple[Node, KeyPath]]:
        if isinstance(node, SequenceNode):
            items = [(item, (*path, index)) for index, item in enumerate(node.value)]
            self.lines |= {at: item.start_mark.line + 1 for item, at in items}
            return items
        if not isinstance(node, MappingNode):
            return []
        children: list[tuple[Node, KeyPath]] = []
        for key, value in node.value:
            at = (*path, str(key.value) if isinstance(key, ScalarNode) else "?")
            line = key.start_mark.line + 1
            if at in self.lines:
                msg = (
                    f"{self.file}:{line}: {'.'.join(map(str, at))}: the key stands twice, as on line {self.lines[at]}; "
                    "YAML would keep the last one only. Take one out."
                )
                raise SpecError(msg, rules=("doubled_key",))
            self.lines[at] = line
            children += [(key, at), (value, at)]
        return children

    def _too_large(self, node: Node, what: str) -> SpecError:
        return SpecError(f"{self.file}:{node.start_mark.line + 1}: {what}.", rules=("too_large",))


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
    shown = "" if isinstance(found, dict) else f" Found {_shown(found)}."
    return "wrong_value", f"{problem['msg']}.{shown}"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits has no decimal text
        return f"a {type(value).__name__} that is too long to show"
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _sentence(file: Path, lines: Lines, path: KeyPath, text: str) -> tuple[int, str]:
    line = line_at(lines, path)
    return line, f"{file}:{line}: {'.'.join(map(str, path)) or 'spec'}: {text}"


def line_at(lines: Lines, path: KeyPath) -> int:
    """1-based line of a key; where it has none of its own, that of the nearest section above it."""
    return lines.get(_known(lines, path), 1)


def _known(lines: Lines, path: KeyPath) -> KeyPath:
    """The longest start of `path` that the file has."""
    return next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), ())
