"""Where a person looks: addresses of pages in Airflow and MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from perennial.errors import without_secrets

if TYPE_CHECKING:
    from perennial.settings import Settings
    from perennial.spec import ModelSpec


def settings() -> Settings:
    """What is set now."""
    # reading the environment needs a library that no parse of a DAG file should wait for
    from perennial.settings import Settings

    return Settings()


def status_url(spec: ModelSpec) -> str:
    """The model's status page in the Airflow UI."""
    return without_secrets(f"{settings().airflow_url}/perennial/status/{quote(spec.name)}")


def reports_url(spec: ModelSpec) -> str:
    """The model's reports."""
    return without_secrets(f"{settings().airflow_url}/perennial/reports/{quote(spec.name)}")


def mlflow_model_url(spec: ModelSpec) -> str:
    """The model's versions in MLflow."""
    return without_secrets(f"{settings().mlflow_url}/#/models/{quote(spec.name)}")
