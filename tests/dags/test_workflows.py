"""The five DAGs run by Airflow's own task runner; the deeds are stand-ins that note how they were called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from perennial.errors import BatchQuarantined, LeaseTaken, RegistryUnavailable, SourceEmpty
from perennial.records import Deployment, RunLink
from perennial.specs import load_specs
from perennial.stores.memory import memory_ledger
from perennial.stores.ports import Stores

KEY = "2013-06-03T00:00:00"
SPEC = load_specs({})[0]["flight_delay"]
BATCH = SPEC.schedule.partition_of_key(KEY)

RunDag = Callable[..., dict[str, Any]]


@dataclass
class Version:
    """What the rollout DAG asks of a registered version."""

    version: str
    artifact_digest: str


@dataclass
class OneDigestPerLook:
    """A registry whose digests are given, the last one for ever."""

    digests: list[str]

    def version(self, model: str, version: str) -> Version:
        return Version(version, self.digests.pop(0) if len(self.digests) > 1 else self.digests[0])


@dataclass
class Deeds:
    """What was called, with what, in order; and the answers to give."""

    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    answers: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[dict[str, Any]]:
        return [given for called, given in self.calls if called == name]

    def stand_in(self, name: str, positional: tuple[str, ...]) -> Callable[..., Any]:
        def deed(*args: Any, **named: Any) -> Any:
            given = {**dict(zip(positional, args, strict=True)), **named}
            self.calls.append((name, given))
            answer = self.answers.get(name)
            if isinstance(answer, list):
                answer = answer.pop(0)
            if callable(answer):
                answer = answer(given)
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return deed


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Stores:
    """A ledger in memory; no lake; a registry whose one digest never changes."""
    from perennial_airflow import wiring

    found = Stores(lake=None, ledger=memory_ledger(), registry=OneDigestPerLook(["abc"]))  # type: ignore[arg-type]
    monkeypatch.setattr(wiring.Deed, "stores", property(lambda self: found))
    monkeypatch.setattr(wiring, "open_ledger", lambda url: found.ledger)
    return found


@pytest.fixture
def alerts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Headlines of the alerts that were sent."""
    from perennial_airflow import notify

    sent: list[str] = []
    monkeypatch.setattr(notify, "send", lambda spec, alert: sent.append(alert.headline))
    return sent


@pytest.fixture
def deeds(monkeypatch: pytest.MonkeyPatch, stores: Stores) -> Deeds:
    """Stand-ins for the loop, except what only looks at the ledger."""
    from perennial.loop import drift_sensor, monitor, retrain, rollout, score

    found = Deeds()
    batch = ("spec", "stores", "partition")
    for module, name, positional in (
        (score, "validate", batch),
        (score, "score", batch),
        (monitor, "monitor", batch),
        (monitor, "report", batch),
        (drift_sensor, "decide", batch),
        (retrain, "freeze", ("spec", "stores")),
        (retrain, "train", ("spec", "stores", "snapshot")),
        (retrain, "gate", ("spec", "stores", "mlflow_run_id")),
        (retrain, "abandon", ("spec", "stores")),
        (rollout, "open_rollout", ("spec", "stores", "version")),
        (rollout, "enter_stage", ("spec", "stores", "rollout_id", "stage")),
        (rollout, "judge", ("spec", "stores", "rollout_id", "stage")),
        (rollout, "roll_back", ("spec", "stores")),
    ):
        monkeypatch.setattr(module, name, found.stand_in(name, positional))
    return found


# --- score, monitor, drift_sensor ----------------------------------------------------------------------------------


def test_a_batch_is_validated_then_scored_as_of_its_end(run_dag: RunDag, deeds: Deeds, alerts: list[str]) -> None:
    deeds.answers = {"validate": {"rows": 5}, "score": {"model": "flight_delay", "partition": KEY, "rows": 5}}
    states = run_dag("score", partition_key=KEY)

    assert states["run"] == "success"
    assert deeds.names == ["validate", "score"]
    given = deeds.of("score")[0]
    assert given["partition"] == BATCH
    assert given["as_of"] == BATCH.end
    assert given["run"].run_id == states["run_id"]
    assert "/dags/flight_delay_score/runs/" in given["run"].url
    assert not alerts


