"""What every registry does: in memory, MLflow on SQLite, an MLflow server."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
import tempfile
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import skops.io
from mlflow.exceptions import MlflowException
from ruamel.yaml import YAML
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, TweedieRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from perennial.errors import (
    ArtifactBroken,
    ArtifactChanged,
    ArtifactMissing,
    RegistryError,
    RegistryUnavailable,
    UntrustedType,
)
from perennial.records import (
    Calibration,
    ColumnProfile,
    LossBin,
    LossSum,
    MonitoringReference,
    Profile,
    PromotionEvidence,
    RunLink,
    Snapshot,
    Trial,
)
from perennial.spec import ModelSpec, load_spec
from perennial.stores.memory import MemoryRegistry
from perennial.stores.ports import Registry, TrainingRun
from perennial.stores.registry import TRUSTED_TYPES, MlflowRegistry, digest_folder
from perennial.stores.registry.artifacts import load_model, save_model

ROWS = pd.DataFrame({"distance": np.linspace(0, 1, 80), "seats": np.arange(80.0) % 7})
LATE = (ROWS["distance"] > 0.5).astype(int)
NOW = datetime(2013, 3, 1, 5, 0, 0, 250, tzinfo=UTC)
EVIDENCE = PromotionEvidence(
    challenger_run="run-1",
    champion=None,
    metric="log_loss",
    clusters=(),
    slices={},
    baseline_loss=0.1 + 0.2,
    calibration=(),
    holdout_rows=40,
    training_rows=80,
    training_label_mean=0.5,
    holdout_label_mean=0.5,
    new_rows=40,
)
REFERENCE = MonitoringReference(
    loss_curve=(LossBin(0.5, LossSum(40, 0.1 + 0.2, 0.01)),),
    calibration=(Calibration(40, 12.5, 12.0),),
    baseline_loss=0.1 + 0.2,
    loss_design_effect=1.5,
)


@pytest.fixture(scope="module")
def spec(project: Path) -> ModelSpec:
    return load_spec(project / "include" / "models" / "flight_delay" / "spec.yaml")


@pytest.fixture
def run(spec: ModelSpec) -> TrainingRun:
    """A run of a model that no other test knows."""
    name = f"flights_{uuid.uuid4().hex[:8]}"
    return TrainingRun(
        spec=spec.model_copy(update={"name": name}),
        snapshot=Snapshot(name, 3, 4, NOW, NOW, NOW, 80, "d" * 64, NOW),
        estimator=HistGradientBoostingClassifier(max_iter=3).fit(ROWS, LATE),
        params={"max_iter": 3},
        metrics={"log_loss": 0.3, "auc": 0.7},
        curves={"roc": ((0.0, 0.0), (1.0, 1.0))},
        profile=Profile(80, {"distance": ColumnProfile("numeric", (40, 40), 0, (0.5,), total=0.1 + 0.2)}),
        example=ROWS.head(),
        holdout_loss=0.1 + 0.2,
        holdout_rows=40,
        holdout_standard_error=0.01,
        label_mean=0.5,
        link=RunLink("manual__2013-03-01T00:00:00+00:00 'a'", "retrain", "train", "http://127.0.0.1:8080/dags/retrain"),
        git_commit="c0ffee",
        evidence=EVIDENCE,
        reference=REFERENCE,
    )


def register(registry: Registry, run: TrainingRun, **tags: str) -> str:
    return registry.register(run.spec.name, registry.log_run(run).run_id, tags).version


def test_a_version_carries_where_it_came_from(registry: Registry, run: TrainingRun) -> None:
    run_id = registry.log_run(run).run_id
    version = registry.register(run.spec.name, run_id, {"perennial.verdict": "ADMIT"})
    assert registry.version(run.spec.name, version.version) == version
    assert (version.model, version.version, version.run_id) == (run.spec.name, "1", run_id)
    assert version.snapshot == run.snapshot
    assert version.tags == {"perennial.verdict": "ADMIT"}
    figures = (version.holdout_loss, version.holdout_rows, version.holdout_standard_error, version.label_mean)
    assert figures == (0.1 + 0.2, 40, 0.01, 0.5)
    assert len(version.artifact_digest) == 64


def test_logging_and_registering_twice_leaves_one_run_and_one_version(registry: Registry, run: TrainingRun) -> None:
    run_id = registry.log_run(run).run_id
    assert registry.log_run(run).run_id == run_id
    version = registry.register(run.spec.name, run_id, {"a": "1"})
    assert registry.register(run.spec.name, run_id, {"a": "1"}) == version
    assert registry.versions(run.spec.name) == (version,)


def test_versions_are_listed_oldest_first(registry: Registry, run: TrainingRun) -> None:
    assert registry.versions(run.spec.name) == ()
    for n in (1, 2):
        assert register(registry, replace(run, link=RunLink(f"run-{n}"))) == str(n)
    assert [v.version for v in registry.versions(run.spec.name)] == ["1", "2"]
    with pytest.raises(RegistryError, match=rf"'{run.spec.name}' has no version '3'.*\['1', '2'\]"):
        registry.version(run.spec.name, "3")


def test_the_estimator_comes_back_as_it_was_fitted(registry: Registry, run: TrainingRun) -> None:
    logged = registry.log_run(run)
    version = registry.register(run.spec.name, logged.run_id, {})
    assert version.artifact_digest == logged.artifact_digest
    loaded = registry.load(run.spec.name, version.version, digest=logged.artifact_digest)
    assert np.array_equal(loaded.predict_proba(ROWS), run.estimator.predict_proba(ROWS))


def test_profile_and_evidence_come_back_exactly(registry: Registry, run: TrainingRun) -> None:
    run_id = registry.log_run(run).run_id
    version = registry.register(run.spec.name, run_id, {}).version
    assert registry.profile(run.spec.name, version) == run.profile
    assert registry.evidence(run_id) == EVIDENCE
    assert registry.reference(run_id) == REFERENCE


def test_a_run_without_a_reference_for_monitoring_says_so(registry: Registry, run: TrainingRun) -> None:
    run_id = registry.log_run(replace(run, evidence=None, reference=None)).run_id
    with pytest.raises(ArtifactMissing, match=run_id):
        registry.reference(run_id)


def test_a_run_without_evidence_says_so(registry: Registry, run: TrainingRun) -> None:
    run_id = registry.log_run(replace(run, evidence=None)).run_id
    with pytest.raises(ArtifactMissing, match=f"evidence.json of run {run_id}|run {run_id} has no evidence.json"):
        registry.evidence(run_id)


def test_aliases_are_set_moved_and_taken_away(registry: Registry, run: TrainingRun) -> None:
    model = run.spec.name
    assert registry.aliases(model) == {}
    for n in (1, 2):
        register(registry, replace(run, link=RunLink(f"run-{n}")))
    registry.set_aliases(model, {"champion": "1", "challenger": "2"})
    assert registry.aliases(model) == {"champion": "1", "challenger": "2"}
    for _ in range(2):
        registry.set_aliases(model, {"champion": "2", "challenger": None})
        assert registry.aliases(model) == {"champion": "2"}
    with pytest.raises(RegistryError, match="no version '9'"):
        registry.set_aliases(model, {"champion": "9"})
    assert registry.aliases(model) == {"champion": "2"}


@pytest.mark.parametrize(("now", "wanted"), [("1", None), ("1", "2"), (None, "1")])
def test_what_another_process_has_just_done_to_an_alias_is_no_error(
    mlflow_registry: MlflowRegistry,
    run: TrainingRun,
    monkeypatch: pytest.MonkeyPatch,
    now: str | None,
    wanted: str | None,
) -> None:
    """Two processes read the aliases, then both change them: the second one finds its own change there."""
    registry, model = mlflow_registry, run.spec.name
    for n in (1, 2):
        register(registry, replace(run, link=RunLink(f"run-{n}")))
    registry.set_aliases(model, {"champion": now})
    client = registry._client
    name = "delete_registered_model_alias" if wanted is None else "set_registered_model_alias"
    change = getattr(client, name)

    def after_the_other(*args: str) -> None:
        change(*args)
        raise MlflowException("DELETE statement expected to delete 1 row(s); 0 were matched")

    monkeypatch.setattr(client, name, after_the_other)
    registry.set_aliases(model, {"champion": wanted})
    assert registry.aliases(model).get("champion") == wanted


def test_an_alias_that_mlflow_refuses_to_change_is_an_error(
    mlflow_registry: MlflowRegistry, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, model = mlflow_registry, run.spec.name
    register(registry, run)

    def refuse(*args: str) -> None:
        raise MlflowException("no")

    monkeypatch.setattr(registry._client, "set_registered_model_alias", refuse)
    with pytest.raises(RegistryError, match="set the alias 'champion'"):
        registry.set_aliases(model, {"champion": "1"})


def test_a_run_that_does_not_exist_cannot_be_tagged(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="nobody"):
        registry.tag_run("nobody", {"a": "1"})


def _files_of(registry: MlflowRegistry, model: str, version: str, tmp_path: Path) -> Path:
    """The folder that holds the artifact, on either kind of registry."""
    source = registry._client.get_model_version(model, version).source
    if source.startswith("/"):
        return Path(source)
    (root,) = {found.resolve() for found in tmp_path.parent.glob("mlflow-server*/files")}
    return root / source.removeprefix("mlflow-artifacts:").lstrip("/")


def test_a_version_whose_artifact_is_gone_is_named(registry: Registry, run: TrainingRun, tmp_path: Path) -> None:
    version = register(registry, run)
    if isinstance(registry, MemoryRegistry):
        registry.lose_artifact(run.spec.name, version)
    else:
        assert isinstance(registry, MlflowRegistry)
        shutil.rmtree(_files_of(registry, run.spec.name, version, tmp_path))
    with pytest.raises(ArtifactMissing, match=f"version 1 of '{run.spec.name}'.*gone"):
        registry.load(run.spec.name, version, digest=registry.version(run.spec.name, version).artifact_digest)
    assert registry.profile(run.spec.name, version) == run.profile


# --- MLflow alone ----------------------------------------------------------------------------------------------------


def test_a_run_holds_all_that_an_auditor_asks_for(mlflow_registry: MlflowRegistry, run: TrainingRun) -> None:
    trials = (Trial({"depth": 2}, 0.4), Trial({"depth": 3}, 0.3))
    run_id = mlflow_registry.log_run(replace(run, trials=trials)).run_id
    mlflow_registry.tag_run(run_id, {"perennial.verdict": "ADMIT"})
    client = mlflow_registry._client
    found = client.get_run(run_id)
    assert found.data.params == {"max_iter": "3"}
    assert found.data.metrics == run.metrics
    tags = found.data.tags
    assert tags["perennial.verdict"] == "ADMIT"
    assert tags["perennial.url"] == run.link.url
    assert run.link.url in tags["mlflow.note.content"]
    assert tags["mlflow.source.git.commit"] == "c0ffee"
    assert tags["perennial.snapshot_digest"] == "d" * 64
    (lineage,) = found.inputs.dataset_inputs
    assert lineage.dataset.digest == "d" * 36
    assert [(t.key, t.value) for t in lineage.tags] == [("mlflow.data.context", "training")]
    papers = {a.path for a in client.list_artifacts(run_id)} | {a.path for a in client.list_artifacts(run_id, "curves")}
    assert papers >= {
        "profile.json",
        "evidence.json",
        "monitoring_reference.json",
        "spec.yaml",
        "environment.txt",
        "importance.json",
    }
    assert papers >= {"curves/roc.json", "curves/roc.png"}
    nested = client.search_runs([found.info.experiment_id], f"tags.mlflow.parentRunId = '{run_id}'")
    assert sorted((r.data.params["depth"], r.data.metrics["loss"]) for r in nested) == [("2", 0.4), ("3", 0.3)]


@pytest.mark.parametrize("content", ["", "[]", "{}", "\0", '{"loss_curve": 3}'])
def test_papers_of_a_run_that_cannot_be_read_are_the_versions_own_fault(
    content: str, mlflow_registry: MlflowRegistry, run: TrainingRun
) -> None:
    run_id = mlflow_registry.log_run(run).run_id
    for name in ("evidence.json", "monitoring_reference.json"):
        mlflow_registry._client.log_text(run_id, content, name)
    for read in (mlflow_registry.evidence, mlflow_registry.reference):
        with pytest.raises(ArtifactBroken, match=f"of run {run_id}.*cannot be read"):
            read(run_id)


def test_an_earlier_run_whose_evidence_holds_monitorings_reference_is_read(
    mlflow_registry: MlflowRegistry, run: TrainingRun, project: Path
) -> None:
    earlier = (project / "tests/data/old_entries/evidence.json").read_text(encoding="utf-8")
    run_id = mlflow_registry.log_run(replace(run, evidence=None, reference=None)).run_id
    mlflow_registry._client.log_text(run_id, earlier, "evidence.json")
    reference = mlflow_registry.reference(run_id)
    assert len(reference.loss_curve) == 20
    assert reference.recalibration is not None
    assert mlflow_registry.evidence(run_id).calibration == reference.calibration


def test_the_artifact_has_signature_example_and_pinned_requirements(
    mlflow_registry: MlflowRegistry, run: TrainingRun, tmp_path: Path
) -> None:
    folder = _files_of(mlflow_registry, run.spec.name, register(mlflow_registry, run), tmp_path)
    described = YAML().load(folder / "MLmodel")
    assert [c["name"] for c in json.loads(described["signature"]["inputs"])] == ["distance", "seats"]
    assert described["flavors"]["sklearn"]["serialization_format"] == "skops"
    assert (folder / "input_example.json").is_file()
    assert all("==" in line for line in (folder / "requirements.txt").read_text().splitlines())
    assert not [*folder.rglob("*.pkl")]
    # written once
    assert {file.stat().st_mode & 0o777 for file in folder.rglob("*") if file.is_file()} == {0o444}


def test_a_run_that_died_half_way_is_logged_again_whole(
    mlflow_registry: MlflowRegistry, run: TrainingRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for write in ("log_model_artifacts", "log_inputs", "log_artifacts"):
        with monkeypatch.context() as patch:
            patch.setattr(mlflow_registry._client, write, die)
            with pytest.raises(KeyboardInterrupt):
                mlflow_registry.log_run(run)
    run_id = mlflow_registry.log_run(run).run_id
    client = mlflow_registry._client
    experiment = client.get_run(run_id).info.experiment_id
    states = {r.info.run_id: r.info.status for r in client.search_runs([experiment])}
    assert states.pop(run_id) == "FINISHED"
    assert set(states.values()) == {"KILLED"}
    assert register(mlflow_registry, run) == "1"


class _Boom:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('the pickle was opened')",)


def test_a_pickle_is_refused_and_never_opened(
    mlflow_registry: MlflowRegistry, run: TrainingRun, tmp_path: Path
) -> None:
    version = register(mlflow_registry, run)
    folder = _files_of(mlflow_registry, run.spec.name, version, tmp_path)
    (folder / "model.pkl").write_bytes(pickle.dumps(_Boom()))
    described = YAML().load(folder / "MLmodel")
    described["flavors"]["sklearn"] |= {"serialization_format": "cloudpickle", "pickled_model": "model.pkl"}
    (folder / "MLmodel").unlink()
    YAML().dump(described, folder / "MLmodel")
    # also where the ledger names these very bytes
    with pytest.raises(UntrustedType, match=r"'cloudpickle'.*can run any code"):
        mlflow_registry.load(run.spec.name, version, digest=digest_folder(folder))


def swap(registry: MlflowRegistry, run: TrainingRun, version: str, tmp_path: Path) -> None:
    """Put another model in the place of a version's, and set the tag to its digest: MLflow asks nobody's leave."""
    folder = shutil.copytree(_files_of(registry, run.spec.name, version, tmp_path), tmp_path / "swapped")
    (folder / "model.skops").unlink()
    skops.io.dump(LogisticRegression().fit(ROWS, 1 - LATE), folder / "model.skops")
    client, source = registry._client, registry._client.get_model_version(run.spec.name, version).source
    if registry._mlflow.uri.startswith("http"):
        address = source.replace("mlflow-artifacts:", f"{registry._mlflow.uri}/api/2.0/mlflow-artifacts/artifacts")
        content = (folder / "model.skops").read_bytes()
        requests.put(f"{address}/model.skops", data=content, timeout=30).raise_for_status()
    else:
        target = Path(source) / "model.skops"
        target.unlink()
        shutil.copy(folder / "model.skops", target)
    client.set_model_version_tag(run.spec.name, version, "perennial.artifact_digest", digest_folder(folder))


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_an_artifact_and_its_tag_that_were_changed_together_are_refused(
    kind: str, request: pytest.FixtureRequest, run: TrainingRun, tmp_path: Path
) -> None:
    registry = request.getfixturevalue("mlflow_registry" if kind == "sqlite" else "_served_registry")
    logged = registry.log_run(run)
    version = registry.register(run.spec.name, logged.run_id, {}).version
    swap(registry, run, version, tmp_path)
    tagged = registry.version(run.spec.name, version).artifact_digest
    assert tagged != logged.artifact_digest
    # what was put there is whole: by MLflow's own tag it would load
    inverted = registry.load(run.spec.name, version, digest=tagged).predict(ROWS)
    assert (inverted == LATE).mean() < 0.1
    with pytest.raises(ArtifactChanged, match=rf"{tagged}, the ledger says {logged.artifact_digest}.*changed"):
        registry.load(run.spec.name, version, digest=logged.artifact_digest)


@pytest.mark.parametrize("content", ["", "[]", "flavors: 3", "flavors: {sklearn: }", "a: [", "\0", "flavors: {}"])
def test_a_description_that_cannot_be_read_is_the_versions_own_fault(content: str, broken: Path) -> None:
    (broken / "MLmodel").write_text(content, encoding="utf-8")
    with pytest.raises(ArtifactBroken, match=r"version 1 of 'm'.*cannot be read as a model"):
        load_model(broken, TRUSTED_TYPES, what="version 1 of 'm'", source="s", digest=digest_folder(broken))


@pytest.mark.parametrize("content", [b"", b"PK", b"not a zip"])
def test_a_model_file_that_cannot_be_read_is_the_versions_own_fault(content: bytes, broken: Path) -> None:
    (broken / "model.skops").write_bytes(content)
    with pytest.raises(ArtifactBroken, match=r"version 1 of 'm'.*cannot be read as a model"):
        load_model(broken, TRUSTED_TYPES, what="version 1 of 'm'", source="s", digest=digest_folder(broken))


def test_a_description_that_names_a_file_outside_of_the_artifact_is_refused(broken: Path, tmp_path: Path) -> None:
    outside = shutil.move(broken / "model.skops", tmp_path / "outside.skops")
    described = YAML().load(broken / "MLmodel")
    described["flavors"]["sklearn"]["pickled_model"] = str(outside)
    YAML().dump(described, broken / "MLmodel")
    with pytest.raises(UntrustedType, match="outside of the artifact"):
        load_model(broken, TRUSTED_TYPES, what="version 1 of 'm'", source="s", digest=digest_folder(broken))


class NoFolder:
    """A temporary folder that cannot be made."""

    def __init__(self, **_: Any) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp', '/var/tmp']")


class SmallFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder in which no file may be written; the limit is the process's, as a quota is."""

    def __enter__(self) -> str:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, self._before[1]))
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
        super().__exit__(*error)


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        (NoFolder, r"^the temporary folder .* No usable .* TMPDIR"),
        (SmallFolder, r"^a disk of this machine has no room"),
    ],
)
def test_a_temporary_folder_that_cannot_be_used_is_not_blamed_on_mlflow(
    mlflow_registry: MlflowRegistry, run: TrainingRun, monkeypatch: pytest.MonkeyPatch, folder: Any, said: str
) -> None:
    logged = mlflow_registry.log_run(run)
    version = mlflow_registry.register(run.spec.name, logged.run_id, {}).version
    other = replace(run, link=RunLink("another"))
    for ask in (
        lambda: mlflow_registry.log_run(other),
        lambda: mlflow_registry.profile(run.spec.name, version),
        lambda: mlflow_registry.load(run.spec.name, version, digest=logged.artifact_digest),
    ):
        monkeypatch.setattr(tempfile, "TemporaryDirectory", folder)
        with pytest.raises(RegistryError, match=said):
            ask()
        monkeypatch.undo()
        # with room, the same call ends well
        ask()


