"""Where the stores are. Read from the environment once, by the wiring; nothing below it looks at the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

PROJECT = Path(__file__).resolve().parent.parent.parent


class Settings(BaseSettings):
    """`PERENNIAL_*` variables; every default lives under `PERENNIAL_HOME`, which `rm -r` resets."""

    model_config = SettingsConfigDict(env_prefix="PERENNIAL_", frozen=True, use_attribute_docstrings=True)

    home: Path = PROJECT / ".perennial"
    """Folder of all local state: tables, databases, artifacts, reports, logs."""
    lake: str = ""
    """Root of the tables: a local folder, or `s3://bucket/prefix` with credentials and endpoint from the usual `AWS_*`
    variables. By default `lake` in the home folder."""
    ledger: str = ""
    """SQLAlchemy URL of the ledger: `sqlite:///...` or `postgresql+psycopg2://...`. By default `ledger.db` in the home
    folder."""
    heads: str = ""
    """Where the head of the ledger's chain is kept after every entry, signed: a folder or `s3://bucket/prefix` that
    whoever can write to the ledger's database cannot write to. By default nowhere."""
    heads_key: Path | None = None
    """PEM file with the Ed25519 key that signs the heads (`openssl genpkey -algorithm ed25519`); to verify, its public
    half is enough, with those of former keys below it."""
    suites: Path = PROJECT / "great_expectations"
    """Folder that holds `expectations/<suite>.json`."""
    mlflow: str = Field(default="", validation_alias="MLFLOW_TRACKING_URI")
    """MLflow's tracking and registry address: a server's `http://` address, or `sqlite:///...`. By default `mlflow.db`
    in the home folder."""
    airflow_url: str = "http://127.0.0.1:8080"
    """Address of Airflow's UI as people type it, for links in alerts and pages. Behind a proxy it is the origin whose
    pages may change something."""
    wait_seconds: float = Field(default=15, ge=0.1, le=600)
    """How long a lake, ledger or MLflow that is silent or locked is waited for, in seconds, before the step fails. The
    usual variables of S3 and MLflow (`AWS_*`, `MLFLOW_HTTP_REQUEST_*`) go before it."""
    mlflow_url: str = "http://127.0.0.1:5000"
    """Address of MLflow's UI, for links in alerts and pages."""

    @property
    def lake_root(self) -> str:
        """Root of the Delta tables."""
        return self.lake or str(self.home / "lake")

    @property
    def ledger_url(self) -> str:
        """The ledger's database."""
        return self.ledger or f"sqlite:///{self.home / 'ledger.db'}"

    @property
    def tracking_uri(self) -> str:
        """MLflow's tracking and registry address."""
        return self.mlflow or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def reports(self) -> Path:
        """Evidently reports and Data Docs, as HTML."""
        return self.home / "reports"

    @property
    def environment(self) -> Mapping[str, str]:
        """What `${NAME}` in a source's path or URL stands for."""
        return os.environ
