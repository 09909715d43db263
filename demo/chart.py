"""What the loop did, as a record and as a picture: weekly loss of loop and static model, with every event marked."""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import pandas as pd

from perennial.records import (
    PROMOTED,
    ROLLED_BACK,
    Decision,
    Event,
    Kind,
    LedgerEntry,
    OpenedBody,
    ScoringBody,
    StageBody,
    Verdict,
)
from perennial.replay import Comparison

#: a rollout's shade by its outcome; blue while it is under way
SHADES = {**dict.fromkeys(PROMOTED, "#2e8b57"), **dict.fromkeys(ROLLED_BACK, "#c0392b")}
ENDS = PROMOTED | ROLLED_BACK | {Event.SUPERSEDED}


@dataclass
class Retrain:
    """A RETRAIN verdict of the sensor and what the gate made of it."""

    partition: str
    trigger: str
    reason: str
    outcome: str = "no gate"


@dataclass
class Rollout:
    """One rollout: partition from which each share served, and how it ended."""

    version: str
    stages: list[tuple[str, float]] = field(default_factory=list)
    outcome: str = "under way"
    ended: str = ""

    @property
    def shares(self) -> list[float]:
        """The challenger's shares in order."""
        return [share for _, share in self.stages]


@dataclass
class Story:
    """The ledger of one model, told in the order it happened."""

    rows_scored: int = 0
    quarantined: list[str] = field(default_factory=list)
    drift: Counter[str] = field(default_factory=Counter)
    retrains: list[Retrain] = field(default_factory=list)
    rollouts: list[Rollout] = field(default_factory=list)

    @classmethod
    def of(cls, entries: Iterable[LedgerEntry]) -> Story:
        """Read it from ledger entries in chain order."""
        story = cls()
        rollouts: dict[str, Rollout] = {}
        for entry in entries:
            match entry.kind, entry.verdict:
                case Kind.SCORING, Event.SERVED:
                    story.rows_scored += entry.read(ScoringBody).rows
                case Kind.VALIDATION, Verdict.QUARANTINE:
                    story.quarantined.append(entry.subject)
                case Kind.DRIFT, verdict:
                    story.drift[verdict] += 1
                case Kind.RETRAINING, Verdict.RETRAIN:
                    decision = entry.read(Decision)
                    trigger = str(decision.statistics["trigger"])
                    story.retrains.append(Retrain(entry.subject, trigger, decision.reasons[0]))
                case Kind.PROMOTION, verdict if story.retrains:
                    story.retrains[-1].outcome = verdict
                case Kind.DEPLOYMENT, Event.OPENED:
                    rollouts[entry.subject] = Rollout(version=entry.read(OpenedBody).version)
                    story.rollouts.append(rollouts[entry.subject])
                case Kind.DEPLOYMENT, Event.STAGE:
                    split = entry.read(StageBody).split
                    rollouts[entry.subject].stages.append((f"{entry.as_of:%Y-%m-%d}", split))
                case ((Kind.ROLLOUT | Kind.OVERRIDE | Kind.DEPLOYMENT), verdict) if (
                    verdict in ENDS and entry.subject in rollouts
                ):
                    rollouts[entry.subject].outcome = verdict
                    rollouts[entry.subject].ended = f"{entry.as_of:%Y-%m-%d}"
        return story


def draw(compared: Comparison, story: Story, folder: Path) -> tuple[Path, Path]:
    """Write `loop.html` (self-contained) and `loop.png`; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    picture, page = folder / "loop.png", folder / "loop.html"
    figure = _figure(compared, story)
    figure.savefig(picture, dpi=130, bbox_inches="tight")
    plt.close(figure)
    page.write_text(_page(compared, story, picture.read_bytes()), encoding="utf-8")
    return page, picture


def _figure(compared: Comparison, story: Story) -> plt.Figure:
    weeks = compared.by_week()
    when = pd.to_datetime(list(weeks))
    figure, axes = plt.subplots(figsize=(13, 5.5))
    axes.plot(when, [w["static"] for w in weeks.values()], color="#8c8c8c", label="static: first champion", marker=".")
    axes.plot(when, [w["loop"] for w in weeks.values()], color="#1f5fa8", label="the loop", marker=".", linewidth=2)
    for rollout in story.rollouts:
        for (day, share), (until, _) in zip(
            rollout.stages, [*rollout.stages[1:], (rollout.ended or rollout.stages[-1][0], 0.0)], strict=True
        ):
            start, end = pd.Timestamp(day), pd.Timestamp(until)
            axes.axvspan(
                start, end, alpha=0.08 + 0.22 * share, color=SHADES.get(rollout.outcome, "#1f5fa8"), linewidth=0
            )
            axes.annotate(f"{share:.0%}", (start, 0.01), xycoords=("data", "axes fraction"), fontsize=7, color="#444")
    marks = [
        ([r.partition for r in story.retrains], "retrain triggered", "v", "#d9822b"),
        (story.quarantined, "batch quarantined", "X", "#c0392b"),
        ([r.ended for r in story.rollouts if r.outcome in PROMOTED], "promoted", "*", "#2e8b57"),
        ([r.ended for r in story.rollouts if r.outcome in ROLLED_BACK], "rolled back", "P", "#7d3c98"),
    ]
    for days, label, marker, colour in marks:
        if days:
            axes.scatter(
                pd.to_datetime(days),
                [0.96] * len(days),
                transform=axes.get_xaxis_transform(),
                label=label,
                marker=marker,
                color=colour,
                s=70,
                zorder=3,
            )
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%b %d"))
    axes.set_ylabel(f"weekly {compared.spec.metric} (lower is better)")
    axes.set_title(f"{compared.spec.name}: weekly loss; shaded: a challenger's share of the traffic")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", fontsize=8, ncols=3, bbox_to_anchor=(0, -0.08))
    return figure


def _page(compared: Comparison, story: Story, picture: bytes) -> str:
    rows = "".join(
        f"<tr><td>{week}</td><td>{f['rows']:,.0f}</td><td>{f['loop']:.4f}</td><td>{f['static']:.4f}</td>"
        f"<td>{f['static'] - f['loop']:+.4f}</td></tr>"
        for week, f in compared.by_week().items()
    )
    events = "".join(
        f"<li>{html.escape(text)}</li>"
        for text in [
            *(f"{q}: batch quarantined" for q in story.quarantined),
            *(f"{r.partition}: retrain, {r.trigger}: {r.reason} Gate: {r.outcome}." for r in story.retrains),
            *(
                f"rollout of version {r.version}: "
                + " -> ".join(f"{share:.0%} from {day}" for day, share in r.stages)
                + f" -> {r.outcome} {r.ended}"
                for r in story.rollouts
            ),
        ]
    )
    image = base64.b64encode(picture).decode()
    title = html.escape(compared.spec.name)
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}: the loop</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}}
img{{max-width:100%}}table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;border-bottom:1px solid #ddd;
text-align:right}}td:first-child,th:first-child{{text-align:left}}</style></head><body>
<h1>{title}: the closed loop</h1><p>{html.escape(compared.spec.description)}</p>
<img alt="weekly loss of the loop and of the static first champion" src="data:image/png;base64,{image}">
<h2>What happened</h2><ul>{events}</ul>
<h2>Weekly {compared.spec.metric}</h2><table><tr><th>week from</th><th>rows</th><th>loop</th><th>static</th>
<th>gained</th></tr>{rows}</table></body></html>"""