def test_the_predictions_event_carries_key_and_counts_and_a_quarantined_batch_sends_none(
    run_dag: RunDag, deeds: Deeds, alerts: list[str]
) -> None:
    scored = {"model": "flight_delay", "partition": KEY, "versions": ["3"], "rows": 5, "table_version": 7}
    deeds.answers = {"validate": [{"rows": 5}, BatchQuarantined("batch is bad")], "score": scored}
    sent = run_dag("score", partition_key=KEY)["run_id"]
    kept = run_dag("score", partition_key=KEY)["run_id"]

    assert events_of(sent) == [("flight_delay_predictions", KEY, scored)]
    assert events_of(kept) == []


def events_of(run_id: str) -> list[tuple[str, str | None, Any]]:
    """Asset events of a run: asset, partition key, extra."""
    import sqlalchemy as sa
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.settings import Session

    query = (
        sa.select(AssetModel.name, AssetEvent.partition_key, AssetEvent.extra)
        .join(AssetModel, AssetModel.id == AssetEvent.asset_id)
        .where(AssetEvent.source_run_id == run_id)
    )
    return [tuple(row) for row in Session().execute(query)]


@pytest.mark.parametrize("error", [BatchQuarantined("17 rows too cold"), SourceEmpty("no rows")], ids=["bad", "empty"])
def test_a_refused_batch_is_not_scored_and_not_tried_again(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], error: Exception
) -> None:
    from airflow.sdk.exceptions import AirflowFailException

    from perennial_airflow import wiring

    deeds.answers = {"validate": error}
    states = run_dag("score", partition_key=KEY)

    assert (states["validate"], states["score"], states["run"]) == ("failed", "upstream_failed", "failed")
    assert deeds.names == ["validate"]
    assert alerts == ["Batch quarantined" if isinstance(error, BatchQuarantined) else "Task failed"]
    # AirflowFailException is what Airflow never retries
    assert isinstance(error, wiring.NOT_RETRIED)
    assert issubclass(AirflowFailException, Exception)


def test_a_service_that_is_down_is_tried_again() -> None:
    from perennial_airflow import wiring

    assert not issubclass(RegistryUnavailable, wiring.NOT_RETRIED)


def test_a_run_without_a_partition_key_says_how_to_give_one(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    states = run_dag("score")
    assert states["validate"] == "failed"
    assert not deeds.calls


def test_a_measured_batch_publishes_its_health(run_dag: RunDag, deeds: Deeds, alerts: list[str]) -> None:
    measured = {"partition": KEY, "verdict": "STABLE", "report": "flight_delay/x.html"}
    deeds.answers = {"monitor": measured}
    states = run_dag("monitor", partition_key=KEY)
    assert states["monitor"] == "success"
    assert deeds.of("monitor")[0]["as_of"] == BATCH.end
    assert deeds.of("report")[0]["partition"] == BATCH
    assert events_of(states["run_id"]) == [("flight_delay_health", KEY, measured)]


def sensed(verdict: str) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "reason": "loss rose",
        "trigger": "quality",
        "change_partition": KEY,
        "entry": f"e{verdict}",
        "as_of": BATCH.end.isoformat(),
    }


def test_only_retrain_starts_the_retrain_dag_and_hands_on_why_and_when(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], runs_of: Callable[[str], dict[str, Any]]
) -> None:
    before = set(runs_of("flight_delay_retrain"))
    deeds.answers = {"decide": [sensed("WAIT"), sensed("CANNOT_TELL")]}
    for _ in range(2):
        states = run_dag("drift_sensor", partition_key=KEY)
        assert (states["start_retrain"], states["run"]) == ("skipped", "success")
    assert set(runs_of("flight_delay_retrain")) == before
    assert alerts == ["Health unknown"]

    deeds.answers = {"decide": sensed("RETRAIN")}
    states = run_dag("drift_sensor", partition_key=KEY)
    assert states["start_retrain"] == "success"
    started = {run: conf for run, conf in runs_of("flight_delay_retrain").items() if run not in before}
    assert started == {
        f"sensor__{KEY}__eRETRAIN": {
            "reason": "loss rose",
            "as_of": BATCH.end.isoformat(),
            "change_partition": KEY,
        }
    }
    # the same decision again starts nothing twice
    assert run_dag("drift_sensor", partition_key=KEY)["start_retrain"] == "skipped"


