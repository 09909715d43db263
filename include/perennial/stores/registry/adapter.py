"""Versions and aliases in MLflow, and the way to the runs they were made from. See `ports.Registry`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from perennial.errors import ArtifactBroken, ArtifactMissing, RegistryError, RegistryUnavailable
from perennial.records import (
    ModelVersion,
    MonitoringReference,
    Profile,
    PromotionEvidence,
    Snapshot,
    canonical,
    from_json,
    reference_in,
)
from perennial.stores.database import WAIT_SECONDS
from perennial.stores.ports import LoggedRun, TrainingRun
from perennial.stores.registry.artifacts import TRUSTED_TYPES, load_model
from perennial.stores.registry.connection import Connection
from perennial.stores.registry.runs import PREFIX, write_run
from perennial.stores.scratch import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegisteredVersion

T = TypeVar("T")

#: tags of a run and its version that hold a ModelVersion's fields
_FIELDS = ("snapshot", "artifact_digest", "holdout_loss", "holdout_rows", "holdout_error", "label_mean")


class MlflowRegistry:
    """Runs and versions in MLflow; the experiment of a model has the model's name. See `ports.Registry`."""

    def __init__(
        self,
        uri: str,
        *,
        artifacts: str | None = None,
        trusted: Callable[[str], Sequence[str]] = lambda _model: (),
        wait_seconds: float = WAIT_SECONDS,
    ) -> None:
        """Connects at the first call.

        Args:
            uri: a server's http:// address, or sqlite:///...
            artifacts: where new experiments keep their files; None where the server decides.
            trusted: model name -> types beyond `TRUSTED_TYPES` that its spec allows.
            wait_seconds: how long a database or server that is silent is waited for.
        """
        self._mlflow = Connection(uri, wait_seconds)
        self._artifacts = artifacts
        self._trusted = trusted

    @property
    def _client(self) -> MlflowClient:
        return self._mlflow.client

    # --- runs --------------------------------------------------------------------------------------------------

    def log_run(self, run: TrainingRun) -> LoggedRun:
        """Write the run with its model, profile and lineage; see `ports.Registry.log_run`."""
        trusted = self._trust(run.spec.name) | set(run.spec.training.trusted_types)
        with self._mlflow.asking(f"log the run {run.link.run_id!r} of {run.spec.name!r}"):
            return write_run(self._client, run, artifacts=self._artifacts, trusted=trusted)

    def tag_run(self, run_id: str, tags: Mapping[str, str]) -> None:
        """Add tags to a run; see `ports.Registry.tag_run`."""
        with self._mlflow.asking(f"tag the run {run_id}"):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)

    def evidence(self, run_id: str) -> PromotionEvidence:
        """What the gate judges; see `ports.Registry.evidence`."""
        return self._read(run_id, "evidence.json", partial(from_json, PromotionEvidence))

    def reference(self, run_id: str) -> MonitoringReference:
        """What monitoring needs of the holdout; see `ports.Registry.reference`."""
        try:
            return self._read(run_id, "monitoring_reference.json", partial(from_json, MonitoringReference))
        except ArtifactMissing:
            return self._read(run_id, "evidence.json", reference_in)

    def _read(self, run_id: str, name: str, parse: Callable[[Any], T]) -> T:
        """A JSON file that was logged with the run, as a record.

        Raises:
            ArtifactMissing: there is no such file.
            ArtifactBroken: it does not hold such a record.
        """
        with scratch_folder(RegistryError, f"{name} of run {run_id} is copied there") as scratch:
            with self._mlflow.asking(f"find the run {run_id}"):
                root = self._client.get_run(run_id).info.artifact_uri
            file = self._mlflow.download(f"{root}/{name}", scratch, f"{name} of run {run_id}")
            if not file.is_file():
                raise ArtifactMissing(f"run {run_id} has no {name} at {root}. Train again.")
            try:
                return parse(json.loads(file.read_bytes()))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ArtifactBroken(
                    f"{name} of run {run_id} at {root} cannot be read ({type(error).__name__}: {error}). Somebody "
                    "changed it: restore it from a backup, or train again."
                ) from error

    # --- versions ----------------------------------------------------------------------------------------------

    def register(self, model: str, run_id: str, tags: Mapping[str, str]) -> ModelVersion:
        """Make the run's model a version; see `ports.Registry.register`."""
        from mlflow.exceptions import MlflowException

        if earlier := next((v for v in self.versions(model) if v.run_id == run_id), None):
            return earlier
        with self._mlflow.asking(f"register run {run_id} as {model!r}"):
            try:
                self._client.create_registered_model(model)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            run = self._client.get_run(run_id)
            own = {key: value for key, value in run.data.tags.items() if key.startswith(PREFIX)}
            if f"{PREFIX}model_id" not in own:
                raise RegistryError(f"run {run_id} holds no model of {model!r}; only runs of `log_run` are registered.")
            logged = self._client.get_logged_model(own[f"{PREFIX}model_id"])
            registered = self._client.create_model_version(
                model,
                source=logged.artifact_location,
                run_id=run_id,
                model_id=logged.model_id,
                # one write: a version without its evidence never exists
                tags={**own, f"{PREFIX}tags": canonical(dict(tags)), **tags},
            )
        return self.version(model, str(registered.version))

    def version(self, model: str, version: str) -> ModelVersion:
        """One version; see `ports.Registry.version`."""
        return _model_version(model, self._registered_version(model, version))

    def versions(self, model: str) -> tuple[ModelVersion, ...]:
        """All versions, oldest first; those that another program registered are left out."""
        return tuple(_model_version(model, registered) for registered in self._registered(model))

    def load(self, model: str, version: str, *, digest: str) -> Any:
        """The fitted estimator, built from skops after its digest and its types were checked; see `ports.Registry`.

        MLflow's own tag says nothing here: who can put a file there can set the tag as well.
        """
        source = self._registered_version(model, version).source
        what = f"version {version} of {model!r}"
        with scratch_folder(RegistryError, f"{what} is copied there") as scratch:
            folder = self._mlflow.download(source, scratch, what)
            return load_model(folder, self._trust(model), what=what, source=source, digest=digest)

    def profile(self, model: str, version: str) -> Profile:
        """The reference profile that was saved with the version; see `ports.Registry.profile`."""
        return self._read(self.version(model, version).run_id, "profile.json", partial(from_json, Profile))

    def _trust(self, model: str) -> set[str]:
        return {*TRUSTED_TYPES, *self._trusted(model)}

    def _registered_version(self, model: str, version: str) -> RegisteredVersion:
        registered = {str(v.version): v for v in self._registered(model)}
        if version not in registered:
            raise ArtifactMissing(
                f"model {model!r} has no version {version!r} in MLflow at {self._mlflow.uri}; it has "
                f"{list(registered)}."
            )
        return registered[version]

    def _registered(self, model: str) -> list[RegisteredVersion]:
        """The versions that `register` made, as MLflow gives them, oldest first."""
        quoted = model.replace("'", "''")
        versions: list[RegisteredVersion] = []
        token: str | None = None
        with self._mlflow.asking(f"list the versions of {model!r}"):
            while token is None or token:
                page = self._client.search_model_versions(f"name = '{quoted}'", page_token=token)
                versions += page
                token = page.token or ""
        ours = [v for v in versions if all(f"{PREFIX}{field}" in v.tags for field in _FIELDS)]
        return sorted(ours, key=lambda v: int(v.version))

    # --- aliases -----------------------------------------------------------------------------------------------

    def aliases(self, model: str) -> dict[str, str]:
        """Alias -> version; see `ports.Registry.aliases`."""
        from mlflow.exceptions import MlflowException

        with self._mlflow.asking(f"read the aliases of {model!r}"):
            try:
                aliases = self._client.get_registered_model(model).aliases
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return {}
        return {alias: str(aliases[alias]) for alias in ("champion", "challenger") if alias in aliases}

    def set_aliases(self, model: str, aliases: Mapping[str, str | None]) -> None:
        """Make the aliases so and read them back; see `ports.Registry.set_aliases`."""
        for named in filter(None, aliases.values()):
            self.version(model, named)
        before = self.aliases(model)
        for alias, version in aliases.items():
            if before.get(alias) != version:
                self._set_alias(model, alias, version)
        after = self.aliases(model)
        differ = {alias: version for alias, version in aliases.items() if after.get(alias) != version}
        if differ:
            raise RegistryError(f"aliases of {model!r} were set to {differ}; read back {after}. Run it again.")

    def _set_alias(self, model: str, alias: str, version: str | None) -> None:
        """One alias; MLflow may refuse what another process has just done: what it holds afterwards counts."""
        try:
            with self._mlflow.asking(f"set the alias {alias!r} of {model!r}"):
                if version is None:
                    self._client.delete_registered_model_alias(model, alias)
                else:
                    self._client.set_registered_model_alias(model, alias, version)
        except RegistryUnavailable:
            raise
        except RegistryError:
            if self.aliases(model).get(alias) != version:
                raise


def _model_version(model: str, registered: RegisteredVersion) -> ModelVersion:
    own = {key: registered.tags[f"{PREFIX}{key}"] for key in _FIELDS}
    return ModelVersion(
        model=model,
        version=str(registered.version),
        run_id=registered.run_id,
        snapshot=from_json(Snapshot, json.loads(own["snapshot"])),
        artifact_digest=own["artifact_digest"],
        holdout_loss=float(own["holdout_loss"]),
        holdout_rows=int(own["holdout_rows"]),
        holdout_standard_error=float(own["holdout_error"]),
        label_mean=float(own["label_mean"]),
        tags=json.loads(registered.tags.get(f"{PREFIX}tags", "{}")),
    )
