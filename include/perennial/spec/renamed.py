"""Keys of a spec that have a new name: the old one works for one version more, and warns with the new one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perennial.errors import SpecError
from perennial.spec.text import line_at

#: path of a key that was renamed -> its present path. The next version takes the line out, and the old key is unknown
RENAMED: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("gate", "risk"): ("gate", "non_inferiority_alpha"),
}


class RenamedKey(FutureWarning):
    """A spec uses the former name of a key. FutureWarning, because its readers write specs, not Python."""


def with_present_names(
    file: Path,
    data: dict[str, Any],
    lines: dict[tuple[str | int, ...], int],
    renamed: Mapping[tuple[str, ...], tuple[str, ...]] = RENAMED,
) -> tuple[dict[str, Any], dict[tuple[str | int, ...], int]]:
    """The spec's data and lines under present names; warns once a former name, with file, line and the new name.

    Raises:
        SpecError: a key stands under both names.
    """
    data, lines = _copied(data), dict(lines)
    for old, new in renamed.items():
        holder = _section(data, old[:-1])
        if holder is None or old[-1] not in holder:
            continue
        # a key that comes by an alias or a merge has no line of its own: its section's is named
        line, former, present = line_at(lines, old), ".".join(old), ".".join(new)
        if new[-1] in (_section(data, new[:-1]) or {}):
            msg = (
                f"{file}:{line}: {former} is the former name of {present}, which stands on line {line_at(lines, new)} "
                f"too. Take {former} out."
            )
            raise SpecError(msg, rules=("renamed_key_twice",))
        value = holder.pop(old[-1])
        target = data
        for part in new[:-1]:
            target = target.setdefault(part, {})
        target[new[-1]] = value
        for path in [path for path in lines if path[: len(old)] == old]:
            lines[(*new, *path[len(old) :])] = lines.pop(path)
        text = f"{file}:{line}: {former} is now called {present}. Rename it; the next version refuses the old name."
        warnings.warn(text, RenamedKey, stacklevel=3)
    return data, lines


def _copied(value: Any) -> Any:
    """The same values, each place its own: sections that share an alias are renamed one by one."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


def _section(data: Any, path: tuple[str, ...]) -> dict[str, Any] | None:
    for part in path:
        data = data.get(part) if isinstance(data, dict) else None
    return data if isinstance(data, dict) else None
