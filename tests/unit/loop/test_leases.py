"""A lease whose run is dead, and everything else that stands still for longer than its plan."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Event as Signal
from typing import Any

import pytest
import sqlalchemy as sa
from made_model import DAY, MadeModel

from perennial.errors import LeaseTaken
from perennial.loop import drift_sensor, process, retrain, rollout, turn, watch
from perennial.loop.process import has_died, own_process
from perennial.loop.retrain import lease as lease_file
from perennial.model import training
from perennial.records import Event, Kind, Outcome, RetrainBody
from perennial.stores.database import leases
from perennial.stores.ports import RETRAIN_LEASE, Stores

World = Callable[[str], Stores]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def silent(stores: Stores, since: datetime = LONG_AGO) -> None:
    """Nothing was heard of the holder of any lease since then."""
    with stores.ledger._writer.begin() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.update(leases).values(alive_at=since.isoformat()))


def orphaned(stores: Stores) -> None:
    """A lease of 2020."""
    assert stores.ledger.claim("made", RETRAIN_LEASE, "dead-run", LONG_AGO)
    silent(stores)


def test_a_lease_of_2020_does_not_stop_retraining_and_its_takeover_is_in_the_ledger(
    made: MadeModel, world: World
) -> None:
    stores = world("harmed")
    orphaned(stores)
    asked = made.decide(stores, made.day(5), "another look")
    assert asked.verdict == "RETRAIN"
    assert made.retrain(stores, made.day(5).end, "retrain-1", asked.reason, asked.change_partition).version == "2"
    [entry] = stores.ledger.entries("made", kind=Kind.RETRAIN)
    assert (entry.verdict, entry.subject, entry.run.run_id) == (Event.EXPIRED, "dead-run", "retrain-1")
    assert entry.read(RetrainBody).reason.startswith("it gave no sign of life for ")
    assert entry.read(RetrainBody).reason.endswith("training.lease is 1 day, 0:00:00")
    assert drift_sensor.past_retrains(stores.ledger, "made").retrains[-1].outcome == Outcome.ADMITTED


def test_a_lease_whose_run_is_heard_of_keeps_others_out(made: MadeModel, world: World) -> None:
    stores = world("harmed")
    assert stores.ledger.claim("made", RETRAIN_LEASE, "at work", made.day(5).end)
    assert made.decide(stores, made.day(5), "another look").verdict == "WAIT"
    with pytest.raises(LeaseTaken, match=r"run at work is under way.*\(training\.lease\)"):
        made.retrain(stores, made.day(5).end, "retrain-1")


@pytest.mark.parametrize(("keys", "hours"), [({}, 24), ({"lease": "6h"}, 6)])
def test_how_long_a_lease_lives_is_in_the_spec_or_derived(
    keys: dict[str, str], hours: int, own_made: MadeModel
) -> None:
    assert own_made.varied(training=keys).spec.lease == timedelta(hours=hours)


@pytest.mark.parametrize(("cron", "hours"), [("*/15 * * * *", 1), ("0 */6 * * *", 6), ("0 0 * * 0", 24)])
def test_a_derived_lease_is_a_batch_between_an_hour_and_a_day(cron: str, hours: int, own_made: MadeModel) -> None:
    assert own_made.varied(schedule={"cron": cron}).spec.lease == timedelta(hours=hours)


def test_an_admitted_challenger_waits_for_its_rollout_as_long_as_a_rollout_may_last(
    made: MadeModel, world: World
) -> None:
    """A person has not approved it yet, and the process that made it has long ended."""
    stores, dead = world("admitted"), own_process().rpartition("/")[0] + "/0"
    context = made.context(stores, made.day(6).end, "retrain-2")
    plan = made.spec.rollout_plan.max_age
    assert plan is not None
    with stores.ledger._writer.begin() as connection:  # type: ignore[attr-defined]
        connection.execute(sa.update(leases).values(process=dead))
    assert retrain.expired(context) is None
    silent(stores, datetime.now(UTC) - plan + DAY)
    assert retrain.expired(context) is None
    silent(stores, datetime.now(UTC) - plan - DAY)
    expired = retrain.expired(context)
    assert expired is not None
    assert expired[0] == "retrain-1"
    assert "its rollout was not opened (rollout.max_age)" in expired[1]
    assert made.retrain(stores, made.day(6).end, "retrain-2", "more is known", made.day(3).key).version == "3"
    # the older one may still be approved, where no other rollout is under way
    rollout.open_rollout(made.context(stores, made.day(6).end, "late"), "2", "late")
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "retrain-2"


def test_a_slow_run_whose_place_was_taken_is_not_judged(made: MadeModel, world: World) -> None:
    stores, as_of = world("harmed"), made.day(5).end
    slow = made.context(stores, as_of, "slow")
    mlflow_run = retrain.train(slow, retrain.freeze(slow, "lost quality", made.day(3).key))
    silent(stores)
    retrain.freeze(made.context(stores, as_of, "quick"), "lost quality", made.day(3).key)
    with pytest.raises(LeaseTaken, match="run quick has taken over its lease"):
        retrain.gate(slow, mlflow_run)
    assert [e.verdict for e in stores.ledger.entries("made", kind=Kind.RETRAIN)] == ["EXPIRED", "SKIPPED"]
    assert stores.ledger.entries("made", kind=Kind.PROMOTION)[-1].run.run_id != "slow"
    assert stores.ledger.holder("made", RETRAIN_LEASE) == "quick"


def test_a_run_gives_signs_of_life_while_it_fits(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores, given = world("harmed"), Signal()
    monkeypatch.setattr(lease_file, "_SIGN_SECONDS", 0.01)
    give = stores.ledger.give_sign

    def note(*args: Any) -> bool:
        given.set()
        return give(*args)

    monkeypatch.setattr(stores.ledger, "give_sign", note)
    fit = training.fit

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert given.wait(60), "no sign was given in a minute"
        return fit(*args, **kwargs)

    monkeypatch.setattr(training, "fit", slow)
    turn.retrain_once(made.context(stores, made.day(5).end, "retrain-1"), "lost quality", made.day(3).key)


# --- processes -------------------------------------------------------------------------------------------------------


@pytest.fixture
def own() -> str:
    process = own_process()
    if not process:
        pytest.skip("this system does not tell processes apart")
    return process


def test_a_process_is_known_to_have_died_only_where_it_lived(own: str) -> None:
    assert not has_died(own)
    assert not has_died("")
    assert has_died(own.rpartition("/")[0] + "/0")
    # the same numbers on another machine say nothing
    assert not has_died("another-boot/pid:[1]/1/1")


@pytest.mark.usefixtures("own")
def test_a_killed_process_is_known_to_have_died() -> None:
    code = "from perennial.loop.process import own_process; print(own_process(), flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        named = child.stdout.readline().strip()
        assert not has_died(named)
        child.kill()
        child.wait()
        assert has_died(named)


def test_a_process_that_proc_hides_is_not_taken_for_dead(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted with hidepid, /proc does not show the processes of other users."""

    def hidden(pid: int) -> str:
        raise FileNotFoundError(f"/proc/{pid}/stat")

    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    gone = f"{own.rsplit('/', 2)[0]}/{child.pid}/1"
    monkeypatch.setattr(process, "_start", hidden)
    assert not has_died(own)
    assert has_died(gone)


