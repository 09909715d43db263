"""Decisions that can be audited: races, triggers at once, `kill -9`, a tampered ledger, decisions made again.

Everything runs against the shipped stores. The loop is lived through once with the made model of the tests
(`tests/support`, put on the path here: there is no second model that lives through a whole rollout in seconds); the
checks of its batches are answered at once, they are not what is measured. PostgreSQL takes part where
PERENNIAL_TEST_POSTGRES names a server, as in the tests: in a database of its own, dropped at the end.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import patch

import numpy as np
import sqlalchemy as sa
from processes import PROJECT
from rates.tables import Claim, Figure, Runner, Section, Table, share

from perennial import decisions
from perennial.decisions import drift, promotion, retraining, rollout
from perennial.errors import DeploymentConflict, LeaseTaken, LedgerTampered
from perennial.loop import retrain
from perennial.loop import rollout as rollout_steps
from perennial.measures import checks
from perennial.records import (
    Calibration,
    ColumnProfile,
    Decision,
    Deployment,
    DriftEvidence,
    LedgerEntry,
    LossSum,
    Outcome,
    PairedSum,
    PastRetrain,
    Profile,
    PromotionEvidence,
    QualityPoint,
    RetrainingEvidence,
    RetrainingHistory,
    RolloutEvidence,
    RolloutHistory,
    RunLink,
    StageEvidence,
    ValidationReport,
    canonical,
    from_json,
    to_json,
)
from perennial.spec import NEVER, Gate, Monitoring, Retraining, Rollout
from perennial.stores.chain import hash_entry
from perennial.stores.database import chain_heads, make_engine, metadata, upgrade
from perennial.stores.database import decisions as entries
from perennial.stores.ledger import SqlLedger
from perennial.stores.memory import open_memory
from perennial.stores.ports import Stores
from perennial.stores.registry import MlflowRegistry

sys.path.insert(0, str(PROJECT / "tests" / "support"))

NOW = datetime(2013, 6, 10, 4, tzinfo=UTC)
#: outcomes that a past retrain may have had
ENDED = (Outcome.ADMITTED, Outcome.REFUSED, Outcome.PROMOTED)
RUN = RunLink("run-1", "dag", "task", "http://127.0.0.1/run-1")
TRIGGERS = 50
#: day at whose end the made model's sensor asks for a retrain; see tests/support/made_model.py
RETRAIN_DAY = 5


# --- databases -------------------------------------------------------------------------------------------------------


def postgres() -> str:
    """The server's URL, empty where none is named."""
    return os.environ.get("PERENNIAL_TEST_POSTGRES", "")


def kinds() -> list[str]:
    """The databases that can be asked here."""
    return ["SQLite", *(["PostgreSQL"] if postgres() else [])]


@contextmanager
def database(kind: str) -> Iterator[str]:
    """The URL of a new, migrated ledger; it is gone afterwards."""
    if kind == "SQLite":
        with tempfile.TemporaryDirectory() as folder:
            url = f"sqlite:///{folder}/ledger.db"
            upgrade(url)
            yield url
        return
    name = f"perennial_bench_{secrets.token_hex(6)}"
    server = sa.create_engine(postgres(), isolation_level="AUTOCOMMIT")
    with server.connect() as connection:
        connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
    try:
        url = sa.make_url(postgres()).set(database=name).render_as_string(hide_password=False)
        upgrade(url)
        yield url
    finally:
        with server.connect() as connection:
            connection.execute(sa.text(f'DROP DATABASE "{name}" WITH (FORCE)'))
        server.dispose()


def copy_ledger(source: SqlLedger, url: str) -> SqlLedger:
    """The same rows in another database."""
    engine = make_engine(url)
    with source._reader.begin() as ours, engine.begin() as theirs:  # noqa: SLF001 - whole tables, below the port
        for table in metadata.sorted_tables:
            rows = [dict(row) for row in ours.execute(sa.select(table)).mappings()]
            theirs.execute(sa.delete(table))
            if rows:
                theirs.execute(sa.insert(table), rows)
        if engine.dialect.name == "postgresql":
            newest = "SELECT setval(pg_get_serial_sequence('decisions', 'position'), max(position)) FROM decisions"
            theirs.execute(sa.text(newest))
    return SqlLedger(engine)


