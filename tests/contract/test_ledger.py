"""What every ledger does: in memory, on SQLite, on PostgreSQL."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from perennial.errors import DeploymentConflict, EvidenceError, LedgerError, LedgerTampered
from perennial.records import (
    Deployment,
    EntryHead,
    Lease,
    LedgerEntry,
    Measurement,
    RunLink,
    canonical,
    from_json,
    to_json,
)
from perennial.stores import database as tables
from perennial.stores.chain import hash_entry
from perennial.stores.database import make_engine, upgrade
from perennial.stores.ledger import SqlLedger
from perennial.stores.ports import Ledger

NOW = datetime(2013, 6, 10, 4, 0, 0, 123456, tzinfo=timezone(timedelta(hours=-4)))
RUN = RunLink("run-1", dag_id="flight_delay_monitor", task_id="decide", url="http://127.0.0.1:8080/x?a=b&c")
WEEK_1, WEEK_2 = "2013-06-03T00:00:00", "2013-06-10T00:00:00"


def append(ledger: Ledger, number: int = 0, *, model: str = "flight_delay", **changes: Any) -> LedgerEntry:
    what: dict[str, Any] = {"kind": "drift", "subject": WEEK_1, "verdict": "STABLE", "as_of": NOW, "run": RUN}
    return ledger.append(model=model, **{**what, "body": {"number": number}, **changes})


def deploy(ledger: Ledger, revision: int, champion: str = "1", **changes: Any) -> LedgerEntry:
    what: dict[str, Any] = {"kind": "deployment", "subject": "rollout-1", "verdict": "PROMOTE", "as_of": NOW}
    after = Deployment("flight_delay", revision, champion, salt="s", split=0.05, since=WEEK_1)
    return ledger.deploy(after, **{**what, "body": {}, "run": RUN, **changes})


# --- entries ---------------------------------------------------------------------------------------------------------


def test_an_entry_comes_back_as_it_was_written(ledger: SqlLedger) -> None:
    body = {
        "pi": math.pi,
        "tiny": 5e-324,
        "sum": 0.1 + 0.2,
        "zero": -0.0,
        "big": 2**70,
        "text": 'é "\x00\u2028',
        "n": None,
    }
    written = append(ledger, body={**body, "pair": (1, 2)})
    (read,) = ledger.entries("flight_delay")
    assert read == written
    assert canonical(read.body) == canonical({**body, "pair": [1, 2]})
    assert read.as_of == NOW
    assert read.run == RUN
    assert hash_entry(read) == read.hash
    assert from_json(LedgerEntry, json.loads(canonical(to_json(read)))) == read


def test_each_model_has_its_own_chain(ledger: SqlLedger) -> None:
    first, second = append(ledger, 1), append(ledger, 2)
    other = append(ledger, 3, model="bike_demand")
    assert [first.seq, second.seq, other.seq] == [1, 2, 1]
    assert second.previous == first.hash
    assert ledger.verify("flight_delay") == 2
    assert ledger.verify() == 3


def test_an_entry_with_the_same_key_is_returned_and_not_written_again(ledger: SqlLedger) -> None:
    first = append(ledger, 1, key="monitor:2013-06-03")
    assert append(ledger, 2, key="monitor:2013-06-03") == first
    assert append(ledger, 3, model="bike_demand", key="monitor:2013-06-03") != first
    assert ledger.entries("flight_delay") == (first,)


def test_entries_are_found_by_kind_and_subject_and_the_newest_are_kept(ledger: SqlLedger) -> None:
    a = append(ledger, 1)
    b = append(ledger, 2, kind="retraining", subject=WEEK_2)
    c = append(ledger, 3, model="bike_demand", subject=WEEK_2)
    d = append(ledger, 4, subject=WEEK_2)
    assert ledger.entries() == (a, b, c, d)
    assert ledger.entries("flight_delay", kind="drift") == (a, d)
    assert ledger.entries("flight_delay", subject=WEEK_2) == (b, d)
    assert ledger.entries("flight_delay", newest=2) == (b, d)
    assert ledger.entries(newest=2) == (c, d)
    assert ledger.entries("nobody") == ()


def test_entries_are_found_by_kinds_verdicts_and_number(ledger: SqlLedger) -> None:
    a = append(ledger, 1)
    b = append(ledger, 2, kind="retraining", verdict="RETRAIN")
    c = append(ledger, 3, kind="rollout", verdict="HOLD")
    append(ledger, 4, kind="retraining", verdict="RETRAIN", model="bike_demand")
    d = append(ledger, 5, kind="retraining", verdict="WAIT")
    assert ledger.entries("flight_delay", kind={"retraining", "rollout"}) == (b, c, d)
    assert ledger.entries("flight_delay", kind={"retraining", "rollout"}, verdict={"RETRAIN", "HOLD"}) == (b, c)
    assert ledger.entries("flight_delay", kind="retraining", verdict={"WAIT"}) == (d,)
    assert ledger.entries("flight_delay", since=b.seq) == (b, c, d)
    assert ledger.entries("flight_delay", kind="retraining", since=b.seq + 1) == (d,)
    assert ledger.entries("flight_delay", verdict=()) == ledger.entries("flight_delay", since=d.seq + 1) == ()
    assert ledger.entries("flight_delay", since=a.seq, newest=1) == (d,)


def test_heads_say_what_entries_are_about(ledger: SqlLedger) -> None:
    later = NOW + timedelta(days=7)
    a = append(ledger, 1, kind="validation", verdict="ACCEPT")
    b = append(ledger, 2, kind="validation", verdict="QUARANTINE", subject=WEEK_2, as_of=later)
    c = append(ledger, 3, kind="drift")
    append(ledger, 4, kind="validation", model="bike_demand")
    heads = {
        e.seq: EntryHead(e.seq, e.id, e.kind, e.subject, e.verdict, e.as_of) for e in ledger.entries("flight_delay")
    }
    assert ledger.heads("flight_delay", kind={"validation", "drift"}) == tuple(heads.values())
    assert ledger.heads("flight_delay", kind="validation", verdict={"ACCEPT"}) == (heads[a.seq],)
    assert ledger.heads("flight_delay", kind="validation", since=WEEK_2) == (heads[b.seq],)
    assert ledger.heads("flight_delay", kind="validation", known_by=NOW) == (heads[a.seq],)
    assert ledger.heads("flight_delay", kind="drift", known_by=later) == (heads[c.seq],)
    assert ledger.heads("nobody", kind="drift") == ()


def test_the_newest_moment_of_a_kind_is_the_largest_and_not_the_last(ledger: SqlLedger) -> None:
    later = NOW + timedelta(days=7)
    append(ledger, 1, kind="health", as_of=later)
    append(ledger, 2, kind="health")
    append(ledger, 3, kind="drift", as_of=later + timedelta(days=1))
    assert ledger.newest_moment("flight_delay", kind="health") == later
    assert ledger.newest_moment("flight_delay", kind="retraining") is None


def test_an_entry_is_found_by_the_start_of_its_id(ledger: SqlLedger) -> None:
    entries = [append(ledger, n) for n in range(20)]
    assert ledger.entry(entries[3].id) == entries[3]
    assert ledger.entry(entries[3].id[:12]) == entries[3]
    shared = next(c for c in "0123456789abcdef" if sum(e.id.startswith(c) for e in entries) > 1)
    with pytest.raises(LedgerError, match=f"'{shared}' fits"):
        ledger.entry(shared)
    for nobody in ("zz", ""):
        with pytest.raises(LedgerError, match=f"starts with '{nobody}'"):
            ledger.entry(nobody)


@pytest.mark.parametrize("body", [{"loss": math.nan}, {"loss": math.inf}, {"run": RUN}], ids=["nan", "inf", "object"])
def test_a_body_that_is_not_json_is_refused_and_nothing_is_written(ledger: SqlLedger, body: dict[str, Any]) -> None:
    with pytest.raises(LedgerError, match="not JSON"):
        append(ledger, body=body)
    assert ledger.verify() == 0
    assert append(ledger).seq == 1


def test_a_naive_time_is_refused(ledger: SqlLedger) -> None:
    with pytest.raises(LedgerError, match="naive"):
        append(ledger, as_of=NOW.replace(tzinfo=None))
    with pytest.raises(LedgerError, match="naive"):
        ledger.claim("flight_delay", "retrain", "run-1", NOW.replace(tzinfo=None))


def test_eight_concurrent_appends_make_one_whole_chain(ledger: SqlLedger) -> None:
    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(lambda n: append(ledger, n), range(24)))
    assert sorted(e.seq for e in entries) == list(range(1, 25))
    assert ledger.verify() == 24


def test_concurrent_appends_with_one_key_write_one_entry(ledger: SqlLedger) -> None:
    with ThreadPoolExecutor(8) as pool:
        entries = set(pool.map(lambda n: append(ledger, n, key="same").id, range(8)))
    assert len(entries) == ledger.verify() == 1


# --- deployments -----------------------------------------------------------------------------------------------------


def test_a_deployment_and_its_entry_are_one(ledger: SqlLedger) -> None:
    assert ledger.deployment("flight_delay") is None
    first, second = deploy(ledger, 1), deploy(ledger, 2, "2")
    assert ledger.deployment("flight_delay") == second.deployment
    assert ledger.deployments("flight_delay") == (first.deployment, second.deployment)
    assert ledger.entries("flight_delay") == (first, second)
    assert ledger.verify() == 2


@pytest.mark.parametrize("revision", [1, 2, 4], ids=["again", "taken", "too far"])
def test_a_deployment_that_does_not_follow_is_refused_and_names_both(ledger: SqlLedger, revision: int) -> None:
    deploy(ledger, 1)
    deploy(ledger, 2, "2")
    with pytest.raises(
        DeploymentConflict, match=rf"Found: .*champion='2'.*Wanted: .*revision={revision}, champion='9'"
    ):
        deploy(ledger, revision, "9")
    assert ledger.verify() == len(ledger.deployments("flight_delay")) == 2


def test_a_promotion_that_runs_twice_changes_nothing_the_second_time(ledger: SqlLedger) -> None:
    first = deploy(ledger, 1, key="rollout-1:0")
    deploy(ledger, 2, "2")
    assert deploy(ledger, 1, key="rollout-1:0") == first
    assert [d.champion for d in ledger.deployments("flight_delay")] == ["1", "2"]


def test_of_two_racing_promoters_exactly_one_wins(ledger: SqlLedger) -> None:
    deploy(ledger, 1)

    def promote(champion: str, revision: int) -> bool:
        try:
            deploy(ledger, revision, champion)
        except DeploymentConflict:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for revision in range(2, 202):
            won = list(pool.map(promote, ["a", "b"], [revision, revision]))
            assert sum(won) == 1
            now = ledger.deployment("flight_delay")
            assert now is not None
            assert now.champion == ("a" if won[0] else "b")
    assert ledger.verify() == 201


# --- measurements ----------------------------------------------------------------------------------------------------


def test_the_newest_value_of_each_measurement_is_read_by_partition(ledger: SqlLedger) -> None:
    first = Measurement("flight_delay", WEEK_2, "log_loss", "1", 0.5, 100, NOW)
    later = replace(first, value=0.1 + 0.2, rows=120, as_of=NOW + timedelta(days=1))
    earlier_week = replace(first, partition=WEEK_1)
    sliced = replace(first, slice="carrier=UA", version="2")
    ledger.measure([first, later, earlier_week])
    ledger.measure([sliced])
    assert ledger.measurements("flight_delay") == (earlier_week, later, sliced)
    assert ledger.measurements("flight_delay", version="2") == (sliced,)
    assert ledger.measurements("flight_delay", partition=WEEK_1, name="log_loss") == (earlier_week,)
    assert ledger.measurements("flight_delay", since=WEEK_2) == (later, sliced)
    assert ledger.measurements("flight_delay", name="auc") == ledger.measurements("bike_demand") == ()


def test_measuring_again_replaces_the_value(ledger: SqlLedger) -> None:
    one = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 100, NOW)
    ledger.measure([one])
    ledger.measure([replace(one, value=0.7, rows=99), replace(one, value=0.6, rows=98)])
    assert ledger.measurements("flight_delay") == (replace(one, value=0.6, rows=98),)
    ledger.measure([])


@pytest.mark.parametrize(("value", "rows"), [(math.nan, 1), (-math.inf, 1), (0.5, -1)])
def test_a_number_that_no_rule_can_judge_is_not_stored(ledger: SqlLedger, value: float, rows: int) -> None:
    good = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 100, NOW)
    with pytest.raises(EvidenceError, match=f"log_loss.*{value} on {rows} rows"):
        ledger.measure([good, replace(good, name="log_loss", value=value, rows=rows)])
    assert ledger.measurements("flight_delay") == ()


@pytest.mark.parametrize("values", [[0.5, 0.6, 0.5], [0.5, 0.6, 0.5, 0.5], [0.5, 0.6, 0.5, 0.6, 0.5]])
def test_figures_that_return_to_what_they_were_hold(ledger: SqlLedger, values: list[float]) -> None:
    """Labels of a batch come, are withdrawn and come again, and a run that is tried again measures each time."""
    first = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 100, NOW)
    other = replace(first, partition=WEEK_2)
    for value in values:
        ledger.measure([replace(first, value=value), other], subject=WEEK_2, run=RUN)
        ledger.verify()
    assert {one.value for one in ledger.measurements("flight_delay", partition=WEEK_1)} == {values[-1]}
    # a try that finds its own figures there adds nothing
    assert len(ledger.entries("flight_delay")) == sum(
        before != after for before, after in zip([None, *values], values, strict=False)
    )


def test_figures_of_a_part_of_the_partitions_are_the_newest_of_these(ledger: SqlLedger) -> None:
    first = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 100, NOW)
    second = replace(first, partition=WEEK_2)
    for numbers in ([first, second], [replace(second, value=0.7)], [first, second], [first, second]):
        ledger.measure(numbers, subject=WEEK_2, run=RUN)
        ledger.verify()
    assert len(ledger.entries("flight_delay")) == 3


class Elsewhere:
    """A place for heads that writes to the ledger itself: it could not while a transaction holds the chain."""

    def __init__(self, url: str) -> None:
        self.kept: list[str] = []
        self._other = SqlLedger(make_engine(url, wait_seconds=0.5))

    def keep(self, entry: LedgerEntry) -> None:
        append(self._other, key=f"kept {len(self.kept)}")
        self.kept.append(entry.id)

    def close(self) -> None:
        self._other.close()


def test_heads_are_kept_after_the_transaction_also_by_a_second_try(ledger_url: str) -> None:
    upgrade(ledger_url)
    heads = Elsewhere(ledger_url)
    ledger = SqlLedger(make_engine(ledger_url), heads)  # type: ignore[arg-type]
    number = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 100, NOW)
    for write in (
        lambda: append(ledger, key="once"),
        lambda: deploy(ledger, 1, key="first"),
        lambda: ledger.measure([number], subject=WEEK_1, run=RUN),
    ):
        write()
        write()
    assert len(heads.kept) == 6
    assert len(set(heads.kept)) == 3
    ledger.close()
    heads.close()


# --- leases ----------------------------------------------------------------------------------------------------------


def test_fifty_concurrent_claims_have_one_winner(ledger: SqlLedger) -> None:
    with ThreadPoolExecutor(10) as pool:
        won = list(pool.map(lambda n: ledger.claim("flight_delay", "retrain", f"run-{n}", NOW), range(50)))
    assert sum(won) == 1
    assert ledger.holder("flight_delay", "retrain") == f"run-{won.index(True)}"


def test_a_lease_is_its_holders_until_it_is_given_back(ledger: SqlLedger) -> None:
    assert ledger.holder("flight_delay", "retrain") is None
    assert ledger.claim("flight_delay", "retrain", "run-1", NOW)
    assert ledger.claim("flight_delay", "retrain", "run-1", NOW)
    assert not ledger.claim("flight_delay", "retrain", "run-2", NOW)
    assert ledger.claim("flight_delay", "rollout", "run-2", NOW)
    assert ledger.claim("bike_demand", "retrain", "run-2", NOW)
    ledger.release("flight_delay", "retrain", "run-2")
    assert ledger.holder("flight_delay", "retrain") == "run-1"
    ledger.release("flight_delay", "retrain", "run-1")
    ledger.release("flight_delay", "retrain", "run-1")
    assert ledger.claim("flight_delay", "retrain", "run-2", NOW)


def silent(ledger: SqlLedger, alive_at: str | None) -> None:
    """Make every lease as old as that; None: from before leases had signs of life."""
    with ledger._writer.begin() as connection:
        connection.execute(sa.update(tables.leases).values(alive_at=alive_at))


def seize(ledger: SqlLedger, lease: Lease, holder: str) -> bool:
    return ledger.seize(
        "flight_delay",
        "retrain",
        lease,
        holder,
        kind="retrain",
        subject=lease.holder,
        verdict="EXPIRED",
        as_of=NOW,
        body={"reason": "it is dead"},
        run=RUN,
    )


def test_a_lease_says_for_how_long_its_holder_has_been_silent(ledger: SqlLedger) -> None:
    assert ledger.lease("flight_delay", "retrain") is None
    ledger.claim("flight_delay", "retrain", "run-1", NOW, process="here")
    lease = ledger.lease("flight_delay", "retrain")
    assert lease is not None
    assert (lease.holder, lease.process) == ("run-1", "here")
    assert timedelta(0) <= lease.silence < timedelta(minutes=10)
    silent(ledger, "2020-01-01T00:00:00.000+00:00")
    # another's claim is no sign of life
    assert not ledger.claim("flight_delay", "retrain", "run-2", NOW)
    lease = ledger.lease("flight_delay", "retrain")
    assert lease is not None
    assert lease.silence > timedelta(days=365)
    for sign in (
        lambda: ledger.give_sign("flight_delay", "retrain", "run-1"),
        lambda: ledger.claim("flight_delay", "retrain", "run-1", NOW),
    ):
        silent(ledger, "2020-01-01T00:00:00.000+00:00")
        assert sign()
        lease = ledger.lease("flight_delay", "retrain")
        assert lease is not None
        assert lease.silence < timedelta(minutes=10)
    assert not ledger.give_sign("flight_delay", "retrain", "run-2")


def test_the_silence_of_a_lease_from_before_begins_when_somebody_looks(ledger: SqlLedger) -> None:
    ledger.claim("flight_delay", "retrain", "run-1", NOW)
    silent(ledger, None)
    lease = ledger.lease("flight_delay", "retrain")
    assert lease is not None
    assert lease.silence < timedelta(minutes=10)


def test_of_many_that_take_over_a_lease_one_does_and_the_entry_is_written_once(ledger: SqlLedger) -> None:
    ledger.claim("flight_delay", "retrain", "dead", NOW)
    silent(ledger, "2020-01-01T00:00:00.000+00:00")
    lease = ledger.lease("flight_delay", "retrain")
    assert lease is not None
    with ThreadPoolExecutor(10) as pool:
        won = list(pool.map(lambda n: seize(ledger, lease, f"run-{n}"), range(20)))
    assert sum(won) == 1
    assert ledger.holder("flight_delay", "retrain") == f"run-{won.index(True)}"
    assert [entry.verdict for entry in ledger.entries("flight_delay")] == ["EXPIRED"]
    assert ledger.verify("flight_delay") == 1


def test_a_lease_whose_holder_gave_a_sign_meanwhile_is_not_taken_over(ledger: SqlLedger) -> None:
    ledger.claim("flight_delay", "retrain", "slow", NOW)
    silent(ledger, "2020-01-01T00:00:00.000+00:00")
    lease = ledger.lease("flight_delay", "retrain")
    assert lease is not None
    assert ledger.give_sign("flight_delay", "retrain", "slow")
    assert not seize(ledger, lease, "run-2")
    assert ledger.holder("flight_delay", "retrain") == "slow"
    assert ledger.entries("flight_delay") == ()


# --- tampering -------------------------------------------------------------------------------------------------------

Tamper = Callable[[sa.Connection, list[LedgerEntry]], object]
D, H, P = tables.decisions, tables.chain_heads, tables.deployments


def _at(seq: int) -> sa.Update:
    return sa.update(D).where(D.c.seq == seq)


def _swap(connection: sa.Connection, entries: list[LedgerEntry]) -> None:
    for before, after in ((2, 99), (3, 2), (99, 3)):
        connection.execute(_at(before).values(seq=after))


def _rewrite(connection: sa.Connection, entries: list[LedgerEntry]) -> None:
    forged = replace(entries[1], verdict="DRIFTED")
    sealed = hash_entry(forged)
    values = {"verdict": "DRIFTED", "hash": sealed, "id": sealed[:16]}
    connection.execute(_at(2).values(values))


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (lambda c, _: c.execute(_at(2).values(verdict="DRIFTED")), r"seq 2 \({1}\) was edited"),
        (lambda c, _: c.execute(_at(3).values(body="{}")), r"seq 3 \({2}\) was edited"),
        (lambda c, _: c.execute(_at(3).values(run="no JSON")), r"seq 3 \({2}\) was edited: it cannot be read"),
        (lambda c, _: c.execute(_at(1).values(key="k")), r"seq 1 \({0}\) was edited"),
        (lambda c, _: c.execute(_at(4).values(id="x")), r"seq 4 \(x\) was edited"),
        (_rewrite, r"seq 2 \(\w+\) was replaced"),
        (lambda c, _: c.execute(sa.delete(D).where(D.c.seq == 1)), r"seq 1 \(the last of them {0}\) was dropped"),
        (lambda c, _: c.execute(sa.delete(D).where(D.c.seq == 3)), r"seq 3 \(the last of them {2}\) was dropped"),
        (lambda c, _: c.execute(sa.delete(D).where(D.c.seq.in_([2, 3]))), r"seq 2 to 3 \(the last of them {2}\)"),
        (lambda c, _: c.execute(sa.delete(D).where(D.c.seq == 5)), r"seq 5 \(the last of them {4}\) was dropped"),
        (lambda c, _: c.execute(sa.delete(D)), r"seq 1 to 5 \(the last of them {4}\) was dropped"),
        (_swap, r"seq 2 \({2}\) was reordered: it was written as seq 3"),
        (lambda c, _: c.execute(sa.delete(H)), r"seq 5 \({4}\) is the last found, but the head"),
        (lambda c, _: c.execute(sa.update(H).values(seq=4)), r"seq 5 \({4}\) was added behind the head"),
        (lambda c, _: c.execute(sa.update(P).values(champion="9")), r"seq 4 \({3}\) records .* table was edited"),
        (lambda c, _: c.execute(sa.delete(P).where(P.c.revision == 2)), r"seq 5 \({4}\) records .* it holds None"),
        (lambda c, _: c.execute(sa.insert(P).values(to_json(Deployment("flight_delay", 3, "9")))), "revision 3 has no"),
    ],
    ids=[
        "verdict", "body", "unreadable", "key", "id", "edited and hashed anew", "first dropped", "middle dropped",
        "two dropped", "tail dropped", "all dropped", "reordered", "head dropped", "head set back", "deployment edited",
        "deployment dropped", "deployment slipped in",
    ],
)  # fmt: skip
def test_a_tampered_ledger_names_the_entry(ledger: SqlLedger, tamper: Tamper, named: str) -> None:
    entries = [append(ledger, n) for n in range(3)] + [deploy(ledger, 1), deploy(ledger, 2, "2")]
    append(ledger, model="surge", key="k")
    with ledger._writer.begin() as connection:
        tamper(connection, entries)
    expected = "ledger of 'flight_delay'.*" + named.format(*(entry.id for entry in entries))
    with pytest.raises(LedgerTampered, match=expected):
        ledger.verify("flight_delay")
    with pytest.raises(LedgerTampered, match=expected):
        ledger.verify()


# --- crashes ---------------------------------------------------------------------------------------------------------

#: a process that is killed before its n-th statement, for every n, in forks of one interpreter
_CRASHES = """
import os, signal, sys
from datetime import UTC, datetime
import sqlalchemy as sa
from perennial.records import Deployment, RunLink
from perennial.stores.database import make_engine
from perennial.stores.ledger import SqlLedger

