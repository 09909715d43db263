"""What Perennial adds to Airflow: a status page a model, the reports, a guard of every change, and a timetable."""

from __future__ import annotations

from functools import cache
from typing import Any

from airflow.plugins_manager import AirflowPlugin

from perennial_airflow.origin import OwnOrigin
from perennial_airflow.timetable import PartitionTimetable


@cache
def _pages() -> Any:
    from perennial_airflow.pages import make_app

    return make_app()


async def serve_pages(scope: Any, receive: Any, send: Any) -> None:
    """The pages as an ASGI application, made at the first request.

    Every component loads its plugins; only the api-server serves them, so only it imports the web framework.
    """
    await _pages()(scope, receive, send)


def people_see_it_at() -> str:
    """The address of Airflow's UI, as it is set."""
    from perennial.settings import Settings

    return Settings().airflow_url


class PerennialPlugin(AirflowPlugin):
    """Pages below `/perennial`, their entry in the navigation, and a timetable."""

    name = "perennial"
    fastapi_apps: list[Any] = [  # noqa: RUF012 - the base class declares instance variables
        {"app": serve_pages, "url_prefix": "/perennial", "name": "Perennial"}
    ]
    fastapi_root_middlewares: list[Any] = [  # noqa: RUF012 - the same
        {"middleware": OwnOrigin, "kwargs": {"allowed": people_see_it_at}, "name": "changes from our own pages only"}
    ]
    external_views: list[Any] = [  # noqa: RUF012 - the same
        {"name": "Perennial", "href": "/perennial/status", "destination": "nav", "url_route": "perennial"}
    ]
    timetables: list[Any] = [PartitionTimetable]  # noqa: RUF012 - the same
