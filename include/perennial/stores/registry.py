"""The registry on MLflow: runs, model artifacts, versions, aliases. The only file that imports mlflow and skops.

Models are saved with skops and read back by this file alone: types outside the trust list are refused before anything
is built from them, and a pickle is never opened. The trust list is the code's and the reviewed spec's, never the
artifact's own.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from perennial.errors import ArtifactMissing, RegistryError, RegistryUnavailable, UntrustedType
from perennial.records import ModelVersion, Profile, PromotionEvidence, Snapshot, canonical, digest, from_json, to_json
from perennial.stores.ports import TrainingRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient

#: what scikit-learn's own estimators hold beyond the types skops trusts by itself: data and compiled tables, no code of
#: the artifact's own. A list from the estimators that tests/contract/test_registry.py saves, not a guess.
TRUSTED_TYPES = (
    # what HistGradientBoosting with categorical features holds; the function inside a partial needs trust of its own
    "functools.partial",
    "numpy.dtype",
    "sklearn._loss.loss.HalfTweedieLossIdentity",
    "sklearn.calibration._CalibratedClassifier",
    "sklearn.calibration._SigmoidCalibration",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.tree._tree.Tree",
    "sklearn.utils._bunch.Bunch",
    "sklearn.utils.validation.check_array",
)
#: distributions a serving environment needs, pinned to what trained the model
_SERVING = ("mlflow", "numpy", "pandas", "scikit-learn", "scipy", "skops")
#: tags of a run and its version that hold a ModelVersion's fields
_FIELDS = ("snapshot", "artifact_digest", "holdout_loss", "holdout_rows", "holdout_error", "label_mean")
_PREFIX = "perennial."
_MODEL = "model"
#: MLflow keeps 36 characters of a dataset's digest; the whole one stands in the tags
_DATASET_DIGEST = 36
#: metrics and parameters in one request
_CHUNK = 100


class MlflowRegistry:
    """Runs and versions in MLflow; the experiment of a model has the model's name. See `ports.Registry`."""

    def __init__(
        self,
        uri: str,
        *,
        artifacts: str | None = None,
        trusted: Callable[[str], Sequence[str]] = lambda _model: (),
    ) -> None:
        """Connects at the first call.

        Args:
            uri: a server's http:// address, or sqlite:///...
            artifacts: where new experiments keep their files; None where the server decides.
            trusted: model name -> types beyond `TRUSTED_TYPES` that its spec allows.
        """
        self._uri = uri
        self._artifacts = artifacts
        self._trusted = trusted
        self._connected: MlflowClient | None = None

    @property
    def _client(self) -> MlflowClient:
        if self._connected is None:
            _quieten()
            from mlflow import MlflowClient

            self._connected = MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
        return self._connected

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Foreign errors become ours; they name the address and what was asked."""
        import requests
        import sqlalchemy as sa
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, requests.RequestException, sa.exc.SQLAlchemyError, OSError) as error:
            chain: BaseException | None = error
            while chain is not None:
                if isinstance(chain, (requests.RequestException, sa.exc.OperationalError)):
                    raise RegistryUnavailable(
                        f"MLflow at {self._uri} does not answer ({what}): {error}. Start it, or correct "
                        "MLFLOW_TRACKING_URI; the task may then run again."
                    ) from error
                chain = chain.__cause__ or chain.__context__
            raise RegistryError(f"MLflow at {self._uri} refused ({what}): {error}.") from error

    # --- runs --------------------------------------------------------------------------------------------------

    def log_run(self, run: TrainingRun) -> str:
        """Write the run with its model, profile and lineage; see `ports.Registry.log_run`."""
        name = run.spec.name
        with self._asking(f"log the run {run.link.run_id!r} of {name!r}"):
            experiment = self._experiment(name)
            if found := self._logged(experiment, run.link.run_id):
                return found
            with tempfile.TemporaryDirectory(prefix="perennial-") as folder:
                # saved first: an estimator that cannot be trusted leaves no run behind
                model = Path(folder) / _MODEL
                self._save_model(run, model)
                started = self._client.create_run(experiment, run_name=run.link.run_id, tags=_tags_of(run))
                run_id = str(started.info.run_id)
                model_id = self._log_model(run, experiment, run_id, model)
                self._client.set_tag(run_id, f"{_PREFIX}model_id", model_id)
                self._client.set_tag(run_id, f"{_PREFIX}artifact_digest", digest_folder(model))
                self._log_numbers(run_id, run.params, run.metrics, run.snapshot)
                self._log_lineage(run_id, run)
                self._log_trials(experiment, run_id, run)
                papers = Path(folder) / "papers"
                _write_papers(run, papers)
                self._client.log_artifacts(run_id, str(papers))
            # the last write: a run that is FINISHED is whole
            self._client.set_terminated(run_id)
            return run_id

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run; see `ports.Registry.tag_run`."""
        with self._asking(f"tag the run {run_id}"):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)

    def evidence(self, run_id: str) -> PromotionEvidence:
        """What the gate judges; see `ports.Registry.evidence`."""
        return from_json(PromotionEvidence, self._paper(run_id, "evidence.json"))

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        location = None if self._artifacts is None else f"{self._artifacts}/{name}"
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            # another run created it at the same moment
            found = self._client.get_experiment_by_name(name)
            if error.error_code != "RESOURCE_ALREADY_EXISTS" or found is None:
                raise
            return str(found.experiment_id)

    def _logged(self, experiment: str, link: str) -> str | None:
        """The whole run that this Airflow run logged earlier; halves of one are marked as killed."""
        found = self._client.search_runs([experiment], f"tags.`{_PREFIX}key` = '{_key(link)}'")
        for run in found:
            if run.info.status == "RUNNING":
                self._client.set_terminated(run.info.run_id, status="KILLED")
        return next((str(run.info.run_id) for run in found if run.info.status == "FINISHED"), None)

    def _save_model(self, run: TrainingRun, folder: Path) -> None:
        import mlflow.sklearn
        import skops.io
        from mlflow.models import infer_signature

        trusted = self._trust(run.spec.name) | set(run.spec.training.trusted_types)
        found = set(skops.io.get_untrusted_types(data=skops.io.dumps(run.estimator)))
        if strangers := sorted(found - trusted):
            raise UntrustedType(
                f"the estimator of {run.spec.name!r} holds types {strangers} outside the trust list. Review them, then "
                "name them under training.trusted_types in its spec.yaml, or leave them out of pipeline.py."
            )
        with warnings.catch_warnings():
            # integer columns "may contain missing values": the expectations say which may
            warnings.simplefilter("ignore", UserWarning)
            signature = infer_signature(run.example, run.estimator.predict(run.example))
            mlflow.sklearn.save_model(
                run.estimator,
                str(folder),
                serialization_format="skops",
                skops_trusted_types=sorted(found),
                signature=signature,
                input_example=run.example,
                pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in _SERVING],
            )

    def _log_model(self, run: TrainingRun, experiment: str, run_id: str, folder: Path) -> str:
        """The folder as MLflow's logged model, tied to its run."""
        from mlflow.models import Model

        logged = self._client.create_logged_model(
            experiment, name=run.spec.name, source_run_id=run_id, model_type=run.spec.task
        )
        described = Model.load(str(folder))
        described.run_id, described.model_id = run_id, logged.model_id
        described.save(str(folder / "MLmodel"))
        self._client.log_model_artifacts(logged.model_id, str(folder))
        self._client.finalize_logged_model(logged.model_id, "READY")
        return str(logged.model_id)

    def _log_numbers(
        self, run_id: str, params: Mapping[str, Any], metrics: Mapping[str, float], snapshot: Snapshot
    ) -> None:
        from mlflow.entities import Metric, Param

        moment = int(snapshot.as_of.timestamp() * 1000)
        names = [Param(key, str(value)) for key, value in params.items()]
        numbers = [Metric(key, float(value), moment, 0) for key, value in metrics.items()]
        for start in range(0, max(len(names), len(numbers)), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            self._client.log_batch(run_id, metrics=numbers[chunk], params=names[chunk])

    def _log_lineage(self, run_id: str, run: TrainingRun) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        snapshot = run.snapshot
        dataset = Dataset(
            name=f"{snapshot.model} {snapshot.start.date()}..{snapshot.end.date()}",
            digest=snapshot.digest[:_DATASET_DIGEST],
            source_type="delta",
            source=canonical(
                {"accepted_version": snapshot.accepted_version, "labels_version": snapshot.labels_version}
            ),
            profile=canonical({"num_rows": snapshot.rows}),
        )
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _log_trials(self, experiment: str, run_id: str, run: TrainingRun) -> None:
        for number, trial in enumerate(run.trials):
            tags = {"mlflow.parentRunId": run_id, f"{_PREFIX}trial": str(number)}
            nested = self._client.create_run(experiment, run_name=f"trial {number}", tags=tags).info.run_id
            self._log_numbers(nested, trial.params, {"loss": trial.loss}, run.snapshot)
            self._client.set_terminated(nested)

    # --- versions ----------------------------------------------------------------------------------------------

    def register(self, model: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Make the run's model a version; see `ports.Registry.register`."""
        from mlflow.exceptions import MlflowException

        if found := next((v for v in self.versions(model) if v.run_id == run_id), None):
            return found
        with self._asking(f"register run {run_id} as {model!r}"):
            try:
                self._client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            run = self._client.get_run(run_id)
            own = {key: value for key, value in run.data.tags.items() if key.startswith(_PREFIX)}
            if f"{_PREFIX}model_id" not in own:
                raise RegistryError(f"run {run_id} holds no model of {model!r}; only runs of `log_run` are registered.")
            logged = self._client.get_logged_model(own[f"{_PREFIX}model_id"])
            made = self._client.create_model_version(
                model,
                source=logged.artifact_location,
                run_id=run_id,
                model_id=logged.model_id,
                # one write: a version without its evidence never exists
                tags={**own, f"{_PREFIX}tags": canonical(dict(tags)), **tags},
            )
        return self.version(model, str(made.version))

    def version(self, model: str, version: str) -> ModelVersion:
        """One version; see `ports.Registry.version`."""
        known = {v.version: v for v in self.versions(model)}
        if version not in known:
            raise RegistryError(
                f"model {model!r} has no version {version!r} in MLflow at {self._uri}; it has {list(known)}."
            )
        return known[version]

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions, oldest first; those that another program registered are left out."""
        return tuple(_version_of(model, found) for found in self._found(model))

    def _found(self, model: str) -> list[Any]:
        quoted = model.replace("'", "''")
        found: list[Any] = []
        token: str | None = None
        with self._asking(f"list the versions of {model!r}"):
            while token is None or token:
                page = self._client.search_model_versions(f"name = '{quoted}'", page_token=token)
                found += page
                token = page.token or ""
        whole = [one for one in found if all(f"{_PREFIX}{field}" in one.tags for field in _FIELDS)]
        return sorted(whole, key=lambda one: int(one.version))

    def load(self, model: str, version: str) -> Any:
        """The fitted estimator, built from skops after its types and its digest were checked.

        Raises:
            ArtifactMissing: registered, but the artifact is gone.
            UntrustedType: a pickle, or a type outside the trust list.
            RegistryError: the bytes are not the ones that were registered.
        """
        import skops.io

        expected = self.version(model, version).artifact_digest
        source = next(one.source for one in self._found(model) if str(one.version) == version)
        with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
            folder = self._download(source, Path(scratch), f"version {version} of {model!r}")
            file = _skops_file(folder, f"version {version} of {model!r}")
            found = digest_folder(folder)
            if found != expected:
                raise RegistryError(
                    f"version {version} of {model!r}: the artifact at {source} has digest {found}, registered was "
                    f"{expected}. Somebody changed it. Roll back, or train again."
                )
            strangers = sorted(set(skops.io.get_untrusted_types(file=file)) - self._trust(model))
            if strangers:
                raise UntrustedType(
                    f"version {version} of {model!r} holds types {strangers} outside the trust list. Review them, then "
                    "name them under training.trusted_types in its spec.yaml."
                )
            return skops.io.load(file, trusted=sorted(self._trust(model)))

    def profile(self, model: str, version: str) -> Profile:
        """The reference profile that was saved with the version; see `ports.Registry.profile`."""
        return from_json(Profile, self._paper(self.version(model, version).run_id, "profile.json"))

    def _trust(self, model: str) -> set[str]:
        return {*TRUSTED_TYPES, *self._trusted(model)}

    def _download(self, source: str, into: Path, what: str) -> Path:
        """The artifact's files, copied; a local folder of artifacts is read without asking MLflow."""
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with self._asking(f"download {what}"):
            try:
                return Path(download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=self._uri))
            except (MlflowException, OSError) as error:
                if _is_absence(error):
                    raise ArtifactMissing(
                        f"{what}: nothing at {source}; the artifact is gone. Restore it from a backup, roll back, or "
                        "retrain."
                    ) from error
                raise

    def _paper(self, run_id: str, name: str) -> Any:
        with tempfile.TemporaryDirectory(prefix="perennial-") as scratch:
            with self._asking(f"find the run {run_id}"):
                root = self._client.get_run(run_id).info.artifact_uri
            file = self._download(f"{root}/{name}", Path(scratch), f"{name} of run {run_id}")
            if not file.is_file():
                raise ArtifactMissing(f"run {run_id} has no {name} at {root}. Train again.")
            return json.loads(file.read_text(encoding="utf-8"))

    # --- aliases -----------------------------------------------------------------------------------------------

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version; see `ports.Registry.aliases`."""
        from mlflow.exceptions import MlflowException

        with self._asking(f"read the aliases of {model!r}"):
            try:
                found = self._client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: str(found[alias]) for alias in ("champion", "challenger") if alias in found}

    def set_aliases(self, model: str, aliases: Mapping[str, str | None]) -> None:
        """Make the aliases so and read them back; see `ports.Registry.set_aliases`."""
        for wanted in filter(None, aliases.values()):
            self.version(model, wanted)
        before = self.aliases(model)
        with self._asking(f"set the aliases of {model!r}"):
            for alias, version in aliases.items():
                if version is None and alias in before:
                    self._client.delete_registered_model_alias(model, alias)
                elif version is not None and before.get(alias) != version:
                    self._client.set_registered_model_alias(model, alias, version)
        after = self.aliases(model)
        differ = {alias: version for alias, version in aliases.items() if after.get(alias) != version}
        if differ:
            raise RegistryError(f"aliases of {model!r} were set to {differ}; read back {after}. Run it again.")


def digest_folder(folder: Path) -> str:
    """SHA-256 over the names and bytes of all files, in the order of their names; hex."""
    whole = hashlib.sha256()
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        whole.update(f"{file.relative_to(folder).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def _quieten() -> None:
    """MLflow's own settings, which only the environment takes; what is set already stays."""
    for name, value in {
        # refused connections are told within seconds instead of minutes
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - configures its loggers when first imported

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)


def _key(link: str) -> str:
    """The run id in a form that MLflow's filters can quote, whatever it holds."""
    return digest(link)[:32]


def _tags_of(run: TrainingRun) -> dict[str, str]:
    link = run.link
    tags = {
        "mlflow.source.name": "perennial",
        "mlflow.source.type": "JOB",
        "mlflow.source.git.commit": run.git_commit,
        f"{_PREFIX}key": _key(link.run_id),
        f"{_PREFIX}run_id": link.run_id,
        f"{_PREFIX}dag_id": link.dag_id,
        f"{_PREFIX}task_id": link.task_id,
        f"{_PREFIX}url": link.url,
        f"{_PREFIX}git_commit": run.git_commit,
        f"{_PREFIX}seed": str(run.spec.training.seed),
        f"{_PREFIX}snapshot": canonical(to_json(run.snapshot)),
        f"{_PREFIX}snapshot_digest": run.snapshot.digest,
        f"{_PREFIX}holdout_loss": repr(float(run.holdout_loss)),
        f"{_PREFIX}holdout_rows": str(run.holdout_rows),
        f"{_PREFIX}holdout_error": repr(float(run.holdout_error)),
        f"{_PREFIX}label_mean": repr(float(run.label_mean)),
    }
    if link.url:
        tags["mlflow.note.content"] = f"Trained by [{link.dag_id or 'this run'}]({link.url})."
    return {key: value for key, value in tags.items() if value}


def _version_of(model: str, found: Any) -> ModelVersion:
    own = {key: found.tags[f"{_PREFIX}{key}"] for key in _FIELDS}
    return ModelVersion(
        model=model,
        version=str(found.version),
        run_id=found.run_id,
        snapshot=from_json(Snapshot, json.loads(own["snapshot"])),
        artifact_digest=own["artifact_digest"],
        holdout_loss=float(own["holdout_loss"]),
        holdout_rows=int(own["holdout_rows"]),
        holdout_error=float(own["holdout_error"]),
        label_mean=float(own["label_mean"]),
        tags=json.loads(found.tags.get(f"{_PREFIX}tags", "{}")),
    )


def _skops_file(folder: Path, what: str) -> Path:
    """The file with the estimator, where the artifact is a skops one."""
    described = folder / "MLmodel"
    if not described.is_file():
        raise ArtifactMissing(f"{what} is registered, its artifact holds no MLmodel file. Roll back, or retrain.")
    flavors = yaml.safe_load(described.read_text(encoding="utf-8")).get("flavors", {})
    form = flavors.get("sklearn", {}).get("serialization_format")
    if form != "skops":
        raise UntrustedType(
            f"{what} is stored as {form!r}; reading that can run any code. Only 'skops' is read: train and register it "
            "again through Perennial."
        )
    file = folder / str(flavors["sklearn"]["pickled_model"])
    if not file.is_file():
        raise ArtifactMissing(f"{what} is registered, its file {file.name} is gone. Roll back, or retrain.")
    return file


def _is_absence(error: BaseException) -> bool:
    """Whether MLflow says that there is no such file, and not that it cannot be asked."""
    code = getattr(error, "error_code", "")
    told = str(error)
    return (
        isinstance(error, FileNotFoundError)
        or code in {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}
        or "No such file or directory" in told
        or "No such artifact" in told
        or getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.NOT_FOUND
    )


def _write_papers(run: TrainingRun, folder: Path) -> None:
    """The run's artifacts beside the model: profile, evidence, spec, environment, curves with their pictures."""
    curves = folder / "curves"
    curves.mkdir(parents=True)
    written = run.spec.folder / "spec.yaml"
    spec = (
        written.read_text(encoding="utf-8")
        if written.is_file()
        else yaml.safe_dump(run.spec.model_dump(mode="json"), sort_keys=False)
    )
    (folder / "spec.yaml").write_text(spec, encoding="utf-8")
    (folder / "environment.txt").write_text(_environment(), encoding="utf-8")
    papers: dict[str, Any] = {"profile.json": to_json(run.profile), "importance.json": run.importance}
    if run.evidence is not None:
        papers["evidence.json"] = to_json(run.evidence)
    for name, points in run.curves.items():
        papers[f"curves/{name}.json"] = [list(point) for point in points]
        _draw(name, points).savefig(curves / f"{name}.png")
    for name, content in papers.items():
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
