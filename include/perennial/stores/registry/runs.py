"""One training as a run in MLflow: its model, its figures, its lineage, its files."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ruamel.yaml import YAML

from perennial.errors import RegistryError
from perennial.records import Snapshot, canonical, digest, to_json
from perennial.stores.ports import LoggedRun, TrainingRun
from perennial.stores.registry.artifacts import digest_folder, save_model
from perennial.stores.scratch import scratch_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

#: begins the name of every tag of ours
PREFIX = "perennial."
#: MLflow keeps 36 characters of a dataset's digest; the whole one stands in the tags
_DATASET_DIGEST = 36
#: metrics and parameters in one request
_CHUNK = 100


def write_run(client: MlflowClient, run: TrainingRun, *, artifacts: str | None, trusted: Iterable[str]) -> LoggedRun:
    """Write the run. Where a complete run of the same link exists already, nothing is written.

    Args:
        client: MLflow's.
        run: what one training leaves behind.
        artifacts: where a new experiment keeps its files; None where the server decides.
        trusted: the types that the estimator may hold.

    Returns:
        The run in MLflow, and the digest of the model's files: of those that were sent, not of what arrived.

    Raises:
        UntrustedType: the estimator holds other types; no run is left behind.
    """
    experiment = _experiment(client, run.spec.name, artifacts)
    if earlier := _complete_run(client, experiment, run.link.run_id):
        return earlier
    with scratch_folder(RegistryError, f"the run of {run.spec.name!r} is written there") as scratch:
        # saved first: an estimator that cannot be trusted leaves no run behind
        model = scratch / "model"
        save_model(run, model, trusted)
        started = client.create_run(experiment, run_name=run.link.run_id, tags=_tags_of(run))
        run_id = str(started.info.run_id)
        model_id = _log_model(client, run, experiment, run_id, model)
        client.set_tag(run_id, f"{PREFIX}model_id", model_id)
        digest_of_model = digest_folder(model)
        client.set_tag(run_id, f"{PREFIX}artifact_digest", digest_of_model)
        _log_numbers(client, run_id, run.params, run.metrics, run.snapshot)
        _log_lineage(client, run_id, run)
        _log_trials(client, experiment, run_id, run)
        files = scratch / "files"
        _write_files(run, files)
        client.log_artifacts(run_id, str(files))
    # the last write: a run that is FINISHED is complete
    client.set_terminated(run_id)
    return LoggedRun(run_id, digest_of_model)


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if artifacts is None else f"{artifacts}/{name}"
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException as error:
        # another run created it at the same moment
        experiment = client.get_experiment_by_name(name)
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or experiment is None:
            raise
        return str(experiment.experiment_id)


def _complete_run(client: MlflowClient, experiment: str, link: str) -> LoggedRun | None:
    """The complete run that this Airflow run logged earlier; incomplete ones are marked as killed."""
    earlier = client.search_runs([experiment], f"tags.`{PREFIX}key` = '{_key(link)}'")
    for run in earlier:
        if run.info.status == "RUNNING":
            client.set_terminated(run.info.run_id, status="KILLED")
    complete = next((run for run in earlier if run.info.status == "FINISHED"), None)
    if complete is None:
        return None
    return LoggedRun(str(complete.info.run_id), str(complete.data.tags[f"{PREFIX}artifact_digest"]), wrote=False)


def _log_model(client: MlflowClient, run: TrainingRun, experiment: str, run_id: str, folder: Path) -> str:
    """The folder as MLflow's logged model, tied to its run."""
    from mlflow.models import Model

    logged = client.create_logged_model(experiment, name=run.spec.name, source_run_id=run_id, model_type=run.spec.task)
    description = Model.load(str(folder))
    description.run_id, description.model_id = run_id, logged.model_id
    description.save(str(folder / "MLmodel"))
    for file in folder.rglob("*"):
        if file.is_file():
            # the copy in a local folder of artifacts has these rights too: written once
            file.chmod(0o444)
    client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _log_numbers(
    client: MlflowClient, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], snapshot: Snapshot
) -> None:
    from mlflow.entities import Metric, Param

    moment = int(snapshot.as_of.timestamp() * 1000)
    names = [Param(key, str(value)) for key, value in params.items()]
    numbers = [Metric(key, float(value), moment, 0) for key, value in metrics.items()]
    for start in range(0, max(len(names), len(numbers)), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        client.log_batch(run_id, metrics=numbers[chunk], params=names[chunk])


def _log_lineage(client: MlflowClient, run_id: str, run: TrainingRun) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    snapshot = run.snapshot
    dataset = Dataset(
        name=f"{snapshot.model} {snapshot.start.date()}..{snapshot.end.date()}",
        digest=snapshot.digest[:_DATASET_DIGEST],
        source_type="delta",
        source=canonical({"accepted_version": snapshot.accepted_version, "labels_version": snapshot.labels_version}),
        profile=canonical({"num_rows": snapshot.rows}),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _log_trials(client: MlflowClient, experiment: str, run_id: str, run: TrainingRun) -> None:
    for number, trial in enumerate(run.trials):
        tags = {"mlflow.parentRunId": run_id, f"{PREFIX}trial": str(number)}
        nested = client.create_run(experiment, run_name=f"trial {number}", tags=tags).info.run_id
        _log_numbers(client, nested, trial.params, {"loss": trial.loss}, run.snapshot)
        client.set_terminated(nested)


def _key(link: str) -> str:
    """The run id in a form that MLflow's filters can quote, whatever it holds."""
    return digest(link)[:32]


def _tags_of(run: TrainingRun) -> dict[str, str]:
    link = run.link
    tags = {
        "mlflow.source.name": "perennial",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": run.git_commit,
        f"{PREFIX}key": _key(link.run_id),
        f"{PREFIX}run_id": link.run_id,
        f"{PREFIX}dag_id": link.dag_id,
        f"{PREFIX}task_id": link.task_id,
        f"{PREFIX}url": link.url,
        f"{PREFIX}git_commit": run.git_commit,
        f"{PREFIX}seed": str(run.spec.training.seed),
        f"{PREFIX}snapshot": canonical(to_json(run.snapshot)),
        f"{PREFIX}snapshot_digest": run.snapshot.digest,
        f"{PREFIX}holdout_loss": repr(float(run.holdout_loss)),
        f"{PREFIX}holdout_rows": str(run.holdout_rows),
        # the tag is older than the field's name: registries hold it
        f"{PREFIX}holdout_error": repr(float(run.holdout_standard_error)),
        f"{PREFIX}label_mean": repr(float(run.label_mean)),
    }
    if link.url:
        tags["mlflow.note.content"] = f"Trained by [{link.dag_id or 'this run'}]({link.url})."
    return {key: value for key, value in tags.items() if value}


def _write_files(run: TrainingRun, folder: Path) -> None:
    """The run's artifacts beside the model: profile, evidence, spec, environment, curves with their pictures."""
    curves = folder / "curves"
    curves.mkdir(parents=True)
    spec_file = run.spec.folder / "spec.yaml"
    if spec_file.is_file():
        shutil.copyfile(spec_file, folder / "spec.yaml")
    else:
        YAML(pure=True).dump(run.spec.model_dump(mode="json"), folder / "spec.yaml")
    (folder / "environment.txt").write_text(_environment(), encoding="utf-8")
    documents: dict[str, Any] = {"profile.json": to_json(run.profile), "importance.json": run.importance}
    if run.evidence is not None:
        documents["evidence.json"] = to_json(run.evidence)
    if run.reference is not None:
        documents["monitoring_reference.json"] = to_json(run.reference)
    for name, points in run.curves.items():
        documents[f"curves/{name}.json"] = [list(point) for point in points]
        _draw(name, points).savefig(curves / f"{name}.png")
    for name, content in documents.items():
        (folder / name).write_text(canonical(content), encoding="utf-8")


@cache
def _environment() -> str:
    """Python, platform and every installed distribution; a second's work, the same for the whole process."""
    packages = sorted({f"{d.name}=={d.version}" for d in importlib.metadata.distributions()}, key=str.lower)
    return "\n".join([f"# Python {platform.python_version()} on {platform.platform()}", *packages, ""])


def _draw(name: str, points: Sequence[tuple[float, float]]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    axes.plot([x for x, _ in points], [y for _, y in points], marker=".")
    axes.set_title(name.replace("_", " "))
    return figure