def promote(kill_before):
    engine = make_engine(sys.argv[1])
    seen = 0
    def count(*_):
        nonlocal seen
        seen += 1
        if seen == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
    sa.event.listen(engine, "before_cursor_execute", count)
    sa.event.listen(engine, "commit", count)
    after = Deployment("flight_delay", 2, "2")
    SqlLedger(engine).deploy(after, kind="deployment", subject="r", verdict="PROMOTE", key="promote",
                             as_of=datetime(2013, 6, 10, tzinfo=UTC), body={}, run=RunLink("run-1"))

for kill_before in range(1, 100):
    child = os.fork()
    if child == 0:
        promote(kill_before)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    check = SqlLedger(make_engine(sys.argv[1]))
    print(kill_before, os.WIFSIGNALED(status), check.deployment("flight_delay").champion, check.verify(), flush=True)
    check.close()
    if not os.WIFSIGNALED(status):
        break
"""


def test_a_promotion_killed_between_any_two_writes_leaves_the_old_deployment(ledger_url: str) -> None:
    upgrade(ledger_url)
    ledger = SqlLedger(make_engine(ledger_url))
    deploy(ledger, 1)
    ledger.close()
    told = subprocess.run([sys.executable, "-c", _CRASHES, ledger_url], capture_output=True, text=True, check=True)
    killed = [line.split() for line in told.stdout.splitlines()]
    assert len(killed) > 7
    assert [line[1:] for line in killed[:-1]] == [["True", "1", "1"]] * (len(killed) - 1)
    assert killed[-1][1:] == ["False", "2", "2"]


_UPGRADES = """
import os, sys
from perennial.stores.database import upgrade
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        upgrade(sys.argv[1])
        os._exit(0)
    children.append(child)
