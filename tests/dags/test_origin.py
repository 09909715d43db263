"""A page of another origin cannot act for the person who is logged in to Airflow: the whole api-server, as served."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

HOST = "127.0.0.1:8080"
COOKIE = {"cookie": "_token=eyJ"}
Ask = Callable[..., Any]


@pytest.fixture(scope="module")
def api_server(_airflow_database: None) -> Any:
    """Airflow's own application with our plugin in it."""
    from airflow.api_fastapi.app import create_app, purge_cached_app

    yield create_app(apps="core")
    purge_cached_app()


@pytest.fixture
def ask(api_server: Any, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """The status and text of one request to it."""
    import httpx

    monkeypatch.setenv("PERENNIAL_AIRFLOW_URL", "https://airflow.example")

    def one(method: str, headers: dict[str, str], path: str = "/api/v2/dags/made_score/dagRuns") -> tuple[int, str]:
        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app=api_server, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
                return await client.request(method, path, headers=headers, json={"logical_date": None})

        found = asyncio.run(answer())
        return found.status_code, found.text

    return one


ELSEWHERE = [
    {"origin": "http://127.0.0.1:5000"},
    {"origin": "https://evil.example"},
    {"origin": "http://127.0.0.1:8080.evil.example"},
    {"origin": "null"},
    {"origin": ""},
    {"origin": "http://127.0.0.1:port"},
    {"sec-fetch-site": "same-site"},
    {"sec-fetch-site": "cross-site"},
]


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE"])
@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
def test_a_change_with_a_cookie_from_another_origin_is_refused(ask: Ask, method: str, headers: dict[str, str]) -> None:
    status, text = ask(method, {**COOKIE, **headers})
    assert status == 403
    assert "was refused" in text


@pytest.mark.parametrize("path", ["/perennial/status", "/auth/token", "/api/v2/variables"])
def test_every_part_of_the_server_is_guarded(ask: Ask, path: str) -> None:
    status, text = ask("POST", {**COOKIE, "origin": "https://evil.example"}, path)
    assert (status, "was refused" in text) == (403, True)


OURS = [
    {**COOKIE, "origin": f"http://{HOST}"},
    {**COOKIE, "origin": f"HTTP://{HOST}"},
    # a proxy that ends TLS, and hands on the host that people typed, or its own
    {**COOKIE, "origin": "https://airflow.example", "host": "airflow.example:443"},
    {**COOKIE, "origin": "https://airflow.example"},
    {**COOKIE, "sec-fetch-site": "same-origin"},
    # a script with a cookie jar; a client with a token, whatever it says of itself
    COOKIE,
    {"authorization": "Bearer eyJ"},
    {"authorization": "Bearer eyJ", "origin": "https://evil.example"},
]


@pytest.mark.parametrize("headers", OURS, ids=str)
def test_our_own_pages_and_clients_with_a_token_go_on_to_airflows_own_login(ask: Ask, headers: dict[str, str]) -> None:
    status, text = ask("POST", headers)
    assert "was refused" not in text
    # the token is none
    assert status in {401, 403}


def test_reading_is_not_asked_where_it_comes_from(ask: Ask) -> None:
    status, text = ask("GET", {**COOKIE, "origin": "https://evil.example"}, "/api/v2/monitor/health")
    assert (status, "was refused" in text) == (200, False)