# --- retrain -------------------------------------------------------------------------------------------------------


def gated(verdict: str, **more: Any) -> dict[str, Any]:
    judged = {"verdict": verdict, "reason": "because", "version": None, "first": False, "returned_version": None}
    return {**judged, "entry": f"g{verdict}", **more}


CONF = {"reason": "loss rose", "as_of": BATCH.end.isoformat(), "change_partition": KEY}


def test_an_admitted_challenger_starts_its_rollout(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], runs_of: Callable[[str], dict[str, Any]]
) -> None:
    deeds.answers = {"freeze": {"rows": 9}, "train": "run1", "gate": gated("ADMIT", version="4")}
    states = run_dag("retrain", conf=CONF)

    assert states["run"] == "success"
    assert deeds.names == ["freeze", "train", "gate"]
    assert deeds.of("freeze")[0]["as_of"] == BATCH.end
    assert deeds.of("freeze")[0]["reason"] == "loss rose"
    assert deeds.of("freeze")[0]["change_partition"] == KEY
    assert deeds.of("train")[0]["snapshot"] == {"rows": 9}
    assert deeds.of("gate")[0]["mlflow_run_id"] == "run1"
    assert deeds.of("gate")[0]["as_of"] == BATCH.end
    started = runs_of("flight_delay_rollout")["gate__v4__gADMIT"]
    assert started["version"] == "4"
    assert started["lease"] == states["run_id"]
    assert alerts == ["Retrain started"]
    assert states["abandon"] == "skipped"


def test_a_rollout_says_which_version_it_brings_back(
    run_dag: RunDag, deeds: Deeds, runs_of: Callable[[str], dict[str, Any]]
) -> None:
    deeds.answers = {"freeze": {}, "train": "run1", "gate": gated("ADMIT", version="5", returned_version="1")}
    assert run_dag("retrain", conf=CONF)["run"] == "success"
    assert runs_of("flight_delay_rollout")["gate__v5__gADMIT"]["reason"].endswith("brings version 1 back")


@pytest.mark.parametrize(
    ("judged", "told"),
    [
        (gated("REFUSE"), ["Retrain started", "Challenger refused"]),
        (gated("ADMIT", version="1", first=True), ["Retrain started"]),
    ],
    ids=["refused", "first champion"],
)
def test_a_refused_challenger_and_a_first_champion_start_no_rollout(
    run_dag: RunDag,
    deeds: Deeds,
    alerts: list[str],
    runs_of: Callable[[str], dict[str, Any]],
    judged: dict[str, Any],
    told: list[str],
) -> None:
    before = runs_of("flight_delay_rollout")
    deeds.answers = {"freeze": {"rows": 9}, "train": "run1", "gate": judged}
    states = run_dag("retrain", conf=CONF)
    assert (states["start_rollout"], states["run"]) == ("skipped", "success")
    assert runs_of("flight_delay_rollout") == before
    assert alerts == told


def test_a_second_retrain_skips_while_the_first_holds_the_lease(
    run_dag: RunDag, deeds: Deeds, alerts: list[str]
) -> None:
    deeds.answers = {"freeze": LeaseTaken("run x holds the lease")}
    states = run_dag("retrain", conf=CONF)
    assert {states[t] for t in ("freeze", "train", "gate", "start_rollout", "abandon")} == {"skipped"}
    assert states["run"] == "success"
    assert not alerts


