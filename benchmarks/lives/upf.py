"""UPF: forecast performance, decide by a quantile.

Regol, Schwinn, Sprague, Coates and Markovich (2025), When to retrain a machine learning model, ICML. The loss of the
model fitted at i in batch j is forecast by a Gaussian regression on few features: when it was fitted, how old it is,
how far the columns have moved since. It learns from the pairs of an offline phase and from every batch that the serving
models have lived through. Before each batch the rule sums what a fit now would save, over as many batches as the
serving fit has lived (the new one may be expected to live as long), and fits where the quantile of that saving at
confidence delta is above the price of the fit.

Written from the abstract, summaries and memory. Not confirmed against the full text: the exact features, the horizon,
that the forecaster is Bayesian ridge regression, and delta (0.5 decides by the mean, 0.95 asks for more; both are
shown). The paper bounds the performance and takes a Beta law, approximated by a Gaussian; here losses are not bounded,
and Gaussian at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from lives.matrix import Floats, Policy, World
from lives.offline import SPANS, Offline
from lives.rules import decided
from scipy import stats
from sklearn.linear_model import BayesianRidge


@dataclass
class Upf:
    """The rule on one history. Times are counted in live batches; the offline phase lies before 0."""

    world: World
    offline: Offline
    columns: Floats

    def policy(self, price: float, delta: float) -> Policy:
        """`price` of a fit in mean losses of a batch's row; `delta` the confidence that is asked for."""
        pairs = self._offline_pairs()
        seen = {0: 0}

        def asks(batch: int, last: int) -> bool:
            self._observe(pairs, batch, last, seen)
            if len(pairs) < 3:
                return False
            return self._saving(pairs, batch, last, delta) > price

        return decided(self.world, f"UPF, delta {delta:g}", "all", asks)

    def _offline_pairs(self) -> list[tuple[float, float, float, float]]:
        """(fitted at, age, shift of the columns, mean loss)."""
        made, scale = self.offline, self.offline.batches
        found = []
        for at in made.fits:
            learnt = self.columns[: made.bounds[at]].mean(0)
            for span in range(at, SPANS):
                now = self.columns[made.bounds[span] : made.bounds[span + 1]]
                if len(now):
                    shift = float(np.abs(now.mean(0) - learnt).mean())
                    found.append(((at - SPANS) * scale, (span - at) * scale, shift, made.mean(at, span)))
        return found

    def _observe(
        self, pairs: list[tuple[float, float, float, float]], batch: int, last: int, seen: dict[int, int]
    ) -> None:
        """Batches whose labels are all known by now and that the serving fit has scored."""
        losses = self.world.losses("all", last)
        assert losses is not None
        known = self.world.known(batch)
        for number in range(max(seen.get(last, last), last), batch):
            part = self.world.slices[number]
            if part.stop > known:
                break
            seen[last] = number + 1
            if part.stop > part.start:
                mean = float(losses[part.start - self.world.live : part.stop - self.world.live].mean())
                pairs.append((float(last), float(number - last), self._shift(last, number), mean))

    def _shift(self, last: int, number: int) -> float:
        learnt = self.columns[self.world.training_rows("all", last)].mean(0)
        now = self.columns[self.world.slices[number]]
        return float(np.abs(now.mean(0) - learnt).mean()) if len(now) else 0.0

    def _saving(self, pairs: list[tuple[float, float, float, float]], batch: int, last: int, delta: float) -> float:
        """What a fit now saves over the next batches, at confidence `delta`."""
        table = np.array(pairs)
        centre, width = table[:, :3].mean(0), table[:, :3].std(0) + 1e-9
        model = BayesianRidge().fit((table[:, :3] - centre) / width, table[:, 3])
        ahead = np.arange(batch, len(self.world.partitions), dtype=float)
        drift = self._shift(last, batch - 1)

        def forecast(fitted: float, shift: float) -> tuple[Floats, Floats]:
            rows = np.column_stack([np.full(len(ahead), fitted), ahead - fitted, np.full(len(ahead), shift)])
            mean, error = model.predict((rows - centre) / width, return_std=True)
            return mean, error

        fresh = float(np.median(table[:, 2][table[:, 1] <= np.median(table[:, 1])]))
        keep, keep_error = forecast(last, drift)
        now, now_error = forecast(batch, min(fresh, drift))
        span = max(1, min(len(ahead), int(batch - last)))
        saving = (keep - now)[:span].sum()
        error = np.sqrt((keep_error[:span] ** 2 + now_error[:span] ** 2).sum())
        return float(saving - stats.norm.ppf(delta) * error)
