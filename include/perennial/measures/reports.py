"""The drift report for people. The only file that imports evidently.

The verdict was reached on all rows; this page explains it on a bounded sample. Every figure of drift on it is the
verdict's own: Evidently gets the score of each column and the line of alarm (1), so page and verdict cannot disagree.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.records import Decision, Json, Verdict
from perennial.spec import ModelSpec

if TYPE_CHECKING:
    import pandas as pd

#: The name under which Evidently finds the verdict's scores.
_METHOD = "perennial_score"
_COLOURS = {Verdict.STABLE: "#1a7f37", Verdict.DRIFTED: "#bc4c00"}
_UNDECIDED = "#57606a"


def drift_report(
    reference: pd.DataFrame,
    current: pd.DataFrame,
    spec: ModelSpec,
    decision: Decision,
    *,
    rows: int,
    seed: int,
    title: str,
    links: Mapping[str, str],
) -> str:
    """One self-contained HTML page (about 4 MB): our verdict, then Evidently's pictures of the same columns.

    Args:
        reference: rows that the batch is compared with: features, and `prediction` where there is one.
        current: rows of the batch, same columns.
        spec: says which columns are numeric and which categorical.
        decision: of the drift rule; `statistics["columns"]` has score and drifted by column.
        rows: the most rows of each side that are drawn (evenly at random by `seed`).
        seed: the same seed and rows give the same sample.
        title: stands above the verdict.
        links: text -> address; an address that is no URL or path is shown as text.
    """
    judged: dict[str, dict[str, Json]] = decision.statistics.get("columns", {})
    sides = [_sample(frame, rows, seed) for frame in (reference, current)]
    shown = [name for name in judged if all(name in side and side[name].notna().any() for side in sides)]
    head = _head(spec, decision, judged, title, links, sampled=tuple(map(len, sides)), left_out={*judged} - {*shown})
    if not shown:
        return f"<!doctype html><html><head><meta charset='utf-8'></head><body>{head}</body></html>\n"
    body: str = _evidently(sides[0], sides[1], spec, {name: judged[name] for name in shown})
    opening = body.index(">", body.index("<body")) + 1
    return body[:opening] + head + body[opening:]


def keep_newest(folder: Path, count: int) -> tuple[Path, ...]:
    """Remove all but the `count` HTML files of `folder` that were written last; those that were removed.

    Files written at the same moment are ordered by name. Folders inside are left alone.
    """
    written = sorted((f for f in folder.glob("*.html") if f.is_file()), key=lambda f: (f.stat().st_mtime_ns, f.name))
    old = tuple(written[: max(0, len(written) - count)])
    for file in old:
        file.unlink(missing_ok=True)
    return old


def _sample(frame: pd.DataFrame, rows: int, seed: int) -> pd.DataFrame:
    return frame if len(frame) <= rows else frame.sample(n=rows, random_state=seed).sort_index()


def _evidently(
    reference: pd.DataFrame, current: pd.DataFrame, spec: ModelSpec, judged: dict[str, dict[str, Json]]
) -> str:
    with warnings.catch_warnings():
        # its own models warn about pydantic and numpy on import and while drawing; nothing that a reader could mend
        warnings.simplefilter("ignore")
        from evidently import DataDefinition, Dataset, Report
        from evidently.legacy.calculations.stattests import StatTest, register_stattest
        from evidently.legacy.core import ColumnType
        from evidently.presets import DataDriftPreset

        def verdict_of(_reference: pd.Series, current: pd.Series, _kind: Any, _threshold: float) -> tuple[float, bool]:
            verdict = judged[str(current.name)]
            return float(verdict["score"]), bool(verdict["drifted"])

        method = StatTest(
            name=_METHOD,
            display_name="distance over the line of alarm, on all rows (the verdict's own)",
            allowed_feature_types=[ColumnType.Numerical, ColumnType.Categorical],
        )
        register_stattest(method, verdict_of)
        numeric = [name for name in judged if name not in spec.features.categorical and _is_numeric(current[name])]
        categorical = [name for name in judged if name not in numeric]
        definition = DataDefinition(numerical_columns=numeric, categorical_columns=categorical)
        datasets = [
            Dataset.from_pandas(_as_text(side[[*judged]], numeric, categorical), data_definition=definition)
            for side in (current, reference)
        ]
        drift = DataDriftPreset(
            columns=[*judged],
            method=_METHOD,
            per_column_threshold=dict.fromkeys(judged, 1.0),
            # as in the verdict, one drifted column is enough
            drift_share=1 / len(judged),
        )
        return str(Report([drift], include_tests=True).run(*datasets).get_html_str(as_iframe=False))


def _as_text(side: pd.DataFrame, numeric: list[str], categorical: list[str]) -> pd.DataFrame:
    """Numbers as floats, categories as escaped text: Evidently writes them into a script of the page as they are."""
    frame = side.astype({**dict.fromkeys(numeric, "float64"), **dict.fromkeys(categorical, "object")})
    for name in categorical:
        frame[name] = frame[name].map(lambda value: escape(value) if isinstance(value, str) else value)
    return frame


def _is_numeric(column: pd.Series) -> bool:
    return column.dtype.kind in "iufb"


def _head(
    spec: ModelSpec,
    decision: Decision,
    judged: dict[str, dict[str, Json]],
    title: str,
    links: Mapping[str, str],
    *,
    sampled: tuple[int, ...],
    left_out: set[str],
) -> str:
    colour = _COLOURS.get(decision.verdict, _UNDECIDED)
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in decision.reasons)
    training: dict[str, float] = decision.statistics.get("training_psi", {})
    lines = "".join(
        f"<tr{' style=font-weight:bold' if column['drifted'] else ''}><td>{escape(name)}</td>"
        f"<td>{column['score']:.2f}</td><td>{escape(column['by']['kind']) if column['by'] else ''}</td>"
        f"<td>{f'{training[name]:.4f}' if name in training else ''}</td>"
        f"<td>{'drifted' if column['drifted'] else 'stable'}</td></tr>"
        for name, column in sorted(judged.items(), key=lambda item: (-item[1]["score"], item[0]))
    )
    table = (
        "<table cellpadding=4><tr><th align=left>column<th align=left>distance, 1 is the line of alarm<th align=left>by"
        f"<th align=left>PSI from the training rows<th></tr>{lines}</table>"
        if lines
        else ""
    )
    note = f" Not drawn, for want of values: {escape(', '.join(sorted(left_out)))}." if left_out else ""
    linked = " · ".join(
        f'<a href="{escape(address)}">{escape(text)}</a>'
        if address.startswith(("http://", "https://", "/", "./", "../"))
        else f"{escape(text)} {escape(address)}"
        for text, address in links.items()
    )
    return (
        "<section style='font-family:sans-serif;margin:1.5em;padding:1em 1.5em;"
        f"border-left:8px solid {colour};background:#f6f8fa'><h1 style='font-size:1.3em'>{escape(title)}</h1>"
        f"<p style='font-size:1.5em;color:{colour};margin:.3em 0'><b>{escape(str(decision.verdict))}</b></p>"
        f"<ul>{reasons}</ul>{table}<p>Rule {escape(decision.rule)} {escape(decision.rule_version)}, "
        f"alpha {decision.alpha:g} a batch over all columns; model {escape(spec.name)}, owner {escape(spec.owner)}. "
        "The verdict was reached on all rows. The pictures below show "
        f"{sampled[0]:,} reference rows and {sampled[1]:,} rows of the batch."
        f"{note}</p><p>{linked}</p></section>"
    )
