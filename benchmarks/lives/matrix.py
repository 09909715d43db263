"""What every fit would have lost in every later batch, from which all rules without a gate are computed cheaply.

A policy is a list of fits: at which batches, on which window. It serves a fit from its batch on, until the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from lives.folder import Model

from perennial.data.sources import read_batch, read_labels
from perennial.errors import PerennialError, TrainingError
from perennial.measures import quality
from perennial.model import training
from perennial.records import Partition
from perennial.spec import ModelSpec

#: fits a history and window that time allows; where a life has more batches, every k-th one may fit
MOST_FITS = 60
#: windows that a rival learns from, and their widths; None: all rows
WINDOWS: dict[str, timedelta | None] = {"all": None, "90 days": timedelta(days=90)}
Floats = np.ndarray


@dataclass
class World:
    """All labelled rows of a history, and what fits lose on them."""

    spec: ModelSpec
    #: labelled rows in the order of time: those of the first training, then the live ones
    rows: pd.DataFrame
    partitions: list[Partition]
    #: for each live batch: the slice of its rows
    slices: list[slice]
    #: batches at which a rival may fit; the first is 0
    days: list[int]
    fits: dict[tuple[str, int], Any] = field(default_factory=dict)
    _losses: dict[tuple[str, int], Floats | None] = field(default_factory=dict)

    @cached_property
    def counts(self) -> Floats:
        """Labelled rows of each live batch."""
        return np.array([part.stop - part.start for part in self.slices])

    @cached_property
    def when(self) -> Floats:
        """Event times of all rows."""
        return self.rows[self.spec.event_time].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]")

    @property
    def live(self) -> int:
        """The first live row."""
        return self.slices[0].start

    def known(self, batch: int) -> int:
        """How many rows have labels that are known when batch `batch` begins; they are the first ones."""
        moment = self.partitions[batch].start - self.spec.label.delay
        return int(np.searchsorted(self.when, np.datetime64(moment.replace(tzinfo=None) - moment.utcoffset(), "us")))

    def training_rows(self, window: str, batch: int) -> slice:
        """The rows that a fit before `batch` learns from; the first fit learns from all."""
        width, until = WINDOWS[window], self.known(batch)
        if width is None or batch == 0 or not until:
            return slice(0, until)
        moment = self.partitions[batch].start - self.spec.label.delay - width
        first = np.datetime64(moment.replace(tzinfo=None) - moment.utcoffset(), "us")
        return slice(int(np.searchsorted(self.when, first)), until)

    def losses(self, window: str, batch: int) -> Floats | None:
        """The loss of each live row from batch `batch` on, of the fit before it; None where it cannot be fitted.

        As long as the live rows; what lies before the batch is NaN.
        """
        key = ("all" if batch == 0 else window, batch)
        if key not in self._losses:
            self._losses[key] = self._computed(*key)
        return self._losses[key]

    def _computed(self, window: str, batch: int) -> Floats | None:
        spec, later = self.spec, self.rows.iloc[self.slices[batch].start :]
        try:
            estimator = fit(spec, self.rows.iloc[self.training_rows(window, batch)])
        except TrainingError:
            return None
        self.fits[window, batch] = estimator
        found = np.full(len(self.rows) - self.live, np.nan, dtype="float32")
        if len(later):
            found[self.slices[batch].start - self.live :] = losses_of(spec, estimator, later)
        return found

    def sums(self, losses: Floats) -> Floats:
        """Summed loss of each live batch."""
        edges = [part.start - self.live for part in self.slices]
        ends = [part.stop - self.live for part in self.slices]
        total = np.concatenate([[0.0], np.cumsum(np.nan_to_num(losses.astype(float)))])
        return total[ends] - total[edges]


def fit(spec: ModelSpec, rows: pd.DataFrame) -> Any:
    """The spec's recipe on these rows; too few of them are the pipeline's business, as for any rule without a gate.

    Raises:
        TrainingError: a class is missing, or the pipeline refuses the rows.
    """
    relaxed = spec.model_copy(update={"training": spec.training.model_copy(update={"min_rows": 1})})
    if len(rows) < 2:
        raise TrainingError("no rows")
    return training.fit(relaxed, rows, params=dict(spec.training.params), seed=spec.training.seed)


def losses_of(spec: ModelSpec, estimator: Any, rows: pd.DataFrame) -> Floats:
    """The loss of each row."""
    predicted = training.predict(estimator, rows, spec)
    return quality.row_losses(spec.task, spec.metric, rows["label"].to_numpy(), predicted, spec.label.classes)


def world_of(model: Model, most_fits: int = MOST_FITS, without: Sequence[str] = ()) -> World:
    """All rows of a history with their labels; batches in `without` (quarantined, refused) are nobody's.

    The rows pass the readers of production.
    """
    spec = model.spec
    assert spec.schedule.end is not None
    first = spec.training.first_moment(spec.schedule.zone)
    live = list(spec.schedule.partitions(spec.schedule.start, spec.schedule.end))
    frames = []
    for partition in [*spec.schedule.partitions(first, spec.schedule.start), *live]:
        if partition.key in without:
            continue
        try:
            batch = read_batch(spec, partition, {})
        except PerennialError:
            continue
        labels = read_labels(spec, partition.start, partition.end, {}).select([*spec.entity, "label"])
        joined = batch.join(labels, keys=list(spec.entity), join_type="inner")
        frames.append(joined.sort_by([(name, "ascending") for name in (spec.event_time, *spec.entity)]).to_pandas())
    rows = pd.concat(frames, ignore_index=True)
    when = rows[spec.event_time]
    edges = np.searchsorted(
        when.dt.tz_convert("UTC").dt.tz_localize(None).to_numpy("datetime64[us]"),
        [np.datetime64(p.start.replace(tzinfo=None) - p.start.utcoffset(), "us") for p in live],  # type: ignore[operator]
    )
    slices = [slice(int(a), int(b)) for a, b in zip(edges, [*edges[1:], len(rows)], strict=True)]
    step = -(-len(live) // most_fits)
    return World(spec, rows, live, slices, list(range(0, len(live), step)))


# --- policies and the oracle -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """What one rule did: the batches before which it fitted (without the first champion), and its losses by batch."""

    name: str
    fits: tuple[int, ...]
    losses: Floats

    def cost(self, alpha: float) -> float:
        """Summed loss and the price of its fits."""
        return float(self.losses.sum()) + alpha * len(self.fits)


def served(world: World, name: str, window: str, batches: Sequence[int]) -> Policy:
    """The policy that fits before these batches; a fit that fails keeps what serves."""
    current = world.losses("all", 0)
    assert current is not None
    losses, made = current.copy(), []
    for batch in batches:
        later = world.losses(window, batch)
        if batch and later is not None:
            begin = world.slices[batch].start - world.live
            losses[begin:] = later[begin:]
            made.append(batch)
    return Policy(name, tuple(made), world.sums(losses))


def pair_sums(world: World, window: str) -> Floats:
    """Summed loss of each batch (column) under each fit (row, as in `world.days`); inf where there is none."""
    found = np.full((len(world.days), len(world.partitions)), np.inf)
    for place, batch in enumerate(world.days):
        losses = world.losses(window, batch)
        if losses is not None:
            found[place, batch:] = world.sums(losses)[batch:]
    return found


def oracle(pairs: Floats, days: Sequence[int], alpha: float) -> tuple[float, tuple[int, ...]]:
    """The least summed loss with fits at `alpha` each, and its fits: dynamic programming over the last fit.

    Args:
        pairs: (fits, batches): what fit i, made before batch `days[i]`, loses in each batch; inf before it.
        days: rising, the first is 0: the champion that everybody starts with costs nothing. The same day may come more
            than once: fits on several windows.
        alpha: price of a fit.
    """
    batches, count = pairs.shape[1], len(days)
    #: best[i]: least cost of all batches from days[i] on, where fit i is made there
    best = np.full(count, np.inf)
    following = [-1] * count
    for i in reversed(range(count)):
        total = np.concatenate([[0.0], np.cumsum(pairs[i, days[i] :])])
        best[i] = total[batches - days[i]]
        for j in range(i + 1, count):
            cost = total[days[j] - days[i]] + alpha + best[j]
            if days[j] > days[i] and cost < best[i]:
                best[i], following[i] = cost, j
    chosen, at = [], following[0]
    while at >= 0:
        chosen.append(days[at])
        at = following[at]
    return float(best[0]), tuple(chosen)


def all_pairs(world: World) -> tuple[Floats, list[int]]:
    """The pairs of both windows, for `oracle`."""
    widest = pair_sums(world, "all")
    others = [pair_sums(world, window)[1:] for window in WINDOWS if window != "all"]
    days = np.array(world.days + world.days[1:] * len(others))
    order = np.argsort(days, kind="stable")
    return np.vstack([widest, *others])[order], days[order].tolist()