# --- two promoters -----------------------------------------------------------------------------------------------


def race(item: tuple[str, int]) -> list[bool]:
    """Two processes deploy their own champion as the same revision, try after try: whether exactly one won each."""
    kind, tries = item
    context = multiprocessing.get_context("fork")
    with database(kind) as url:
        ledger = SqlLedger(make_engine(url))
        _deploy(ledger, 1, "0")
        ledger.close()
        barrier, answers = context.Barrier(2), context.SimpleQueue()
        runners = [context.Process(target=_promoter, args=(url, name, tries, barrier, answers)) for name in "ab"]
        for runner in runners:
            runner.start()
        won = dict(answers.get() for _ in runners)
        for runner in runners:
            runner.join()
        served = [after.champion for after in ledger.deployments("made")[1:]]
        whole = ledger.verify() == tries + 1 == len(served) + 1
        ledger.close()
    return [
        whole and sorted([a, b]) == ["lost", "won"] and champion == ("a" if a == "won" else "b")
        for a, b, champion in zip(won["a"], won["b"], served, strict=True)
    ]


def _promoter(url: str, name: str, tries: int, barrier: Any, answers: Any) -> None:
    ledger = SqlLedger(make_engine(url))
    found = []
    for revision in range(2, tries + 2):
        barrier.wait(60)
        try:
            _deploy(ledger, revision, name)
            found.append("won")
        except DeploymentConflict:
            found.append("lost")
        except Exception as error:  # noqa: BLE001 - counted as a failure of the race, whatever it was
            found.append(repr(error))
    answers.put((name, found))


def _deploy(ledger: SqlLedger, revision: int, champion: str, subject: str = "rollout") -> LedgerEntry:
    return ledger.deploy(
        Deployment("made", revision, champion),
        kind="deployment",
        subject=subject,
        verdict="PROMOTE",
        as_of=NOW,
        body={"champion": champion},
        run=RUN,
    )


# --- the made model ----------------------------------------------------------------------------------------------


def _live(folder: Path) -> tuple[Any, Stores, Stores]:
    """The made model; its stores when the sensor asks for a retrain; and when the last stage was measured."""
    from clones import clone
    from made_model import write_model

    made, stores = write_model(folder / "made"), open_memory()
    made.first_champion(stores)
    for number in range(RETRAIN_DAY + 1):
        verdict = made.live(stores, made.day(number))
    harmed = clone(stores)
    as_of = made.day(RETRAIN_DAY).end
    gate = made.retrain(stores, as_of, RunLink("retrain-1"), verdict.reason, verdict.change_partition)
    made.open(stores, gate.version, as_of)
    day = RETRAIN_DAY
    while (now := stores.ledger.deployment("made")) and now.split < 1:
        day += 1
        made.stage(stores, made.day(day))
    made.score(stores, made.day(day + 1))
    made.monitor(stores, made.day(day + 1))
    return made, harmed, stores


def _accepted(batch: Any, suite: checks.Suite, **_: Any) -> ValidationReport:
    return ValidationReport(suite.name, suite.digest, batch.num_rows, 1, 1)


def lived(item: tuple[str, bool, int]) -> dict[str, Any]:
    """Triggers at once, or deaths between two writes, on the made model."""
    what, quick, rounds = item
    with tempfile.TemporaryDirectory() as place, patch.object(checks, "validate", _accepted):
        folder = Path(place)
        made, harmed, last = _live(folder)
        if what == "deaths":
            return _deaths(made, last, folder, step=5 if quick else 1)
        return {kind: [_trigger(made, harmed, kind) for _ in range(rounds)] for kind in kinds()}


# --- fifty triggers ----------------------------------------------------------------------------------------------