@pytest.fixture
def broken(run: TrainingRun, tmp_path: Path) -> Path:
    """The folder of a whole model, to break."""
    save_model(run, tmp_path / "model", TRUSTED_TYPES)
    return tmp_path / "model"


def test_a_type_outside_the_trust_list_is_named_and_leaves_no_run(
    mlflow_registry: MlflowRegistry, run: TrainingRun
) -> None:
    for function, named in ((json.dumps, "json.dumps"), (partial(os.system, "true"), "posix.system")):
        estimator = make_pipeline(FunctionTransformer(function), LogisticRegression())
        with pytest.raises(UntrustedType, match=rf"\['{named}'\].*trusted_types"):
            mlflow_registry.log_run(replace(run, estimator=estimator))
    experiment = mlflow_registry._client.get_experiment_by_name(run.spec.name)
    assert experiment is not None
    assert list(mlflow_registry._client.search_runs([experiment.experiment_id])) == []


def test_the_artifact_does_not_say_what_is_trusted(mlflow_registry: MlflowRegistry, run: TrainingRun) -> None:
    allowed = run.spec.training.model_copy(update={"trusted_types": ("numpy.nan_to_num",)})
    spec = run.spec.model_copy(update={"training": allowed})
    estimator = make_pipeline(FunctionTransformer(np.nan_to_num), LogisticRegression()).fit(ROWS, LATE)
    version = register(mlflow_registry, replace(run, spec=spec, estimator=estimator))
    known = mlflow_registry.version(run.spec.name, version).artifact_digest
    with pytest.raises(UntrustedType, match=r"numpy\.nan_to_num"):
        mlflow_registry.load(run.spec.name, version, digest=known)
    trusting = MlflowRegistry(mlflow_registry._mlflow.uri, trusted=lambda model: allowed.trusted_types)
    assert trusting.load(run.spec.name, version, digest=known).predict(ROWS).shape == (80,)


def test_every_type_on_the_built_in_list_is_one_that_an_estimator_holds() -> None:
    rows = ROWS.assign(seats=ROWS["seats"].astype(int).astype(str).astype("category"))
    trees = HistGradientBoostingClassifier(max_iter=2).fit(rows, LATE)
    estimators = [
        RandomForestClassifier(2),
        CalibratedClassifierCV(LogisticRegression()),
        VotingClassifier([("one", LogisticRegression())]),
        TweedieRegressor(),
        SimpleImputer(),
    ]
    fitted = [trees, *(estimator.fit(ROWS, LATE) for estimator in estimators)]
    held = {t for one in fitted for t in skops.io.get_untrusted_types(data=skops.io.dumps(one))}
    assert held == set(TRUSTED_TYPES)


def test_mlflow_that_is_down_is_told_within_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(RegistryUnavailable, match=r"http://127\.0\.0\.1:9 does not answer"):
        MlflowRegistry("http://127.0.0.1:9").versions("flight_delay")
    assert time.monotonic() - started < 20
