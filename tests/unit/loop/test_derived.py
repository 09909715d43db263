"""What a spec leaves open: the holdout, the rows that are needed, the window."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from made_model import CHANGE, DAY, FIRST, START, MadeModel
from ruamel.yaml import YAML

from perennial.check import power
from perennial.data.holdout import holdout_start
from perennial.errors import NotEnoughRows
from perennial.loop import retrain
from perennial.loop.retrain import windows
from perennial.loop.retrain.evaluation import clusters_of
from perennial.records import Verdict
from perennial.spec import ModelSpec, load_spec
from perennial.stores.ports import Stores

World = Callable[[str], Stores]
SAID = ("name", "description", "owner", "task", "metric", "entity", "event_time", "source", "label", "features")


@pytest.fixture
def bare(own_made: MadeModel) -> MadeModel:
    """The made model with nothing said but what it is."""
    file = own_made.spec.folder / "spec.yaml"
    data = YAML().load(file)
    kept = {key: data[key] for key in (*SAID, "schedule", "expectations")}
    YAML().dump({**kept, "training": {"first": data["training"]["first"]}}, file)
    return MadeModel(load_spec(file), own_made.settings)


def rows_at(spec: ModelSpec, times: list[datetime], labels: list[int] | None = None) -> pd.DataFrame:
    label = labels or [number % 2 for number in range(len(times))]
    return pd.DataFrame({spec.event_time: pd.to_datetime(pd.Series(times), utc=True), "label": label})


def evenly(rows: int, days: int = 100) -> list[datetime]:
    return [FIRST + n * timedelta(days=days) / rows for n in range(rows)]


def held(spec: ModelSpec, times: list[datetime], learnt_until: datetime | None, **more: list[int]) -> int:
    rows = rows_at(spec, times, more.get("labels"))
    start = holdout_start(spec, rows, FIRST, FIRST + 100 * DAY, learnt_until)
    return int((rows[spec.event_time] >= start).sum())


def test_the_holdout_is_a_fifth_at_first_and_later_a_third_of_what_is_new(bare: MadeModel) -> None:
    assert held(bare.spec, evenly(1000), None) == 200
    assert held(bare.spec, evenly(1000), FIRST + 70 * DAY) == 100


def test_the_holdout_of_an_old_champion_is_about_the_present(bare: MadeModel) -> None:
    """Eighty days are new; the last 28 of them judge, not their newest third."""
    assert held(bare.spec, evenly(1000), FIRST + 10 * DAY) == 280


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (90, 33),  # a third of the 100 rows since then
        (97, 100),  # 30 rows are less than twice what the gate asks for: as if nobody knew of the change
        (20, 100),  # long before the champion learnt: what is new to it
    ],
)
def test_after_a_change_two_thirds_of_the_rows_since_then_are_learnt(
    bare: MadeModel, changed: int, expected: int
) -> None:
    rows = rows_at(bare.spec, evenly(1000))
    start = holdout_start(bare.spec, rows, FIRST, FIRST + 100 * DAY, FIRST + 70 * DAY, FIRST + changed * DAY)
    assert int((rows[bare.spec.event_time] >= start).sum()) == pytest.approx(expected, abs=1)


@pytest.mark.parametrize(("rows", "learnt", "expected"), [(60, None, 30), (100, 40, 30), (100, 90, 5), (100, 99, 1)])
def test_thin_rows_are_held_back_up_to_a_half(bare: MadeModel, rows: int, learnt: int | None, expected: int) -> None:
    until = None if learnt is None else FIRST + learnt * DAY
    assert held(bare.spec, evenly(rows), until) == expected


def test_thick_rows_ask_for_no_more_than_their_share(bare: MadeModel) -> None:
    assert held(bare.spec, evenly(100_000), FIRST + 70 * DAY) == 10_000


def test_irregular_rows_are_counted_and_not_days(bare: MadeModel) -> None:
    """Nine of ten rows come on the last day: a fifth of the days would hold nearly all of them."""
    times = evenly(100, 99) + [FIRST + 99 * DAY + n * timedelta(minutes=1) for n in range(900)]
    assert held(bare.spec, times, None) == 200


def test_rows_of_one_moment_are_not_divided(bare: MadeModel) -> None:
    times = [FIRST] * 100 + [FIRST + DAY] * 100
    assert held(bare.spec, times, None) == 100
    # nothing is new to the champion: its newest rows are shown, and the gate says that they do not count
    assert held(bare.spec, times, FIRST + 2 * DAY) == 100


def test_a_window_keeps_a_row_of_every_class(bare: MadeModel) -> None:
    """The first positives come with the newest tenth."""
    labels = [0] * 900 + [1] * 100
    assert held(bare.spec, evenly(1000), None, labels=labels) == 50


def test_an_explicit_holdout_stands(own_made: MadeModel) -> None:
    assert held(own_made.spec, evenly(1000), None) == 20


def test_short_holdouts_are_judged_by_eighths_and_long_ones_by_days(bare: MadeModel) -> None:
    spec = bare.spec
    short = clusters_of(spec, rows_at(spec, evenly(96, 4)))
    assert len(set(short)) == 8
    assert sorted(short) == list(short)
    assert len(set(clusters_of(spec, rows_at(spec, evenly(200, 10))))) == 10
    assert len(set(clusters_of(spec, rows_at(spec, [FIRST] * 5)))) == 1


def test_a_spec_of_names_and_times_starts_a_life(bare: MadeModel, world: World) -> None:
    stores = world("empty")
    result = bare.first_champion(stores)
    assert (result.verdict, result.first) == (Verdict.ADMIT, True)
    assert stores.registry.version("made", "1").snapshot.rows == 3200
    (line, *_) = power.describe([bare.spec], None)
    for said in ("training.holdout: the newest 20%", "gate.min_rows", "training.window", "training.seed: 0"):
        assert said in line


def test_too_few_rows_say_how_many_a_fit_needs(bare: MadeModel, world: World) -> None:
    made = bare.varied(training={"first": FIRST, "min_rows": 4000})
    with pytest.raises(NotEnoughRows, match=r"3200 labelled rows.*training\.min_rows is 4000"):
        made.first_champion(world("empty"))


# --- window auto -----------------------------------------------------------------------------------------------------


def open_window(made: MadeModel, **training: object) -> MadeModel:
    return made.varied(training={"window": {"policy": "auto", "last": "4d"}, **training})


def retrained(made: MadeModel, stores: Stores, change: str | None, run: str = "retrain-1") -> tuple[str, list[str]]:
    """Window of the retrain at the end of the fifth day, and the windows that were tried."""
    context = made.context(stores, made.day(5).end, run)
    snapshot = retrain.freeze(context, "lost quality", change)
    chosen = windows.choose_window(context, snapshot, before_holdout(made, stores, snapshot))
    return chosen.name, [str(trial.params["window"]) for trial in chosen.trials]


def before_holdout(made: MadeModel, stores: Stores, snapshot: object) -> pd.DataFrame:
    from perennial.data.snapshots import read_snapshot

    rows = read_snapshot(made.context(stores, made.day(5).end), snapshot)  # type: ignore[arg-type]
    return rows[(rows["happened_at"] < snapshot.holdout_start).to_numpy()]  # type: ignore[attr-defined]


def test_after_a_change_the_rows_since_then_win(own_made: MadeModel, world: World) -> None:
    made = open_window(own_made, holdout="1d")
    chosen, tried = retrained(made, world("harmed"), f"{CHANGE:%Y-%m-%d}")
    assert chosen == "since_change"
    assert tried[0] == "all"


def test_rows_from_before_the_champions_own_window_are_not_learnt_again(own_made: MadeModel, world: World) -> None:
    """The champion has learnt what came since the change; nothing has changed since, and nobody names the change."""
    made, stores = open_window(own_made), world("promoted")
    champion = stores.registry.version("made", "2").snapshot
    assert champion.start == CHANGE
    made.live(stores, made.day(10))
    context = made.context(stores, made.day(10).end, "retrain-2")
    snapshot = retrain.freeze(context, "age")
    chosen = windows.choose_window(context, snapshot, before_holdout(made, stores, snapshot))
    assert (chosen.name, chosen.start) == ("as_champion", CHANGE)


def test_where_nothing_changes_all_rows_are_kept(own_made: MadeModel, world: World) -> None:
    made = open_window(own_made)
    chosen, _ = retrained(made, world("stable"), None)
    assert chosen == "all"


def test_candidates_that_learn_the_same_cost_no_fit(own_made: MadeModel, world: World) -> None:
    made = own_made.varied(training={"window": {"policy": "auto", "last": "400d"}})
    assert retrained(made, world("stable"), None) == ("all", [])


def test_too_few_rows_for_a_narrow_window_leave_all(own_made: MadeModel, world: World) -> None:
    made, stores = open_window(own_made), world("stable")
    context = made.context(stores, made.day(5).end, "retrain-1")
    snapshot = retrain.freeze(context, "by hand")
    few = before_holdout(made, stores, snapshot).tail(windows.CANDIDATE_ROWS)
    chosen = windows.choose_window(context, snapshot, few)
    assert (chosen.name, chosen.trials) == ("all", ())


def test_the_run_holds_the_window_and_a_second_run_of_train_finds_it(own_made: MadeModel, world: World) -> None:
    made = open_window(own_made, holdout="1d")
    stores = world("harmed")
    context = made.context(stores, made.day(5).end, "retrain-1")
    snapshot = retrain.freeze(context, "lost quality", f"{CHANGE:%Y-%m-%d}")
    first, again = retrain.train(context, snapshot), retrain.train(context, snapshot)
    assert first == again
    assert stores.registry.evidence(first).window == "since_change"
    result = retrain.gate(context, first)
    assert result.version is not None
    version = stores.registry.version("made", result.version)
    assert version.snapshot.start == CHANGE
    assert version.snapshot.rows < snapshot.rows
    assert version.snapshot.digest != snapshot.digest


def test_a_narrower_window_must_be_better_in_both_halves() -> None:
    whole = np.ones(100)
    assert windows._ratio(np.full(100, 0.8), whole) == pytest.approx(0.8)
    early = np.concatenate([np.full(50, 0.2), np.full(50, 1.3)])
    assert windows._ratio(early, whole) == pytest.approx(1.3)
    assert windows._ratio(whole, np.zeros(100)) == 1.0


def test_the_made_days_are_what_these_tests_take_them_for() -> None:
    assert (START - FIRST, CHANGE - START) == (8 * DAY, 3 * DAY)
    assert FIRST.tzinfo is UTC