def test_a_failed_retrain_gives_its_own_lease_back_and_nobody_elses(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], stores: Stores
) -> None:
    def freeze(given: dict[str, Any]) -> dict[str, Any]:
        assert stores.ledger.claim("flight_delay", "retrain", given["run"].run_id, given["as_of"])
        return {}

    deeds.answers = {"freeze": freeze, "train": RegistryUnavailable("MLflow is down")}
    states = run_dag("retrain", conf=CONF)
    assert (states["train"], states["gate"], states["abandon"]) == ("failed", "upstream_failed", "success")
    assert states["run"] == "failed"
    assert [given["run"].run_id for given in deeds.of("abandon")] == [states["run_id"]]
    assert alerts == ["Retrain started", "Task failed"]

    # the lease of the run before still stands (abandon is a stand-in): another run's failure leaves it alone
    deeds.answers = {"freeze": {}, "train": RegistryUnavailable("MLflow is down")}
    run_dag("retrain", conf=CONF)
    assert len(deeds.of("abandon")) == 1


def test_a_retrain_of_recorded_history_without_a_moment_takes_the_newest_known_one(
    run_dag: RunDag, deeds: Deeds, alerts: list[str], stores: Stores
) -> None:
    deeds.answers = {"freeze": LeaseTaken("enough for this test")}
    run_dag("retrain")
    stores.ledger.append(
        model="flight_delay",
        kind="health",
        subject=KEY,
        verdict="STABLE",
        as_of=BATCH.end,
        body={},
        run=RunLink("r"),
    )
    run_dag("retrain")
    assert [given["as_of"] for given in deeds.of("freeze")] == [SPEC.schedule.start, BATCH.end]


# --- rollout -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rollout(deeds: Deeds, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Deeds:
    """Stand-ins that move the deployment; every stage entered is followed by one more measured batch."""
    monkeypatch.setenv("PERENNIAL_POKE_SECONDS", "0.01")
    deploy(stores, Deployment("flight_delay", 1, champion="3"))

    def opened(given: dict[str, Any]) -> None:
        deploy(stores, Deployment("flight_delay", 2, "3", given["version"], rollout_id=given["rollout_id"]))

    def entered(given: dict[str, Any]) -> None:
        now = stores.ledger.deployment("flight_delay")
        assert now is not None
        if now.stage < given["stage"]:
            after = Deployment(
                "flight_delay", now.revision + 1, "3", "4", stage=given["stage"], rollout_id=now.rollout_id
            )
            deploy(stores, after)

    deeds.answers = {"open_rollout": opened, "enter_stage": entered}
    return deeds


def deploy(stores: Stores, after: Deployment) -> None:
    stores.ledger.deploy(
        after,
        kind="deployment",
        subject="x",
        verdict="STAGE",
        as_of=datetime(2013, 6, 10, tzinfo=UTC),
        body={},
        run=RunLink("r"),
    )


def measure(stores: Stores, number: int) -> None:
    stores.ledger.append(
        model="flight_delay",
        kind="health",
        subject=f"batch {number}",
        verdict="STABLE",
        as_of=BATCH.end,
        body={},
        run=RunLink(f"r{number}"),
    )


def evidence_arrives(monkeypatch: pytest.MonkeyPatch, stores: Stores) -> None:
    """Every time a stage has looked at the ledger and sleeps, one more batch is measured."""
    from perennial_airflow import triggers

    looks: list[int] = []
    plain = triggers.EvidenceTrigger.run

    def run(self: Any) -> Any:
        looks.append(1)
        measure(stores, len(looks))
        return plain(self)

    monkeypatch.setattr(triggers.EvidenceTrigger, "run", run)


def judged(verdict: str) -> dict[str, Any]:
    return {"verdict": verdict, "reason": f"{verdict} because", "needs_person": False, "entry": "j"}


