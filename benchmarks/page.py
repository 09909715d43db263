"""The measured tables of `docs/benchmarks.md`: blocks between markers, written from the results' JSON alone."""

from __future__ import annotations

from pathlib import Path

from processes import PROJECT

PAGE = PROJECT / "docs" / "benchmarks.md"


def with_block(text: str, name: str, content: str) -> str:
    """The page's text with `content` between the markers of block `name`.

    Raises:
        ValueError: a marker is absent.
    """
    begin, end = f"<!-- figures: {name} -->", f"<!-- end of figures: {name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"no {begin} ... {end}, or more than one. Put both where the figures shall stand.")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{content.strip()}\n{end}{rest.partition(end)[2]}"


def write_block(name: str, content: str, file: Path = PAGE) -> None:
    """Put `content` into the file's block `name`."""
    file.write_text(with_block(file.read_text(encoding="utf-8"), name, content), encoding="utf-8")
