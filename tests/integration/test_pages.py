"""The pages in the Airflow UI: behind Airflow's own login, read only, and nothing outside the reports' folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from perennial.records import Deployment, RunLink
from perennial.stores.memory import memory_ledger

Get = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PERENNIAL_HOME", str(tmp_path))
    folder = tmp_path / "reports" / "flight_delay"
    (folder / "data_docs").mkdir(parents=True)
    (folder / "2013-06-03T000000.html").write_text("<p>drift report", encoding="utf-8")
    (folder / "data_docs" / "index.html").write_text("<p>docs", encoding="utf-8")
    (tmp_path / "passwords.html").write_text("secret", encoding="utf-8")
    (folder / "ledger.db").write_text("secret", encoding="utf-8")
    (folder / "link.html").symlink_to(tmp_path / "passwords.html")
    return tmp_path


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    from perennial_airflow import wiring

    found = memory_ledger()
    monkeypatch.setattr(wiring, "open_ledger", lambda url: found)
    yield found
    found.close()


@pytest.fixture
def get(home: Path, ledger: Any) -> Iterator[Get]:
    """Ask for a page of the plugin's application, as a user that Airflow knows."""
    import httpx
    from airflow.api_fastapi.core_api.security import get_user
    from asgiref.sync import async_to_sync

    from perennial_airflow.pages import make_app

    app = make_app()

    def ask(path: str, *, known: bool = True) -> Any:
        app.dependency_overrides = {get_user: admin} if known else {}

        async def answer() -> httpx.Response:
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.get(path)

        return async_to_sync(answer)()

    yield ask
    app.dependency_overrides = {}


def admin() -> Any:
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

    return SimpleAuthManagerUser(username="admin", role="admin")


@pytest.fixture(autouse=True)
def _auth_manager() -> None:
    from airflow.api_fastapi.app import create_auth_manager, init_auth_manager

    create_auth_manager()
    init_auth_manager()


PAGES = ("/status", "/status/flight_delay", "/reports/flight_delay/2013-06-03T000000.html")


@pytest.mark.parametrize("path", [*PAGES, "/reports/flight_delay", "/reports/flight_delay/data_docs/index.html"])
def test_a_stranger_sees_nothing(get: Get, path: str) -> None:
    answer = get(path, known=False)
    assert answer.status_code == 401
    assert "drift report" not in answer.text


@pytest.mark.parametrize("path", PAGES)
def test_a_user_sees_every_page(get: Get, path: str) -> None:
    assert get(path).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "../passwords.html",
        "%2e%2e/passwords.html",
        "flight_delay/..%2f..%2fpasswords.html",
        "flight_delay/link.html",
        "flight_delay/ledger.db",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        "flight_delay/absent.html",
        "flight_delay/data_docs",
    ],
)
def test_no_path_leads_out_of_the_reports(get: Get, path: str) -> None:
    answer = get(f"/reports/{path}")
    assert answer.status_code in {404, 307}
    assert "secret" not in answer.text


@pytest.mark.parametrize("path", ["/reports/flight_delay", "/reports/flight_delay/"])
def test_the_reports_of_a_model_are_found_on_its_page(get: Get, path: str) -> None:
    answer = get(path)
    assert answer.status_code == 307
    assert answer.headers["location"] == "/perennial/status/flight_delay#reports"


def test_a_report_cannot_act_for_the_person_who_reads_it(get: Get) -> None:
    answer = get("/reports/flight_delay/2013-06-03T000000.html")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "allow-same-origin" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_status_page_says_who_serves_what_was_decided_and_where_the_reports_are(get: Get, ledger: Any) -> None:
    common: dict[str, Any] = {
        "as_of": datetime(2013, 6, 10, tzinfo=UTC),
        "run": RunLink("r", url="http://127.0.0.1/log"),
    }
    ledger.deploy(
        Deployment("flight_delay", 1, "7", "8", split=0.25, stage=1, rollout_id="r1"),
        kind="deployment",
        subject="r1",
        verdict="STAGE",
        body={},
        **common,
    )
    ledger.append(
        model="flight_delay",
        kind="retraining",
        subject="2013-06-03T00:00:00",
        verdict="WAIT",
        body={"reasons": ["loss <b>0.41</b> is no worse"]},
        **common,
    )
    page = get("/status/flight_delay").text
    for part in ("v7", "v8", "25 %", "stage 2 of 4", "WAIT", "/perennial/reports/flight_delay/2013-06-03T000000.html"):
        assert part in page
    # what the ledger holds is shown, never run
    assert "loss &lt;b&gt;0.41&lt;/b&gt; is no worse" in page
    assert "/perennial/reports/flight_delay/data_docs/index.html" in page


def test_a_bad_spec_is_shown_beside_the_good_models(get: Get, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "spec.yaml").write_text("nme: broken\n", encoding="utf-8")
    monkeypatch.setenv("PERENNIAL_MODELS", str(tmp_path / "models"))
    page = get("/status").text
    assert "broken/spec.yaml:1" in page
    assert "/perennial/status/flight_delay" in page


def test_an_unknown_model_is_not_found(get: Get) -> None:
    assert get("/status/nobody").status_code == 404


def test_airflow_loads_the_plugin_without_the_web_framework(project: Path) -> None:
    import subprocess
    import sys

    script = (
        "import sys\n"
        "from airflow.plugins_manager import AirflowPlugin\n"
        "before = 'airflow.api_fastapi.core_api.security' in sys.modules\n"
        "sys.path.append('plugins')\n"
        "from perennial_airflow.plugin import PerennialPlugin\n"
        "assert issubclass(PerennialPlugin, AirflowPlugin)\n"
        "print('RESULT', before, 'perennial_airflow.pages' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=project)
    assert done.stdout.strip().endswith("False")