def test_a_good_challenger_walks_all_stages_and_is_promoted(
    run_dag: RunDag,
    rollout: Deeds,
    stores: Stores,
    alerts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence_arrives(monkeypatch, stores)
    verdicts = [judged(v) for v in ("ADVANCE", "HOLD", "HOLD", "ADVANCE", "ADVANCE", "PROMOTE")]
    rollout.answers["judge"] = verdicts
    # the second HOLD is one that only a person can end
    verdicts[2]["needs_person"] = True
    states = run_dag("rollout", conf={"version": "4"})

    assert states["run"] == "success"
    assert [given["stage"] for given in rollout.of("enter_stage")] == [0, 1, 2, 3]
    assert [given["stage"] for given in rollout.of("judge")] == [0, 1, 1, 1, 2, 3]
    assert {given["rollout_id"] for given in rollout.of("judge")} == {states["run_id"]}
    assert {given["as_of"] for given in rollout.of("judge")} == {BATCH.end}
    assert alerts == ["Rollout undecided", "Promoted"]


def test_a_bad_challenger_is_rolled_back_and_never_sees_the_next_stage(
    run_dag: RunDag,
    rollout: Deeds,
    stores: Stores,
    alerts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    evidence_arrives(monkeypatch, stores)
    rollout.answers["judge"] = [judged("ADVANCE"), judged("ROLL_BACK")]
    states = run_dag("rollout", conf={"version": "4"})
    assert states["serve_25_percent"] == "success"
    assert (states["serve_50_percent"], states["serve_100_percent"]) == ("skipped", "skipped")
    assert states["run"] == "success"
    assert [given["stage"] for given in rollout.of("enter_stage")] == [0, 1]
    assert alerts == ["Rolled back"]


def test_a_rollback_by_somebody_else_wakes_the_stage_and_ends_the_rollout(
    run_dag: RunDag,
    rollout: Deeds,
    stores: Stores,
    alerts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from perennial_airflow import triggers

    plain = triggers.EvidenceTrigger.run

    def run(self: Any) -> Any:
        now = stores.ledger.deployment("flight_delay")
        assert now is not None
        deploy(stores, Deployment("flight_delay", now.revision + 1, champion="3"))
        return plain(self)

    monkeypatch.setattr(triggers.EvidenceTrigger, "run", run)
    rollout.answers["judge"] = judged("ROLL_BACK")
    states = run_dag("rollout", conf={"version": "4"})
    assert states["serve_5_percent"] == "success"
    assert states["serve_25_percent"] == "skipped"
    assert states["run"] == "success"
    assert alerts == ["Rolled back"]


def test_the_rollback_parameter_takes_the_challenger_back_and_runs_nothing_else(
    run_dag: RunDag, rollout: Deeds, alerts: list[str]
) -> None:
    states = run_dag("rollout", conf={"rollback": True, "reason": "customers complain"})
    assert rollout.names == ["roll_back"]
    assert rollout.of("roll_back")[0]["reason"] == "customers complain"
    assert (states["begin"], states["open"], states["serve_5_percent"]) == ("success", "skipped", "skipped")
    assert states["run"] == "success"
    assert alerts == ["Rolled back"]


def test_a_rollout_does_not_open_for_an_artifact_other_than_the_proposed_one(
    run_dag: RunDag, rollout: Deeds, stores: Stores, alerts: list[str]
) -> None:
    stores.registry.digests[:] = ["abc", "changed"]  # type: ignore[attr-defined]
    states = run_dag("rollout", conf={"version": "4"})
    assert states["open"] == "failed"
    assert not rollout.calls
    assert alerts == ["Task failed"]


def test_a_rollout_that_does_not_open_lets_the_next_retrain_start(
    run_dag: RunDag, rollout: Deeds, stores: Stores, alerts: list[str]
) -> None:
    rollout.answers["open_rollout"] = RegistryUnavailable("MLflow is down")
    stores.ledger.claim("flight_delay", "retrain", "retrain run", BATCH.end)
    run_dag("rollout", conf={"version": "4", "lease": "another run"})
    assert not rollout.of("abandon")
    states = run_dag("rollout", conf={"version": "4", "lease": "retrain run"})
    assert len(rollout.of("abandon")) == 1
    assert states["run"] == "failed"


def test_a_rollout_without_a_version_says_what_to_give(run_dag: RunDag, rollout: Deeds, alerts: list[str]) -> None:
    assert run_dag("rollout")["begin"] == "failed"
    assert not rollout.calls