def _trigger(made: Any, harmed: Stores, kind: str) -> bool:
    """Fifty retrains at once: whether one snapshot and forty-nine skips are in the ledger, and the chain is whole."""
    from clones import clone

    with database(kind) as url:
        copied = clone(harmed)
        stores = Stores(lake=copied.lake, ledger=copy_ledger(copied.ledger, url), registry=copied.registry)  # type: ignore[arg-type]
        copied.close()
        before, start = len(stores.ledger.entries("made")), Barrier(TRIGGERS)

        def attempt(number: int) -> str:
            start.wait(60)
            run = RunLink(f"retrain-{number}")
            try:
                retrain.freeze(made.context(stores, made.day(RETRAIN_DAY).end, run), "lost quality")
            except LeaseTaken:
                return "skipped"
            return "frozen"

        with ThreadPoolExecutor(TRIGGERS) as pool:
            said = Counter(pool.map(attempt, range(TRIGGERS)))
        new = stores.ledger.entries("made")[before:]
        recorded = Counter((entry.kind, entry.verdict) for entry in new)
        whole = stores.ledger.verify("made") == before + TRIGGERS
        stores.close()
    one_retrain = {("snapshot", "FROZEN"): 1, ("retrain", "SKIPPED"): TRIGGERS - 1}
    return whole and said == {"frozen": 1, "skipped": TRIGGERS - 1} and recorded == one_retrain


# --- kill -9 -----------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[str, str]] = {
    "promotion": ("1", "2"),
    "rollback by the rule": ("1", "1"),
    "rollback by a person": ("1", "1"),
}


def _deaths(made: Any, last: Stores, folder: Path, *, step: int) -> dict[str, list[dict[str, Any]]]:
    """Kill the change's process before each of its writes and commits, to ledger and registry; then run it again."""
    from clones import clone

    base = folder / "base"
    base.mkdir()
    registry = MlflowRegistry(f"sqlite:///{base / 'mlflow.db'}", artifacts=str(folder / "artifacts"))
    for version in ("1", "2"):
        known = last.registry.version("made", version)
        run = last.registry._runs[known.run_id].run  # type: ignore[attr-defined]  # noqa: SLF001 - to log it anew
        registry.register("made", registry.log_run(run).run_id, {})
    registry.set_aliases("made", last.registry.aliases("made"))
    clone(last, base / "ledger.db").close()
    found: dict[str, list[dict[str, Any]]] = {}
    for change in CHANGES:
        found[change] = []
        for writes in range(1, 200, step):
            home = folder / "life"
            shutil.copytree(base, home)
            killed = _in_a_fork(lambda d=change, h=home, w=writes: _die(made, h, d, w)) is None  # type: ignore[misc]
            if killed:
                states = [
                    _in_a_fork(lambda h=home: _state(h)),  # type: ignore[misc]
                    _in_a_fork(lambda d=change, h=home: _again(made, h, d)),  # type: ignore[misc]
                ]
                found[change].append({"killed before": writes, "after": states[0], "again": states[1]})
            shutil.rmtree(home)
            if not killed:
                break
    return found


