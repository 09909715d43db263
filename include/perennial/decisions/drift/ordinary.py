"""Is a batch's distance beyond the ordinary variation between batches?

Null hypothesis: the batch is exchangeable with the earlier ones, each with its distances from its own reference. Rows
may hang together as they like. Every measure is divided by its own scale over the other batches; a batch's score is the
largest of its measures, so that many columns, and columns that move together, are paid for by the earlier batches'
own scores. The tail beyond them is extrapolated by the law of a largest of many (Gumbel's for the logarithm, that is
Frechet's; Coles 2001, An Introduction to Statistical Modeling of Extreme Values), with a prior on its spread.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from perennial.decisions.drift.distances import noise
from perennial.records import DistanceKind, DriftEvidence, Measure, OrdinaryVariation

Floats = npt.NDArray[np.float64]

#: earlier batches from which the ordinary variation is known; fewer say too little about a tail
MIN_BATCHES = 6
#: earlier distances from the same season: one that is known for few batches would look exact by chance
MIN_SEASONS = 12
#: a high power mean is close to the largest and is still moved by all: a column that jumps now and then is not called
#: each time that it does
_POWER = 6
#: what the scale of a measure is at least, so that a measure that never moved does not make every step a jump
_LEAST: dict[DistanceKind, float] = {
    "shape": 0.03,
    "level": 0.03,
    "spread": 0.03,
    "narrow": 0.03,
    "missing": 0.005,
    "unseen": 0.005,
    "share": 0.005,
    "rows": 0.01,
}
#: spread of the logarithm of scores that four batches' worth of experience with histories says, before any was seen
_PRIOR_SD, _PRIOR_BATCHES = 0.3, 4
#: a batch in which nothing moved says no more than one that moved by a hundredth of the farthest
_LEAST_SCORE = 0.01
#: batches in a row that share most of a trailing reference
_SHARED = 4
#: distances that no ordinary batch has, whatever the history: half of the values missing or unseen, four standard
#: deviations, a fiftieth of the variance (or of the rows beside the commonest category), ten times the rows; and
#: `_TIMES` the largest one known
_BEYOND: dict[DistanceKind, float] = {
    "missing": math.pi / 4,
    "unseen": math.pi / 4,
    "level": 4.0,
    "narrow": math.log(50),
    "rows": math.log(10),
}
_TIMES = 3.0
#: with fewer earlier batches a day or a month that has one value of a column is no news
_FEWEST = 2
_BEYOND_AT_ONCE: tuple[DistanceKind, ...] = ("missing", "unseen", "level")


@dataclass(frozen=True)
class Judged:
    """What ordinary variation says of the distances of a batch."""

    #: distance over the line of alarm: above 1 is beyond ordinary variation
    score: dict[Measure, float]
    #: times its scale that the largest measure may be; None: too few earlier batches
    threshold: float | None
    #: earlier batches
    batches: int


def judge(evidence: DriftEvidence, own: dict[Measure, float], alpha: float) -> Judged:
    """Score every distance of the batch against those of the earlier batches."""
    measures = sorted(own)
    earlier = evidence.earlier
    count = len(earlier.batches)
    distances = np.array([own[measure] for measure in measures])
    known = _known(earlier, measures)
    score = _beyond_anything(measures, distances, known)
    threshold = None
    if count >= MIN_BATCHES and measures:
        threshold, ratio = _against_earlier(evidence, measures, distances, known, alpha)
        score = np.maximum(score, ratio / threshold)
    return Judged(dict(zip(measures, score.tolist(), strict=True)), threshold, count)


def _known(earlier: OrdinaryVariation, measures: list[Measure]) -> Floats:
    """Distances of earlier batches, a row each, in the order of `measures`; NaN where one was not measured."""
    places = {measure: place for place, measure in enumerate(earlier.measures)}
    table = np.array(
        [[math.nan if value is None else value for value in row] for row in earlier.distances], dtype=float
    ).reshape(len(earlier.batches), len(earlier.measures))
    empty = np.full(len(earlier.batches), math.nan)
    columns = [table[:, places[measure]] if measure in places else empty for measure in measures]
    return np.stack(columns, axis=1) if columns else np.empty((len(earlier.batches), 0))


def _beyond_anything(measures: list[Measure], distances: Floats, known: Floats) -> Floats:
    largest = np.where(np.isnan(known), 0.0, known).max(axis=0) if len(known) else np.zeros(len(measures))
    lines = np.full(len(measures), math.inf)
    for place, measure in enumerate(measures):
        seen = int((~np.isnan(known[:, place])).sum()) >= _FEWEST
        if measure.against == "reference" and (seen or measure.kind in _BEYOND_AT_ONCE):
            lines[place] = max(_BEYOND.get(measure.kind, math.inf), _TIMES * largest[place])
    score: Floats = distances / lines
    return score


def _against_earlier(
    evidence: DriftEvidence, measures: list[Measure], distances: Floats, known: Floats, alpha: float
) -> tuple[float, Floats]:
    """The line of alarm, and every distance in units of its scale over the earlier batches."""
    expected, own_noise = _noise(evidence, measures)
    least = np.array([_LEAST[measure.kind] for measure in measures]) ** 2
    present = ~np.isnan(known)
    seasonal = np.array([measure.against == "season" for measure in measures])
    count = present.sum(axis=0)
    # a column that hardly varies has a spread too, which is judged here; by itself it is for the first batches
    narrow = np.array([measure.kind == "narrow" for measure in measures])
    used = ~narrow & (count >= np.where(seasonal, MIN_SEASONS, MIN_BATCHES))
    filled = np.where(present, known, 0.0)
    powers = np.where(present, np.maximum(0.0, filled**2 - expected), 0.0) ** (_POWER / 2)
    total = powers.sum(axis=0)
    others = np.maximum(0.0, total - powers) / np.maximum(1, count - 1)
    ratios = np.where(present & used, filled / np.sqrt(others ** (2 / _POWER) + expected + least), 0.0)
    own = np.where(used, distances / np.sqrt((total / np.maximum(1, count)) ** (2 / _POWER) + own_noise + least), 0.0)
    # a thin batch has no distances, and says nothing of how far batches lie from their references
    told = (present & used).any(axis=1)
    return _threshold(ratios.max(axis=1)[told], alpha) if told.any() else 1.0, own


def _noise(evidence: DriftEvidence, measures: list[Measure]) -> tuple[Floats, Floats]:
    """Squares that sampling alone gives: a row for each earlier batch, and those of this batch."""
    columns = evidence.current.columns
    season = evidence.season.rows if evidence.season is not None else 0
    rows = [*evidence.earlier.rows, (evidence.current.rows, evidence.reference.rows, season)]
    table = np.array(
        [
            [
                noise(m.kind, own, reference if m.against == "reference" else same_season, cells)
                for m, cells in (
                    (m, sum(map(bool, columns[m.column].counts)) if m.kind == "shape" else 0) for m in measures
                )
            ]
            for own, reference, same_season in rows
        ]
    )
    return table[:-1], table[-1]


def _threshold(scores: Floats, alpha: float) -> float:
    """The score that a batch exchangeable with these has with chance `alpha`.

    A logarithm of a largest of many is Gumbel's; Student's quantile over the normal one widens it for a spread that is
    estimated, and the root for a mean that is.
    """
    least = _LEAST_SCORE * max(float(scores.max()), np.finfo(float).tiny)
    logs = np.log(np.maximum(scores, least))
    count = len(logs)
    degrees = count - 1 + _PRIOR_BATCHES
    squares = float(np.sum((logs - logs.mean()) ** 2)) + _PRIOR_BATCHES * _PRIOR_SD**2
    quantile = float(stats.gumbel_r.isf(alpha) - stats.gumbel_r.mean()) / float(stats.gumbel_r.std())
    # four batches in a row share most of their references, so that their scores are worth fewer
    wider = float(stats.t.isf(alpha, _PRIOR_BATCHES + (count - 1) / _SHARED) / stats.norm.isf(alpha))
    return math.exp(float(logs.mean()) + quantile * wider * math.sqrt(squares / degrees * (1 + 1 / count)))
