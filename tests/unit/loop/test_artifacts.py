"""Which bytes may serve stands in the ledger: for versions of this release from their fit on, for older ones from the
first load on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest
from clones import spoil
from made_model import MadeModel

from perennial.errors import ArtifactBroken, ArtifactChanged, RegistryError, RegistryUnavailable
from perennial.loop import artifacts, rollout
from perennial.records import ArtifactBody, Event, Kind, LedgerEntry
from perennial.stores.memory import MemoryRegistry
from perennial.stores.ports import Stores

World = Callable[[str], Stores]


def about_bytes(stores: Stores) -> list[LedgerEntry]:
    return list(stores.ledger.entries("made", kind=Kind.ARTIFACT))


def tag(stores: Stores, version: str, digest: str) -> None:
    """Change what the registry says of a version's digest, as anybody who can reach MLflow can."""
    assert isinstance(stores.registry, MemoryRegistry)
    versions = stores.registry._versions["made"]
    at = int(version) - 1
    versions[at] = replace(versions[at], artifact_digest=digest)


@pytest.fixture
def older(made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch) -> Stores:
    """A champion of a release that wrote no digests down."""
    stores = world("empty")
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "record_run", lambda *_: None)
        assert made.first_champion(stores).first
    assert about_bytes(stores) == []
    return stores