sys.exit(sum(os.waitpid(child, 0)[1] != 0 for child in children))
"""


def test_eight_processes_may_upgrade_at_once(ledger_url: str) -> None:
    told = subprocess.run([sys.executable, "-c", _UPGRADES, ledger_url], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (0, "")
    upgrade(ledger_url)
    ledger = SqlLedger(make_engine(ledger_url))
    assert append(ledger).seq == 1
    ledger.close()


# --- the database ----------------------------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_that_the_code_uses(ledger_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    upgrade(ledger_url)
    engine = make_engine(ledger_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": tables.VERSION_TABLE})
        assert compare_metadata(context, tables.metadata) == []
        assert context.get_current_revision() == tables.REVISION
    engine.dispose()
    config = Config()
    config.set_main_option("script_location", "perennial.stores:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == tables.REVISION


def test_readers_of_sqlite_do_not_wait_for_the_writer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    upgrade(url)
    ledger = SqlLedger(make_engine(url))
    append(ledger)
    with ledger._writer.begin():
        assert ledger.verify() == 1
    ledger.close()


def test_a_ledger_of_a_newer_release_is_left_alone(ledger_url: str) -> None:
    upgrade(ledger_url)
    engine = make_engine(ledger_url)
    with engine.execution_options(writes=True).begin() as connection:
        connection.execute(sa.text(f"UPDATE {tables.VERSION_TABLE} SET version_num = '9999'"))  # noqa: S608 - our name
    engine.dispose()
    with pytest.raises(LedgerError, match=r"9999.*install that release"):
        upgrade(ledger_url)


def test_a_ledger_that_was_not_upgraded_says_so(ledger_url: str) -> None:
    ledger = SqlLedger(make_engine(ledger_url))
    with pytest.raises(LedgerError, match="upgrade"):
        append(ledger)
    ledger.close()


@pytest.mark.parametrize(
    "url", ["sqlite:////nowhere/at/all/ledger.db", "postgresql+psycopg2://perennial:secret@127.0.0.1:9/ledger"]
)
def test_a_ledger_that_cannot_be_reached_is_named_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError) as told:
        upgrade(url)
    ledger = SqlLedger(make_engine(url))
    with pytest.raises(LedgerError) as told_later:
        ledger.verify()
    ledger.close()
    for text in (str(told.value), str(told_later.value)):
        assert url.rsplit("/", 1)[-1] in text
        assert "secret" not in text


def test_times_sort_as_text(ledger: SqlLedger) -> None:
    one = Measurement("flight_delay", WEEK_1, "log_loss", "1", 0.5, 1, datetime(2013, 6, 3, tzinfo=UTC))
    later = replace(one, value=0.6, as_of=one.as_of + timedelta(microseconds=1))
    ledger.measure([later])
    ledger.measure([one])
    assert ledger.measurements("flight_delay") == (later,)