def _in_a_fork(call: Callable[[], Any]) -> Any:
    """What `call` returns in a fork of this process; None where it was killed."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            os.write(writer, json.dumps(call()).encode())
            os._exit(0)
        except BaseException as error:  # noqa: BLE001 - a fork must never return into the parent's code
            os.write(writer, json.dumps({"error": repr(error)}).encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return None
    answer = json.loads(said)
    if isinstance(answer, dict) and "error" in answer:
        raise RuntimeError(answer["error"])
    return answer


def _stores(home: Path) -> Stores:
    return Stores(
        lake=open_memory().lake,
        ledger=SqlLedger(make_engine(f"sqlite:///{home / 'ledger.db'}")),
        registry=MlflowRegistry(f"sqlite:///{home / 'mlflow.db'}", artifacts=str(home.parent / "artifacts")),
    )


def _do(made: Any, stores: Stores, change: str) -> None:
    as_of = made.day(RETRAIN_DAY + 8).end
    if change == "rollback by a person":
        rollout_steps.roll_back(made.context(stores, as_of, RUN), "unsure")
        return
    now = stores.ledger.deployment("made")
    if change == "rollback by the rule":
        # a guard that no version passes: what is measured is the rollback, not when it happens
        verdict = replace(_rollback_verdict(), verdict="ROLL_BACK")
        with patch.object(rollout_steps.rule, "decide", lambda *_: verdict):
            rollout_steps.judge(made.context(stores, as_of, RUN), "rollout-1", now.stage if now else 0)
        return
    rollout_steps.judge(made.context(stores, as_of, RUN), "rollout-1", 3)


#: what the random rollouts count
MEASURED = ("loss", "errors", "missing")


def _rollback_verdict() -> Any:
    stage = StageEvidence(0, 0.05, 950, 50, 0, 0, 1000)
    evidence = RolloutEvidence("rollout-1", "1", "2", "canary", (stage,), 1, NOW)
    return rollout.decide(evidence, Rollout(), RolloutHistory())


def _die(made: Any, home: Path, change: str, writes: int) -> str:
    stores = _stores(home)
    stores.registry.aliases("made")  # MLflow looks at its tables when it is first asked
    made_writes = 0

    def count(*call: Any) -> None:
        nonlocal made_writes
        statement = str(call[2]) if len(call) > 2 else "COMMIT"
        if statement.lstrip()[:6].upper() not in {"INSERT", "UPDATE", "DELETE", "COMMIT"}:
            return
        made_writes += 1
        if made_writes == writes:
            os.kill(os.getpid(), signal.SIGKILL)

    # every engine of this process: the ledger's, and MLflow's own
    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    _do(made, stores, change)
    return "lived"


def _state(home: Path) -> dict[str, Any]:
    stores = _stores(home)
    now = stores.ledger.deployment("made")
    return {
        "deployment": asdict(now) if now else None,
        "entries": stores.ledger.verify("made"),
        "aliases": stores.registry.aliases("made"),
    }


def _again(made: Any, home: Path, change: str) -> dict[str, Any]:
    _do(made, _stores(home), change)
    return _state(home)


def judge_deaths(change: str, deaths: list[dict[str, Any]]) -> dict[str, int]:
    """How often the deployment was the old one, the new one, or neither; and the second run made all agree."""
    old, new = CHANGES[change]
    counts = Counter({"old": 0, "new": 0, "neither": 0, "agree": 0})
    for death in deaths:
        now, after = death["after"]["deployment"], death["again"]["deployment"]
        if (now["champion"], now["challenger"], now["rollout_id"]) == (old, "2", "rollout-1"):
            counts["old"] += 1
        elif (now["champion"], now["challenger"], now["rollout_id"]) == (new, None, None):
            counts["new"] += 1
        else:
            counts["neither"] += 1
        done = (after["champion"], after["challenger"]) == (new, None)
        counts["agree"] += done and death["again"]["aliases"] == {"champion": new}
    return counts


# --- a tampered ledger -------------------------------------------------------------------------------------------

ENTRIES = 100
TAMPERS = ("edited", "edited and hashed anew", "dropped", "reordered")


@dataclass(frozen=True)
class _Tampering:
    """Statements, and the entries one of which must be named, as `seq n`."""

    statements: list[sa.Executable]
    named: tuple[int, ...]


def tamper(item: tuple[str, int, str]) -> bool:
    """One tampering of a ledger of a hundred entries: whether `verify` refuses it and names an entry touched."""
    how, seed, written = item
    rng = np.random.default_rng([seed, TAMPERS.index(how)])
    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(written, Path(folder) / "ledger.db")
        engine = make_engine(f"sqlite:///{file}")
        ledger = SqlLedger(engine)
        assert ledger.verify("made") == ENTRIES
        done = _tampering(how, rng, ledger.entries("made"))
        with engine.execution_options(writes=True).begin() as connection:
            for statement in done.statements:
                connection.execute(statement)
        try:
            ledger.verify("made")
        except LedgerTampered as error:
            return any(f"seq {seq} " in str(error) for seq in done.named)
        finally:
            ledger.close()
    return False


def write_ledger(folder: Path) -> str:
    """A ledger of a hundred entries: verdicts, and now and then a deployment."""
    url = f"sqlite:///{folder / 'ledger.db'}"
    upgrade(url)
    ledger = SqlLedger(make_engine(url))
    for number in range(ENTRIES):
        if number % 10 == 9:
            _deploy(ledger, number // 10 + 1, str(number), f"rollout-{number}")
        else:
            _append(ledger, "drift", f"batch {number}", "STABLE", {"psi": number / 7})
    ledger.close()
    return str(folder / "ledger.db")


def _append(ledger: SqlLedger, kind: str, subject: str, verdict: str, body: Any) -> LedgerEntry:
    return ledger.append(model="made", kind=kind, subject=subject, verdict=verdict, as_of=NOW, body=body, run=RUN)


def _tampering(how: str, rng: np.random.Generator, chain: tuple[LedgerEntry, ...]) -> _Tampering:
    seq = int(rng.integers(1, ENTRIES + 1))
    entry = chain[seq - 1]
    table = entries.c
    here = sa.update(entries).where(table.seq == seq)
    if how == "edited":
        changes = {
            "verdict": entry.verdict + "D",
            "subject": "another batch",
            "body": canonical({**entry.body, "psi": 0.0123}),
            "as_of": (entry.as_of + timedelta(microseconds=1)).isoformat(timespec="microseconds"),
            "run": canonical(to_json(replace(entry.run, run_id="another run"))),
            "kind": "health",
            "key": "another key",
            "previous": "0" * 63 + "1",
            "hash": "f" * 64,
            "id": "0" * 16,
        }
        name = str(rng.choice(list(changes)))
        return _Tampering([here.values({name: changes[name]})], (seq,))
    if how == "edited and hashed anew":
        forged = replace(entry, body={**entry.body, "psi": 0.0123})
        sealed = hash_entry(forged)
        values = {"body": canonical(forged.body), "hash": sealed, "id": sealed[:16]}
        return _Tampering([here.values(values)], (seq,))
    if how == "dropped":
        return _Tampering([sa.delete(entries).where(table.seq == seq)], (seq,))
    other = int(rng.choice([n for n in range(1, ENTRIES + 1) if n != seq]))
    places = [(seq, -1), (other, seq), (-1, other)]
    moves: list[sa.Executable] = [sa.update(entries).where(table.seq == a).values(seq=b) for a, b in places]
    if ENTRIES in (seq, other):
        # as far as somebody would go who does not hash every later entry anew
        moves.append(sa.update(chain_heads).values(hash=chain[min(seq, other) - 1].hash))
    return _Tampering(moves, (seq, other))


# --- decisions made again ----------------------------------------------------------------------------------------


def replayed(item: tuple[str, int, str]) -> tuple[str, bool]:
    """A decision on random evidence, through the ledger's text and back: its verdict, and whether all bytes agree."""
    rule, seed, written = item
    decision = RANDOM[rule](np.random.default_rng([seed, list(RANDOM).index(rule)]))
    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(written, Path(folder) / "ledger.db")
        ledger = SqlLedger(make_engine(f"sqlite:///{file}"))
        entry = _append(ledger, rule, "batch", decision.verdict, to_json(decision))
        read = ledger.entry(entry.id)
        ledger.close()
    again = decisions.replay(from_json(Decision, read.body)).again
    return str(decision.verdict), canonical(to_json(again)) == canonical(read.body)


