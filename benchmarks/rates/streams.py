"""Streams of labelled batches from river's generators: what the retraining rule and its rivals live through.

A stream is 80 batches of 500 rows. Concepts change after the batches in `changes`; rows before and after a change have
the same features' law unless the stream is about exactly that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from river.datasets import synth

BATCHES, ROWS = 80, 500
#: batches after which the concept changes, where it does
CHANGES = (20, 40, 60)
#: batches that everybody's first model learns from
HISTORY = 4
#: a label that never comes
NEVER = BATCHES * 10

Floats = np.ndarray[Any, np.dtype[np.float64]]
Ints = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Stream:
    """Rows in order of arrival, and when each label is known."""

    features: Floats  # (BATCHES * ROWS, columns)
    labels: Ints
    changes: tuple[int, ...]
    #: batch at whose end a row's label is known
    known: Ints
    #: batches after which labels are due
    delay: int = 1
    #: a batch that came in other units; -1: none
    corrupted: int = -1

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the features."""
        return tuple(f"x{i}" for i in range(self.features.shape[1]))


def _take(generator: Any, rows: int) -> tuple[Floats, Ints]:
    found = [(tuple(x.values()), int(y)) for x, y in generator.take(rows)]
    return np.array([x for x, _ in found], dtype=float), np.array([y for _, y in found])


def _agrawal(function: int, rows: int, seed: int) -> tuple[Floats, Ints]:
    return _take(synth.Agrawal(classification_function=function, seed=seed), rows)


def _sea(variant: int, rows: int, seed: int) -> tuple[Floats, Ints]:
    return _take(synth.SEA(variant=variant, noise=0.1, seed=seed), rows)


def _stream(features: Floats, labels: Ints, changes: tuple[int, ...] = ()) -> Stream:
    return Stream(features, labels, changes, known=np.repeat(np.arange(BATCHES) + 1, ROWS))


def _in_turn(source: Callable[[int, int, int], tuple[Floats, Ints]], concepts: tuple[int, ...], seed: int) -> Stream:
    rows = BATCHES * ROWS // len(concepts)
    parts = [source(concept, rows, 10 * seed + place) for place, concept in enumerate(concepts)]
    return _stream(np.vstack([x for x, _ in parts]), np.concatenate([y for _, y in parts]), CHANGES)


def stationary(seed: int) -> Stream:
    """Nothing changes, and the labels have no noise."""
    return _stream(*_agrawal(0, BATCHES * ROWS, seed))


def noisy(seed: int) -> Stream:
    """Nothing changes; a tenth of the labels is wrong."""
    return _stream(*_sea(0, BATCHES * ROWS, seed))


def harmless(seed: int) -> Stream:
    """Four columns that the label does not depend on grow by a fifth or more, twice."""
    stream = stationary(seed)
    features = stream.features.copy()
    for batch in (27, 54):
        features[batch * ROWS :, [0, 5, 6]] *= 1.3
        features[batch * ROWS :, 7] *= 1.2
    return replace(stream, features=features)


def abrupt(seed: int) -> Stream:
    """Agrawal's functions 0, 1, 2, 3 in turn: the labels change, the features do not."""
    return _in_turn(_agrawal, (0, 1, 2, 3), seed)


def small(seed: int) -> Stream:
    """SEA's variants 0, 3, 1, 2 with a tenth of the labels wrong; the second change costs 0.037 only."""
    return _in_turn(_sea, (0, 3, 1, 2), seed)


def gradual(seed: int) -> Stream:
    """Agrawal's function 0 gives way to function 3 over about 15 batches."""
    rows = BATCHES * ROWS
    old, new = _agrawal(0, rows, seed), _agrawal(3, rows, seed + 1000)
    share = 1 / (1 + np.exp(-(np.arange(rows) - rows / 2) / (3 * ROWS)))
    changed = np.random.default_rng([1, seed]).random(rows) < share
    return _stream(np.where(changed[:, None], new[0], old[0]), np.where(changed, new[1], old[1]), (36,))


def recurring(seed: int) -> Stream:
    """Agrawal's functions 0 and 1 by turns."""
    return _in_turn(_agrawal, (0, 1, 0, 1), seed)


def corrupted(seed: int) -> Stream:
    """A stationary stream with one batch whose amounts came in thousands, and whose ages came in months."""
    stream = stationary(seed)
    batch = int(np.random.default_rng([2, seed]).integers(20, 70))
    features = stream.features.copy()
    rows = slice(batch * ROWS, (batch + 1) * ROWS)
    features[rows, 0] /= 1000
    features[rows, 2] *= 12
    return replace(stream, features=features, corrupted=batch)


def late(stream: Stream, delay: int) -> Stream:
    """The same stream with all labels `delay` batches late; the first batches are history, and labelled."""
    batches = np.arange(BATCHES)
    known = np.where(batches < HISTORY, batches, batches + delay)
    return replace(stream, known=np.repeat(known, ROWS), delay=delay)


def scattered(stream: Stream, seed: int) -> Stream:
    """The same stream with labels 1 to 5 batches late, out of order, and 30 % that never come."""
    draw = np.random.default_rng([3, seed])
    known = stream.known + draw.integers(0, 5, len(stream.known))
    return replace(stream, known=np.where(draw.random(len(known)) < 0.3, NEVER, known), delay=5)


def unlabelled(stream: Stream, since: int) -> Stream:
    """The same stream without labels from batch `since` on."""
    batch = np.repeat(np.arange(BATCHES), ROWS)
    return replace(stream, known=np.where(batch >= since, NEVER, stream.known))
