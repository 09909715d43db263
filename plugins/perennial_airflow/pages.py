"""Pages for people, rendered on the server: who serves, what was decided last, and the reports.

Every route asks for a user whom Airflow knows and who may see its website. Pages only read: nothing here can
change anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.api_fastapi.auth.managers.models.resource_details import AccessView
from airflow.api_fastapi.core_api.security import requires_access_view
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, select_autoescape

from perennial.records import DECISION_KINDS, LedgerEntry
from perennial.spec import ModelSpec, load_specs
from perennial_airflow import links, wiring
from perennial_airflow.workflow import dag_id

if TYPE_CHECKING:
    from perennial.stores.ports import Ledger

#: Rows of each table on a model's page.
SHOWN_DECISIONS = 15
SHOWN_REPORTS = 20
WORKFLOWS = ("score", "monitor", "drift_sensor", "retrain", "rollout", "watch")
#: A report's scripts may draw, but never act for the person who is logged in: they run in an origin of their own.
REPORT_HEADERS = {"Content-Security-Policy": "sandbox allow-scripts allow-popups", "X-Content-Type-Options": "nosniff"}

_templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True))


def make_app() -> FastAPI:
    """The application that Airflow serves below `/perennial`."""
    app = FastAPI(
        title="Perennial",
        dependencies=[Depends(requires_access_view(AccessView.WEBSITE))],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )

    @app.get("/status", response_class=HTMLResponse)
    def all_models() -> str:
        settings = wiring.settings()
        ledger = wiring.open_ledger(settings.ledger_url)
        good, bad = load_specs()
        models = [summary(spec, ledger) for spec in good.values()]
        errors = [str(error) for error in bad.values()]
        return _templates.get_template("status.html").render(models=models, errors=errors, detail=None)

    @app.get("/status/{model}", response_class=HTMLResponse)
    def model_page(model: str) -> str:
        settings = wiring.settings()
        spec = load_specs()[0].get(model)
        if spec is None:
            raise HTTPException(404, f"no model {model!r} with a good spec")
        ledger = wiring.open_ledger(settings.ledger_url)
        detail = {
            "spec": spec,
            "decisions": decisions(spec, ledger),
            "reports": report_names(settings.reports / spec.name),
            "docs": (settings.reports / spec.name / "data_docs" / "index.html").exists(),
            "mlflow": links.mlflow_model_url(spec),
            "dags": {name: f"{settings.airflow_url}/dags/{dag_id(spec.name, name)}" for name in WORKFLOWS},
        }
        return _templates.get_template("status.html").render(models=[summary(spec, ledger)], errors=[], detail=detail)

    @app.get("/reports/{model}")
    @app.get("/reports/{model}/")
    def reports_of(model: str) -> RedirectResponse:
        return RedirectResponse(f"/perennial/status/{quote(model)}#reports")

    @app.get("/reports/{path:path}")
    def report(path: str) -> FileResponse:
        return FileResponse(report_file(wiring.settings().reports, path), headers=REPORT_HEADERS)

    return app


def report_file(root: Path, path: str) -> Path:
    """The report at `path` below `root`.

    Raises:
        HTTPException: 404 where there is none, also for every path that leads out of `root`.
    """
    file = (root / path).resolve()
    if not file.is_relative_to(root.resolve()) or file.suffix != ".html" or not file.is_file():
        raise HTTPException(404, f"no report {path!r}; old reports are removed (monitoring.keep_reports)")
    return file


def report_names(folder: Path) -> list[str]:
    """File names of a model's drift reports, newest partition first."""
    return sorted((file.name for file in folder.glob("*.html")), reverse=True)[:SHOWN_REPORTS]


def summary(spec: ModelSpec, ledger: Ledger) -> dict[str, Any]:
    """One row of the table of models: who serves, how far a rollout is and when it ends, the newest verdicts."""
    from perennial.loop import rollout

    deployment = ledger.deployment(spec.name)
    newest = {kind: ledger.entries(spec.name, kind=kind, newest=1) for kind in ("health", "retraining")}
    rollout_id = deployment.rollout_id if deployment else None
    return {
        "name": spec.name,
        "description": spec.description,
        "owner": spec.owner,
        "deployment": deployment,
        "stages": len(spec.rollout.steps),
        "ends_at": rollout.ends_at(spec, ledger, rollout_id) if rollout_id else None,
        **{kind: entries[0] if entries else None for kind, entries in newest.items()},
        "incident": incident_of(newest["retraining"]),
    }


def incident_of(newest: Sequence[LedgerEntry]) -> str:
    """What the newest look of the retraining rule says of a champion that has failed; empty where it has not."""
    return str(newest[0].body.get("statistics", {}).get("incident") or "") if newest else ""


def decisions(spec: ModelSpec, ledger: Ledger) -> list[dict[str, Any]]:
    """The newest decisions about a model, newest first."""
    entries: list[LedgerEntry] = []
    for kind in DECISION_KINDS:
        entries += ledger.entries(spec.name, kind=kind, newest=SHOWN_DECISIONS)
    newest = sorted(entries, key=lambda entry: entry.seq, reverse=True)[:SHOWN_DECISIONS]
    return [{"entry": entry, "reason": reason_of(entry)} for entry in newest]


def reason_of(entry: LedgerEntry) -> str:
    """The decisive reason of an entry; empty where its kind gives none."""
    reasons = entry.body.get("reasons") or [entry.body.get("reason", "")]
    return str(reasons[0])
