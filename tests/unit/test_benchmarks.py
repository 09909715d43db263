"""The benchmark of the decisions: its intervals, its streams and its rivals do what their names say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import page
import pytest
from rates import retraining, streams, tables
from threadpoolctl import threadpool_limits

PROJECT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On busy cores, threads of small fits wait for each other: seconds became minutes."""
    with threadpool_limits(1):
        yield


def test_a_share_has_wilsons_interval() -> None:
    figure = tables.share(10, 100)
    # Newcombe (1998), Statistics in Medicine 17, gives 0.0552 to 0.1744 for 10 of 100
    assert (figure.low, figure.high) == pytest.approx((0.0552, 0.1744), abs=5e-5)
    assert str(figure) == "10.0 % (5.52-17.4)"


def test_nothing_run_is_said_as_nothing() -> None:
    assert str(tables.share(0, 0)) == str(tables.mean([])) == str(tables.median([])) == "-"


def test_intervals_of_means_and_medians_hold_their_level() -> None:
    draw = np.random.default_rng(1)
    rounds = [draw.exponential(size=40) for _ in range(1000)]
    means = [tables.mean(list(values)) for values in rounds]
    medians = [tables.median(list(values)) for values in rounds]
    assert np.mean([f.low <= 1 <= f.high for f in means]) > 0.9
    assert np.mean([f.low <= math.log(2) <= f.high for f in medians]) > 0.93


# the others come from a slower generator by the same functions
@pytest.mark.parametrize("name", ["noisy", "small"])
def test_a_stream_is_its_seed(name: str) -> None:
    stream = getattr(streams, name)
    first, again, other = stream(3), stream(3), stream(4)
    assert np.array_equal(first.features, again.features)
    assert np.array_equal(first.labels, again.labels)
    assert not np.array_equal(first.features, other.features)
    assert len(first.labels) == len(first.known) == streams.BATCHES * streams.ROWS


def test_labels_that_never_come_are_never_known() -> None:
    stream = streams.unlabelled(streams.noisy(1), since=10)
    assert (stream.known[10 * streams.ROWS :] > streams.BATCHES).all()
    scattered = streams.scattered(streams.noisy(1), 1)
    assert np.mean(scattered.known == streams.NEVER) == pytest.approx(0.3, abs=0.02)


def _life(rival: str, stream: streams.Stream) -> retraining.Life:
    chosen = next(r for r in retraining.RIVALS if r.name == rival)
    return retraining.live_as_rival(retraining.World(stream), chosen)


def test_a_rival_does_what_its_name_says() -> None:
    stream = streams.small(1)
    assert _life("never", stream).retrains == []
    assert _life("every 10 batches", stream).retrains == [13, 23, 33, 43, 53, 63, 73]
    assert len(_life("every batch", stream).retrains) == streams.BATCHES - retraining.START


def test_perennial_finds_changes_and_leaves_an_even_stream_alone() -> None:
    found = retraining.Perennial(retraining.World(streams.small(1))).live().retrains
    assert all(any(change <= retrain <= change + 6 for retrain in found) for change in streams.CHANGES)
    assert retraining.Perennial(retraining.World(streams.noisy(1))).live().retrains == []


def test_the_page_shows_the_figures_of_the_newest_full_run_of_every_section() -> None:
    shown = page.PAGE.read_text(encoding="utf-8")
    figures = json.loads((PROJECT / "benchmarks" / "results" / "decisions.json").read_text(encoding="utf-8"))
    for name, section in figures["sections"].items():
        assert section["claims"], name
        for claim in section["claims"]:
            mark = "met" if claim["met"] else "**missed**"
            assert f"| {claim['text']} | {claim['target']} | {claim['figure']['text']} | {mark} |" in shown


def test_a_block_of_figures_is_written_between_its_markers_and_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text("before\n<!-- figures: speed -->\nold\n<!-- end of figures: speed -->\nafter\n")
    page.write_block("speed", "new", file)
    assert file.read_text() == "before\n<!-- figures: speed -->\nnew\n<!-- end of figures: speed -->\nafter\n"
    with pytest.raises(ValueError, match="figures: drift"):
        page.write_block("drift", "new", file)
