"""What CARA and UPF learn from before they go live: fits inside the first training, judged on its later parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from lives.matrix import Floats, World, fit, losses_of

from perennial.errors import TrainingError

#: equal spans of the first training; fits are made before each of the later ones
SPANS, FIRST_FIT = 10, 4


@dataclass
class Offline:
    """Fits before spans FIRST_FIT, ..., and their losses on each row of the first training."""

    #: rows of span n: bounds[n] to bounds[n + 1]
    bounds: list[int]
    fits: dict[int, Any]
    losses: dict[int, Floats]
    #: live batches that are as long as one span
    batches: float

    def mean(self, at: int, span: int) -> float:
        """Mean loss of the fit made before span `at`, in span `span`; NaN where it has no rows."""
        found = self.losses[at][self.bounds[span] : self.bounds[span + 1]]
        return float(found.mean()) if len(found) else float("nan")


def offline(world: World) -> Offline:
    """The offline phase of a history, made once for all rules that need it."""
    rows = world.known(0)
    when = world.when[:rows]
    edges = when[0] + (when[-1] - when[0]) * np.arange(1, SPANS) // SPANS
    bounds = [0, *(int(place) for place in np.searchsorted(when, edges)), rows]
    spec, fits, losses = world.spec, {}, {}
    for at in range(FIRST_FIT, SPANS):
        try:
            fits[at] = fit(spec, world.rows.iloc[: bounds[at]])
        except TrainingError:
            continue
        losses[at] = losses_of(spec, fits[at], world.rows.iloc[:rows])
    live = world.partitions[-1].end - world.partitions[0].start
    width = (when[-1] - when[0]) / SPANS / np.timedelta64(1, "us") / 1e6
    return Offline(bounds, fits, losses, width / (live.total_seconds() / len(world.partitions)))


def numbers(world: World) -> Floats:
    """The features as numbers of one scale: standardised by the first training, categories as columns of 0 and 1."""
    features = world.rows[list(world.spec.features.names)]
    first = features.iloc[: world.known(0)]
    numeric = list(world.spec.features.numeric)
    scaled = (features[numeric] - first[numeric].mean()) / first[numeric].std().replace(0, 1).fillna(1)
    known = {name: first[name].value_counts().index[:20] for name in world.spec.features.categorical}
    texts = [
        pd.DataFrame({f"{name}={value}": (features[name] == value).astype(float) for value in values})
        for name, values in known.items()
    ]
    return np.nan_to_num(pd.concat([scaled, *texts], axis=1).clip(-5, 5).to_numpy("float32"))