# --- what stands still -----------------------------------------------------------------------------------------------


def told(made: MadeModel, stores: Stores, as_of: datetime, run: str = "look") -> list[str]:
    return [stuck.what for stuck in watch.watch(made.context(stores, as_of, run))]


@pytest.mark.parametrize("at", ["empty", "champion", "stable", "opened", "canary", "promoted"])
def test_a_loop_that_moves_is_not_told(at: str, made: MadeModel, world: World) -> None:
    assert told(made, world(at), made.day(6).end) == []


def test_a_lost_lease_is_told_once_a_day(made: MadeModel, world: World) -> None:
    stores = world("stable")
    orphaned(stores)
    assert told(made, stores, made.day(3).end) == ["lease"]
    assert told(made, stores, made.day(3).end, "an hour later") == []
    assert told(made, stores, made.day(4).end, "a day later") == ["lease"]
    entry = stores.ledger.entries("made", kind=Kind.WATCH)[0]
    assert (entry.verdict, entry.subject, entry.body["what"]) == (Event.STUCK, "dead-run", "lease")


def test_an_approval_that_nobody_gives_is_told_again(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    silent(stores, datetime.now(UTC) - 3 * DAY)
    [stuck] = watch.watch(made.context(stores, made.day(6).end, "look"))
    assert stuck.what == "approval"
    assert "run retrain-1 has made was admitted, and waits for its rollout since 3 days" in stuck.text


def test_a_rollout_that_nobody_judges_is_told(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(rollout={"max_age": "3d"}), world("opened")
    assert told(made, stores, made.day(10).end) == []
    assert told(made, stores, made.day(11).end) == ["rollout"]


def test_a_rollout_that_serves_nobody_is_told(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    rollout.open_rollout(made.context(stores, made.day(5).end, "r"), "2", "r")
    assert told(made, stores, made.day(7).end) == []
    assert told(made, stores, made.day(8).end) == ["rollout"]


def test_batches_that_nobody_scores_are_told_by_the_wall_clock(own_made: MadeModel, world: World) -> None:
    made, stores = own_made.varied(schedule={"clock": "wall"}), world("stable")
    assert told(made, stores, made.day(3).end) == []
    assert told(made, stores, made.day(4).end) == ["batches"]
    # behind the schedule's end no batch is due
    ended = made.varied(schedule={"end": "2025-03-13"})
    assert "batches" not in told(ended, world("stable"), made.day(100).end)


def test_batches_that_stay_in_quarantine_are_told(made: MadeModel, world: World) -> None:
    stores = world("stable")
    for number, expected in ((3, []), (4, ["quarantine"])):
        day = made.day(number)
        held = {"kind": "validation", "subject": day.key, "verdict": "QUARANTINE", "as_of": day.end, "body": {}}
        stores.ledger.append(model="made", run=made.context(stores, day.end).run, **held)
        assert told(made, stores, day.end) == expected


def test_labels_that_do_not_come_are_told(own_made: MadeModel, world: World) -> None:
    made, stores = own_made, world("stable")
    for number, expected in ((3, []), (4, []), (5, []), (6, ["labels"])):
        day = made.day(number)
        made.labels_file(day).unlink()
        made.score(stores, day)
        made.monitor(stores, day)
        assert told(made, stores, day.end) == expected, number
