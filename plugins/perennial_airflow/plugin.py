"""What Perennial adds to the Airflow UI: a status page a model, and the reports."""

from __future__ import annotations

from typing import Any

from airflow.plugins_manager import AirflowPlugin

from perennial_airflow.pages import make_app


class PerennialPlugin(AirflowPlugin):
    """Pages below `/perennial`, and their entry in the navigation."""

    name = "perennial"
    fastapi_apps: list[Any] = [  # noqa: RUF012 - the base class declares instance variables
        {"app": make_app(), "url_prefix": "/perennial", "name": "Perennial"}
    ]
    external_views: list[Any] = [  # noqa: RUF012 - the same
        {"name": "Perennial", "href": "/perennial/status", "destination": "nav", "url_route": "perennial"}
    ]
