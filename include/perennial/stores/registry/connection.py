"""The connection to MLflow: opened at the first call, its errors raised as ours."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

from perennial.errors import ArtifactMissing, RegistryError, RegistryUnavailable, without_secrets
from perennial.stores.database import WAIT_SECONDS, patience
from perennial.stores.registry.artifacts import is_absence
from perennial.stores.registry.database import broken, make_database
from perennial.stores.scratch import without_room

if TYPE_CHECKING:
    from mlflow import MlflowClient


class Connection:
    """MLflow at one address."""

    def __init__(self, uri: str, wait_seconds: float = WAIT_SECONDS) -> None:
        """Args: `uri`: a server's http:// address, whose user and password are MLflow's login, or a database's URL."""
        self._login, self._uri = _login_in(uri)
        self._wait_seconds = wait_seconds

    @property
    def uri(self) -> str:
        """Where MLflow is, as a person may see it."""
        return without_secrets(self._uri)

    @cached_property
    def client(self) -> MlflowClient:
        """MLflow's own client; importing the library takes seconds, so it is made when it is first needed.

        So are the tables of a SQLite file.
        """
        self._reach_database()
        _quieten(self._wait_seconds)
        # MLflow's own errors and logs print the address: a login in it is handed over as MLflow wants it instead
        os.environ.update(self._login)
        from mlflow import MlflowClient

        make_database(self._uri)
        return MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)

    def _reach_database(self) -> None:
        """One connection, where MLflow itself would try for two minutes.

        Raises:
            sqlalchemy.exc.OperationalError: the database does not answer.
        """
        import sqlalchemy as sa

        if self._uri.startswith(("http://", "https://", "sqlite:")):
            return
        url = sa.make_url(self._uri)
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=patience(url, self._wait_seconds))
        with engine.connect():
            pass

    @contextmanager
    def asking(self, what: str) -> Iterator[None]:
        """Foreign errors become ours; they name the address and what was asked.

        Raises:
            RegistryUnavailable: the server or its database does not answer.
            RegistryError: it answered with an error.
        """
        import requests
        import sqlalchemy as sa
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, requests.RequestException, sa.exc.SQLAlchemyError, OSError) as error:
            if problem := broken(self.uri):
                raise RegistryError(problem) from error
            if full := without_room(error):
                raise RegistryError(
                    f"a disk of this machine has no room ({what}): {full}. Make room in the temporary folder "
                    f"({os.environ.get('TMPDIR') or 'TMPDIR is not set'}), and where MLflow keeps its files if that is "
                    "here; then run it again."
                ) from error
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, (requests.RequestException, sa.exc.OperationalError)):
                    raise RegistryUnavailable(
                        f"MLflow at {self.uri} does not answer ({what}): {error}. Start it, or correct "
                        "MLFLOW_TRACKING_URI; the task may then run again."
                    ) from error
                cause = cause.__cause__ or cause.__context__
            raise RegistryError(f"MLflow at {self.uri} refused ({what}): {error}.") from error

    def download(self, source: str, into: Path, what: str) -> Path:
        """The artifact's files, copied; a local folder of artifacts is read without asking MLflow.

        Raises:
            ArtifactMissing: there is nothing at `source`.
        """
        from mlflow.artifacts import download_artifacts
        from mlflow.exceptions import MlflowException

        with self.asking(f"download {what}"):
            try:
                return Path(download_artifacts(artifact_uri=source, dst_path=str(into), tracking_uri=self._uri))
            except (MlflowException, OSError) as error:
                if is_absence(error):
                    raise ArtifactMissing(
                        f"{what}: nothing at {source}; the artifact is gone. Restore it from a backup, roll back, or "
                        "retrain."
                    ) from error
                raise


def _login_in(uri: str) -> tuple[dict[str, str], str]:
    """The variables that MLflow takes a login from, and the address without it."""
    if not uri.startswith(("http://", "https://")):
        return {}, uri
    parts = urlsplit(uri)
    if parts.username is None:
        return {}, uri
    login = {
        "MLFLOW_TRACKING_USERNAME": unquote(parts.username),
        "MLFLOW_TRACKING_PASSWORD": unquote(parts.password or ""),
    }
    return login, urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _quieten(wait_seconds: float) -> None:
    """MLflow's own settings, which only the environment takes; what is set already stays."""
    for name, value in {
        # a server that refuses or is silent is reported within seconds instead of minutes; it has two tries
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, round(wait_seconds / 2))),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)
    import mlflow  # noqa: F401 - configures its loggers when first imported

    for noisy in ("mlflow", "alembic"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