def _drift(rng: np.random.Generator) -> Decision:
    reference, current, columns = {}, {}, int(rng.integers(1, 8))
    spread, few = float(rng.choice([0.0, 0.0, 0.1, 0.5])), int(rng.choice([50, 800, 800, 800]))
    for number in range(columns):
        bins = int(rng.integers(2, 12))
        shares = rng.dirichlet(np.ones(bins) * 5)
        moved = shares * np.exp(rng.normal(0, spread, bins))
        counts = [rng.multinomial(n, p / p.sum()) for n, p in ((5_000, shares), (few, moved))]
        nulls = rng.binomial([5_000, few], 0.05)
        if number % 2:
            more = {"edges": tuple(sorted(rng.normal(size=bins - 1).tolist()))}
            kind = "numeric"
        else:
            more = {"categories": tuple(f"level {n}" for n in range(bins - 1))}
            kind = "categorical"
        for side, count, null in zip((reference, current), counts, nulls, strict=True):
            total = float(rng.normal()) if kind == "numeric" else 0.0
            side[f"x{number}"] = ColumnProfile(kind, tuple(count.tolist()), int(null), total=total, **more)
    rows = [max(column.rows for column in side.values()) for side in (reference, current)]
    reference, current = (
        {n: replace(c, nulls=c.nulls + most - c.rows) for n, c in side.items()}
        for side, most in zip((reference, current), rows, strict=True)
    )
    return drift.decide(DriftEvidence("p", Profile(rows[0], reference), Profile(rows[1], current)), Monitoring(), None)


def _losses(rng: np.random.Generator, rows: int, mean: float) -> LossSum:
    found = rng.gamma(2, mean / 2, rows)
    return LossSum(rows, float(found.sum()), float(np.dot(found, found)))