def test_a_version_is_in_the_ledger_from_its_fit_on(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    entries = about_bytes(stores)
    second = stores.registry.version("made", "2")
    assert [(e.verdict, e.subject) for e in entries[-2:]] == [("LOGGED", second.run_id), ("REGISTERED", "2")]
    assert {e.read(ArtifactBody).artifact_digest for e in entries[-2:]} == {second.artifact_digest}
    assert {e.read(ArtifactBody).known_from for e in entries} == {"training"}
    # the gate judges between the two
    [gate] = stores.ledger.entries("made", kind=Kind.PROMOTION, subject=second.run_id)
    assert entries[-2].seq < gate.seq < entries[-1].seq


@pytest.mark.parametrize(("at", "version"), [("stable", "1"), ("promoted", "2"), ("opened", "2")])
def test_whatever_the_registry_says_now_the_ledgers_bytes_are_demanded(
    made: MadeModel, world: World, at: str, version: str
) -> None:
    stores = world(at)
    tag(stores, version, "f" * 64)
    context = made.context(stores, made.day(9).end)
    with pytest.raises(ArtifactChanged, match=f"version {version} of 'made' has digest f{{64}}, the ledger says"):
        artifacts.load(context, version)
    with pytest.raises(ArtifactChanged, match=f"version {version} of 'made' is tagged with artifact digest f{{64}}"):
        artifacts.digest_of(context, version)


def test_a_digest_that_is_changed_before_registration_is_not_believed(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("harmed")
    register = stores.registry.register

    def swapped(model: str, run_id: str, tags: dict[str, str]) -> object:
        version = register(model, run_id, tags)
        tag(stores, version.version, "f" * 64)
        return stores.registry.version(model, version.version)

    monkeypatch.setattr(stores.registry, "register", swapped)
    assert made.retrain(stores, made.day(5).end, "retrain-1", "", made.day(3).key).version == "2"
    with pytest.raises(ArtifactChanged):
        made.open(stores, "2", made.day(5).end)
    assert stores.ledger.deployment("made").challenger is None  # type: ignore[union-attr]


def test_a_version_of_an_older_release_is_written_down_at_its_first_load(
    made: MadeModel, older: Stores, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made.score(older, made.day(0))
    [entry] = about_bytes(older)
    body = entry.read(ArtifactBody)
    assert (entry.verdict, entry.subject, body.known_from) == (Event.RECORDED, "1", "first_load")
    assert body.artifact_digest == older.registry.version("made", "1").artifact_digest
    assert "version 1 of 'made' has no digest in the ledger: an older release registered it" in caplog.text
    made.score(older, made.day(1))
    assert about_bytes(older) == [entry]
    tag(older, "1", "f" * 64)
    with pytest.raises(ArtifactChanged, match="the ledger says"):
        made.score(older, made.day(2))


def test_a_challenger_that_an_older_release_opened_has_the_digest_of_its_opening(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("harmed")
    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "record_run", lambda *_: None)
        made.retrain(stores, made.day(5).end, "retrain-1", "", made.day(3).key)
    approved = stores.registry.version("made", "2").artifact_digest
    made.open(stores, "2", made.day(5).end)
    tag(stores, "2", "f" * 64)
    assert set(made.score(stores, made.day(6)).errors) == {"2"}
    body = about_bytes(stores)[-1].read(ArtifactBody)
    assert (body.artifact_digest, body.known_from) == (approved, "opening")


def test_evidence_that_somebody_changed_is_not_judged(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("harmed")
    evidence = stores.registry.evidence

    def flattering(run_id: str) -> object:
        return replace(evidence(run_id), baseline_loss=9.0)

    monkeypatch.setattr(stores.registry, "evidence", flattering)
    with pytest.raises(ArtifactChanged, match=r"the evidence of run \w+ of 'made'.*the ledger says"):
        made.retrain(stores, made.day(5).end, "retrain-1", "", made.day(3).key)
    assert [e.subject for e in stores.ledger.entries("made", kind=Kind.PROMOTION)] == [
        stores.registry.version("made", "1").run_id
    ]


# --- whose fault is it? ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RegistryUnavailable("MLflow does not answer"), RegistryError("MLflow refused")])
def test_mlflow_that_fails_at_the_challenger_says_nothing_about_it(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch, error: RegistryError
) -> None:
    stores = world("opened")
    load = stores.registry.load

    def fails_at_the_second(model: str, version: str, *, digest: str) -> object:
        if version == "2":
            raise error
        return load(model, version, digest=digest)

    with monkeypatch.context() as patch:
        patch.setattr(stores.registry, "load", fails_at_the_second)
        with pytest.raises(type(error), match=str(error)):
            made.score(stores, made.day(6))
    assert stores.ledger.entries("made", kind=Kind.SCORING, subject=made.day(6).key) == ()
    assert made.score(stores, made.day(6)).errors == {}


def test_a_challenger_without_its_reference_does_not_stop_monitoring(
    made: MadeModel, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = world("opened")
    made.score(stores, made.day(6))
    challengers = stores.registry.version("made", "2").run_id
    reference = stores.registry.reference

    def broken(run_id: str) -> object:
        if run_id == challengers:
            raise ArtifactBroken("monitoring_reference.json cannot be read")
        return reference(run_id)

    monkeypatch.setattr(stores.registry, "reference", broken)
    made.monitor(stores, made.day(6))
    assert {m.name for m in stores.ledger.measurements("made", version="2")} >= {"loss", "paired_difference"}
    assert made.judge(stores, made.day(6)).verdict == "ADVANCE"


class LacksAll:
    """Fits, loads, and has nothing that a model has."""


def test_a_challenger_that_is_no_model_at_all_does_not_stop_the_champion(made: MadeModel, world: World) -> None:
    stores = world("opened")
    spoil(stores, "2", LacksAll())
    result = made.score(stores, made.day(6))
    assert (result.missing, set(result.errors)) == ({"1": 0, "2": 400}, {"2"})
    made.monitor(stores, made.day(6))
    assert made.judge(stores, made.day(6)).verdict == "ROLL_BACK"


def test_the_digest_that_a_person_approves_is_the_ledgers(made: MadeModel, world: World) -> None:
    stores = world("admitted")
    varied = replace(made, spec=made.spec.model_copy(update={"rollout": made.spec.rollout.model_copy()}))
    known = stores.registry.version("made", "2").artifact_digest
    context = varied.context(stores, made.day(5).end)
    rollout.require_digest(context, "2", known)
    tag(stores, "2", "f" * 64)
    with pytest.raises(ArtifactChanged):
        rollout.require_digest(context, "2", "f" * 64)
