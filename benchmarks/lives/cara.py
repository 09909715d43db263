"""CARA: retrain where staleness costs more than a retrain.

Mahadevan and Mathioudakis (2024), Cost-aware retraining for machine learning, Knowledge-Based Systems 293. A query's
staleness cost is the loss of the serving model on the newest labelled rows, weighted by how like the query they are.
CARA-T retrains where a batch's cost is above a threshold, CARA-P every so many batches; threshold and period are those
that cost least in an offline phase, staleness and price of retrains together.

Written from the paper's abstract, summaries of it and memory. Not confirmed against the full text: that the similarity
is a radial kernel on scaled features with width 1/columns, and that the weights of a query are normed to one (needed
here, for batches differ in size and a fit's price is counted in losses). The loss is the history's metric where the
paper has 0/1 errors. The variant with a cumulative threshold is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lives.matrix import Floats, Policy, World, losses_of, served
from lives.offline import FIRST_FIT, SPANS, Offline
from lives.rules import decided

#: queries and labelled rows that are compared at most
QUERIES, DATA = 200, 500


def staleness(queries: Floats, data: Floats, losses: Floats) -> float:
    """Mean staleness cost of the queries: losses on the data, weighted by a radial kernel."""
    if not len(queries) or not len(data):
        return 0.0
    distance = (queries**2).sum(1)[:, None] + (data**2).sum(1)[None, :] - 2 * queries @ data.T
    # the nearest row has weight one, so that a query far from all data has weights too
    weights = np.exp(-(distance - distance.min(1, keepdims=True)) / queries.shape[1])
    return float((weights @ losses / weights.sum(1)).mean())


@dataclass
class Cara:
    """Both rules on one history; the offline phase and staleness are shared by all prices."""

    world: World
    offline: Offline
    columns: Floats

    def __post_init__(self) -> None:
        self._live: dict[tuple[int, int], float] = {}
        made = self.offline
        self._stale = {
            (at, span): staleness(
                _thin(self.columns[made.bounds[span - 1] : made.bounds[span]], QUERIES),
                _thin(self.columns[made.bounds[span - 1] : made.bounds[span]], DATA),
                _thin(made.losses[at][made.bounds[span - 1] : made.bounds[span]], DATA),
            )
            for at in made.fits
            for span in range(at, SPANS)
        }

    def threshold(self, price: float) -> Policy:
        """CARA-T; `price` of a fit in mean losses of a batch's row."""
        levels = sorted({*self._stale.values(), np.inf})
        level = min(levels, key=lambda tau: self._offline_cost(price, lambda at, span: self._stale[at, span] > tau))
        return decided(self.world, "CARA-T", "all", lambda batch, last: self._staleness(batch, last) > level)

    def periodic(self, price: float) -> Policy:
        """CARA-P."""
        spans = min(range(1, SPANS), key=lambda n: self._offline_cost(price, lambda at, span: span - at >= n))
        if spans >= SPANS - FIRST_FIT:
            return served(self.world, "CARA-P", "all", ())
        every = max(1.0, spans * self.offline.batches)
        return decided(self.world, "CARA-P", "all", lambda batch, last: batch - last >= every)

    def _offline_cost(self, price: float, asks: object) -> float:
        assert callable(asks)
        fits = self.offline.fits
        if not fits:
            return 0.0
        at, cost = min(fits), 0.0
        for span in range(min(fits), SPANS):
            if span > at and span in fits and asks(at, span):
                at, cost = span, cost + price
            cost += self._stale[at, span] * self.offline.batches
        return cost

    def _staleness(self, batch: int, last: int) -> float:
        if (batch, last) not in self._live:
            world = self.world
            known = world.known(batch)
            size = max(1, min(DATA, int(np.mean(world.counts))))
            first = world.losses("all", last)
            assert first is not None
            data = slice(max(0, known - size), known)
            if data.start >= world.slices[last].start:
                losses = first[data.start - world.live : data.stop - world.live]
            else:
                estimator = world.fits["all", last]
                losses = losses_of(world.spec, estimator, world.rows.iloc[data])
            queries = _thin(self.columns[world.slices[batch - 1]], QUERIES)
            self._live[batch, last] = staleness(queries, self.columns[data], losses)
        return self._live[batch, last]


def _thin(rows: Floats, most: int) -> Floats:
    return rows[:: max(1, -(-len(rows) // most))]