def _retraining(rng: np.random.Generator) -> Decision:
    harm = float(rng.choice([1.0, 1.05, 1.5]))
    points = tuple(
        QualityPoint(f"2013-04-{day:02d}T00:00:00", _losses(rng, int(rng.integers(0, 900)) or 1, 0.5 * harm), 1_000)
        for day in range(1, int(rng.integers(2, 15)))
    )
    evidence = RetrainingEvidence(
        partition=points[-1].partition,
        as_of=NOW,
        champion="3",
        admitted=_losses(rng, 5_000, 0.5),
        quality=points,
        estimated=(),
        drift_verdict=str(rng.choice(["STABLE", "DRIFTED", "CANNOT_TELL"])),
        drifted_columns=("x",),
        quarantined=bool(rng.random() < 0.1),
        champion_trained_until=NOW - timedelta(days=int(rng.integers(1, 400))),
        champion_rows=10_000,
        new_rows=int(rng.integers(0, 20_000)),
        in_flight=bool(rng.random() < 0.1),
    )
    past = tuple(
        PastRetrain(NOW - timedelta(days=int(day)), "schedule", ENDED[rng.integers(len(ENDED))])
        for day in sorted(rng.integers(1, 300, int(rng.integers(0, 4))), reverse=True)
    )
    policy = Retraining(max_age=timedelta(days=365) if rng.random() < 0.5 else NEVER)
    return retraining.decide(evidence, policy, RetrainingHistory(past))


def _pairs(rng: np.random.Generator, worse: float) -> tuple[PairedSum, ...]:
    found = []
    for day in range(int(rng.integers(2, 40))):
        rows = int(rng.integers(50, 600))
        champion = rng.gamma(2, 0.25, rows)
        difference = rng.normal(worse + rng.normal(0, 0.01), 0.1, rows)
        sums = (champion.sum(), champion.sum() + difference.sum(), difference.sum(), np.dot(difference, difference))
        found.append(PairedSum(f"2013-04-{day:02d}", rows, *map(float, sums)))
    return tuple(found)


