"""The benchmark of lives: its histories, its oracle and its rivals do what their names say."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import histories
import numpy as np
import pandas as pd
import pytest
import yaml
from lives import fits, folder, generated, life, matrix, offline, real, rules
from lives.cara import Cara, staleness
from lives.record import highest_price
from lives.upf import Upf
from threadpoolctl import threadpool_limits

from perennial.records import Figure
from perennial.replay import replay
from perennial.stores.memory import open_memory

PLAN = generated.Plan("abrupt", "weekly", 8, 10, 60, 0.4, 1, "linear")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PERENNIAL_FITS", str(tmp_path))
    with threadpool_limits(1):
        yield


@pytest.fixture
def world(tmp_path: Path) -> matrix.World:
    model = folder.write_model(generated.history(PLAN, 1), tmp_path)
    return matrix.world_of(model)


# --- histories -------------------------------------------------------------------------------------------------------


def test_a_spec_says_names_columns_times_task_and_metric_only() -> None:
    for history in histories.catalogue().values():
        spec = folder.spec_of(history)
        assert spec.keys() <= folder.ALLOWED.keys()
        for section, keys in folder.ALLOWED.items():
            if isinstance(spec[section], dict):
                assert spec[section].keys() <= set(keys), (history.name, section)


def test_what_is_written_beyond_that_is_what_the_schema_still_demands(tmp_path: Path) -> None:
    history = generated.history(PLAN, 1)
    folder.write_model(history, tmp_path)
    written = yaml.safe_load((tmp_path / "models" / history.name / "spec.yaml").read_text())
    bridged = folder.spec_of(history)
    folder.bridge(bridged, history)
    assert written == bridged


def test_there_are_enough_generated_histories_of_every_kind_in_two_halves() -> None:
    made = list(generated.histories())
    assert len(made) >= 24
    assert {h.family for h in made} == set(generated.FAMILIES)
    assert {h.cadence for h in made} == set(generated.CRONS)
    assert sum(h.half == "hold" for h in made) == len(made) / 2
    assert {plan.late for plan in generated.PLANS} >= {0, 8}


def test_a_generated_history_is_its_seed() -> None:
    first, again, other = (generated.rows(PLAN, seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not first["x1"].equals(other["x1"])
    assert first["row_id"].is_unique
    assert first["at"].is_monotonic_increasing


def test_rows_of_which_the_month_is_known_are_spread_inside_it() -> None:
    at = real.spread(np.array([2008, 2008, 2009]), np.array([2, 2, 1]))
    assert [f"{moment:%Y-%m-%d %H}" for moment in at] == ["2008-02-08 06", "2008-02-22 18", "2009-01-16 12"]


@pytest.mark.skipif(not (real.data_folder() / "pm25").is_dir(), reason="the real data are absent (PERENNIAL_DATA)")
def test_real_histories_are_as_their_files_say() -> None:
    bank = real.bank_rows(real.data_folder() / "bank_marketing" / "bank-additional-full.csv")
    assert len(bank) == 41_188
    assert "duration" not in bank
    assert (bank["at"].min().year, bank["at"].max().year) == (2008, 2010)
    assert bank["at"].is_monotonic_increasing
    air = real.air_rows(real.data_folder() / "pm25" / "PRSA_data.csv", binary=True)
    assert len(air) == 43_824 - 2_067
    gas = real.gas_rows(real.data_folder() / "gas_drift")
    assert len(gas) == 6_697
    assert set(gas["label"]) == set(real.GASES)


def test_an_absent_file_is_a_reason_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERENNIAL_DATA", str(tmp_path))
    assert "PERENNIAL_DATA" in next(h for h in real.histories() if h.name == "gas_trees").absent


# --- kept fits -------------------------------------------------------------------------------------------------------


def test_a_kept_fit_changes_nothing_and_other_rows_are_another_fit(tmp_path: Path) -> None:
    model = folder.write_model(generated.history(PLAN, 1), tmp_path / "model")
    world = matrix.world_of(model)
    plain = matrix.losses_of(model.spec, matrix.fit(model.spec, world.rows[:300]), world.rows)
    kept = fits.Fits(tmp_path / "fits")
    with fits.kept(kept):
        first = matrix.losses_of(model.spec, matrix.fit(model.spec, world.rows[:300]), world.rows)
        again = matrix.losses_of(model.spec, matrix.fit(model.spec, world.rows[:300]), world.rows)
        matrix.fit(model.spec, world.rows[:301])
    assert (kept.made, kept.found) == (2, 1)
    assert np.array_equal(plain, first)
    assert np.array_equal(plain, again)


def test_the_key_of_a_fit_holds_values_labels_names_and_code() -> None:
    rows, labels = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}), np.array([0, 1])
    keys = [
        fits.key_of("code", rows, labels),
        fits.key_of("other", rows, labels),
        fits.key_of("code", rows.rename(columns={"a": "c"}), labels),
        fits.key_of("code", rows.assign(b=["x", None]), labels),
        fits.key_of("code", rows, labels[::-1]),
    ]
    assert len({*keys}) == len(keys)
    assert keys[0] == fits.key_of("code", rows.copy(), labels.copy())


# --- matrix and oracle -----------------------------------------------------------------------------------------------


def test_the_oracle_is_the_best_of_all_choices() -> None:
    draw = np.random.default_rng(1)
    days, batches = [0, 1, 1, 3, 4, 6], 8
    for alpha in (0.0, 0.3, 1.0, 5.0):
        pairs = draw.uniform(size=(len(days), batches))
        for place, day in enumerate(days):
            pairs[place, :day] = np.inf
        costs = {}
        for size in range(len(days)):
            for chosen in itertools.combinations(range(1, len(days)), size):
                at = [days[place] for place in chosen]
                if len({*at}) == len(at):
                    ends = [*at, batches]
                    served = zip((0, *chosen), [0, *at], ends, strict=True)
                    costs[chosen] = sum(pairs[i, a:b].sum() for i, a, b in served) + alpha * size
        best = min(costs, key=lambda chosen: costs[chosen])
        cost, found = matrix.oracle(pairs, days, alpha)
        assert cost == pytest.approx(costs[best])
        assert found == tuple(days[place] for place in best)


def test_above_the_highest_price_the_oracle_fits_once_at_most() -> None:
    draw = np.random.default_rng(2)
    pairs = np.triu(draw.uniform(size=(6, 6)))
    pairs[np.tril_indices(6, -1)] = np.inf
    highest = highest_price(pairs, list(range(6)), 0.5)
    assert len(matrix.oracle(pairs, list(range(6)), 1.01 * highest * 0.5)[1]) <= 1


def test_nobody_learns_from_labels_that_are_not_known_yet(world: matrix.World) -> None:
    for batch in range(1, len(world.partitions)):
        known = world.known(batch)
        newest = world.rows["at"].iloc[known - 1]
        assert newest < world.partitions[batch].start - timedelta(days=7) <= world.rows["at"].iloc[known]


def test_a_policy_serves_each_fit_until_the_next(world: matrix.World) -> None:
    pairs = matrix.pair_sums(world, "all")
    policy = matrix.served(world, "two fits", "all", (3, 7))
    expected = [*pairs[0, :3], *pairs[3, 3:7], *pairs[7, 7:]]
    assert policy.fits == (3, 7)
    assert policy.losses == pytest.approx(expected)
    assert rules.never(world).losses == pytest.approx(pairs[0])
    assert len(rules.every_batch(world).fits) == len(world.days) - 1


def test_the_loop_and_never_are_judged_on_the_same_rows(tmp_path: Path) -> None:
    model = folder.write_model(generated.history(replace(PLAN, history=4, live=4), 1), tmp_path)
    lived = life.live(model)
    assert lived.refused == ""
    assert lived.batches is not None
    world = matrix.world_of(model)
    assert lived.batches.rows.tolist() == world.counts.tolist()
    assert len(lived.verdicts) == len(world.partitions)


def test_labels_that_are_due_months_later_are_measured(tmp_path: Path) -> None:
    """Thirty days, the lookback that a spec has by default, are less than a month."""
    plan = replace(PLAN, family="stationary", cadence="monthly", history=8, live=5, late=2, rows=200)
    model = folder.write_model(generated.history(plan, 1), tmp_path)
    stores = open_memory()
    with stores:
        replay(model.spec, settings=model.settings, stores=stores, retrain_every_batch=False)
        measured = {m.partition: m.rows for m in stores.ledger.measurements(model.spec.name, name=Figure.DUE)}
    world = matrix.world_of(model)
    for number, partition in enumerate(world.partitions[:-2]):
        assert measured[partition.key] == world.counts[number]


# --- rivals ----------------------------------------------------------------------------------------------------------


def test_a_querys_staleness_is_the_loss_of_rows_like_it() -> None:
    data, losses = np.array([[0.0, 0.0], [5.0, 5.0]]), np.array([1.0, 0.0])
    assert staleness(np.array([[0.1, 0.0]]), data, losses) == pytest.approx(1, abs=1e-6)
    assert staleness(np.array([[5.0, 4.9]]), data, losses) == pytest.approx(0, abs=1e-6)
    assert staleness(np.array([[2.5, 2.5]]), data, losses) == pytest.approx(0.5)


def test_cara_and_upf_fit_often_where_a_fit_is_free_and_never_where_it_is_dear(world: matrix.World) -> None:
    made, columns = offline.offline(world), offline.numbers(world)
    cara, upf = Cara(world, made, columns), Upf(world, made, columns)
    for rule in (cara.threshold, cara.periodic, lambda price: upf.policy(price, 0.5)):
        assert len(rule(1e9).fits) == 0
        assert len(rule(0.0).fits) >= 1
    assert len(upf.policy(0.0, 0.95).fits) <= len(upf.policy(0.0, 0.5).fits)


# --- results ---------------------------------------------------------------------------------------------------------


def test_a_run_of_some_histories_keeps_the_figures_of_the_others(tmp_path: Path) -> None:
    file = tmp_path / "histories.json"
    file.write_text(json.dumps({"records": [{"name": "gas_trees"}], "drift": {"shuffled": {}}}))
    results = histories.results_of(file, {}, None, 1.0)
    assert [record["name"] for record in results["records"]] == ["gas_trees"]
    assert results["drift"] == {"shuffled": {}}