def _promotion(rng: np.random.Generator) -> Decision:
    worse = float(rng.choice([-0.1, -0.01, 0.0, 0.05]))
    pairs = _pairs(rng, worse)
    rows = sum(pair.rows for pair in pairs)
    positives = rng.binomial(rows // 10, 0.1 * np.arange(1, 11))
    bins = tuple(Calibration(rows // 10, rows // 10 * 0.1 * (n + 1), float(positives[n])) for n in range(10))
    evidence = PromotionEvidence(
        challenger_run="run",
        champion="1" if rng.random() < 0.9 else None,
        metric="brier",
        clusters=pairs,
        slices={"a=b": _pairs(rng, worse)},
        baseline_loss=float(rng.uniform(0.4, 0.9)),
        calibration=bins,
        holdout_rows=rows,
        training_rows=9_000,
        training_label_mean=0.3,
        holdout_label_mean=float(rng.uniform(0.2, 0.5)),
        new_rows=rows,
    )
    mode = str(rng.choice(["superior", "non_inferior"]))
    return promotion.decide(evidence, Gate(mode=mode, slices=("a",)), None)  # type: ignore[arg-type]


def _rollout(rng: np.random.Generator) -> Decision:
    worse = float(rng.choice([-0.05, 0.0, 0.0, 0.1]))
    steps = Rollout().steps
    stages = []
    for stage in range(int(rng.integers(1, len(steps) + 1))):
        scored = int(rng.integers(500, 5_000))
        served = int(rng.binomial(scored, steps[stage]))
        errors = rng.binomial([scored - served, served], 0.02)
        stages.append(
            StageEvidence(
                stage=stage,
                split=steps[stage],
                champion_served=scored - served,
                challenger_served=served,
                champion_missing=0,
                challenger_missing=int(rng.random() < 0.1) * 20,
                scored=scored,
                paired=_pairs(rng, worse)[: int(rng.integers(0, 6))],
                champion_errors=int(errors[0]),
                challenger_errors=int(errors[1]),
            )
        )
    evidence = RolloutEvidence("r", "1", "2", "canary", tuple(stages), int(rng.integers(0, 10)), NOW, MEASURED)
    return rollout.decide(evidence, Rollout(), RolloutHistory(("ADVANCE",) * (len(stages) - 1)))


RANDOM: dict[str, Callable[[np.random.Generator], Decision]] = {
    "drift": _drift,
    "retraining": _retraining,
    "promotion": _promotion,
    "rollout": _rollout,
}


# --- the section -------------------------------------------------------------------------------------------------


def run(bench: Runner) -> Section:
    """All five, as two tables and the issue's targets."""
    tries, rounds = (20, 2) if bench.quick else (200, 20)
    races = dict(zip(kinds(), bench.map(race, [(k, tries) for k in kinds()], "audit: promoters race"), strict=True))
    both = [(what, bench.quick, rounds) for what in ("deaths", "triggers")]
    deaths_by_change, triggers = bench.map(lived, both, "audit: triggers at once, and kill -9")
    with tempfile.TemporaryDirectory() as folder:
        file = write_ledger(Path(folder))
        tampered = [(how, seed, file) for how in TAMPERS for seed in range(20 if bench.quick else 200)]
        found = bench.map(tamper, tampered, "audit: tampered ledgers")
        wanted = [(rule, seed, file) for rule in RANDOM for seed in range(25 if bench.quick else 500)]
        again = bench.map(replayed, wanted, "audit: decisions made again")

    rows: list[tuple[str | Figure, ...]] = []
    claims: list[Claim] = []

    def tell(what: str, figure: Figure, asked: str = "100 %") -> None:
        rows.append((what, figure, f"{round(figure.value * figure.runs)} of {figure.runs}"))
        claims.append(Claim(what, figure, asked, met=figure.value == 1))

    for kind, won in races.items():
        tell(f"of two processes that promote at once, exactly one wins ({kind})", share(sum(won), len(won)))
    for kind, held in triggers.items():
        tell(f"fifty triggers at once: one retrain, forty-nine recorded skips ({kind})", share(sum(held), len(held)))
    for how in TAMPERS:
        named = [ok for (kind, *_), ok in zip(tampered, found, strict=True) if kind == how]
        tell(f"`ledger verify` finds an entry that was {how}, and names it", share(sum(named), len(named)))
    for rule in RANDOM:
        same = [ok for (name, *_), (_, ok) in zip(wanted, again, strict=True) if name == rule]
        tell(f"`ledger replay` gives a {rule} decision byte for byte", share(sum(same), len(same)))
    verdicts = Counter((rule, verdict) for (rule, *_), (verdict, _) in zip(wanted, again, strict=True))
    reached = ", ".join(f"{rule} {verdict} {n}" for (rule, verdict), n in sorted(verdicts.items()))
    note = (
        f"Races: {tries} tries, processes with connections of their own. Triggers: threads, {rounds} rounds. Tampered: "
        f"a ledger of {ENTRIES} entries. Replayed: random evidence, stored and read back; verdicts: {reached}."
    )
    if not postgres():
        note += " PostgreSQL was not asked: PERENNIAL_TEST_POSTGRES is not set."
        # a target that was not measured is not met
        what = "of two processes that promote at once, exactly one wins (PostgreSQL)"
        claims.append(Claim(what, share(0, 0), "100 %", met=False))

    killed: list[tuple[str | Figure, ...]] = []
    for change, deaths in deaths_by_change.items():
        counts, points = judge_deaths(change, deaths), len(deaths)
        killed.append((change, str(points), *(str(counts[name]) for name in ("old", "new", "neither", "agree"))))
        right = points - counts["neither"]
        title = f"`kill -9` in a {change}"
        claims += [
            Claim(f"{title}: the old deployment or the new", share(right, points), "100 %", met=right == points > 0),
            Claim(
                f"{title}: run again, deployment and aliases agree",
                share(counts["agree"], points),
                "100 %",
                met=counts["agree"] == points > 0,
            ),
        ]
    deaths_note = (
        "The process is killed before each INSERT, UPDATE, DELETE and COMMIT in turn, of the ledger (SQLite) and of "
        "MLflow's registry (SQLite); then another process looks, and runs the change again."
    )
    columns = ("change", "killed", "old deployment", "new deployment", "neither", "agree after a second run")
    return Section(
        tables=[
            Table("Audit: what must always hold", ("what", "held", "runs"), rows, note),
            Table("Audit: `kill -9` between any two writes", columns, killed, deaths_note),
        ],
        claims=claims,
    )
