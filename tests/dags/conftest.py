"""DAGs as Airflow sees them, run in this process: real task runner, real metadata database, real loop and stores."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from made_model import MadeModel, copy_model, write_model
from scheduler import Scheduler
from slack_server import CONNECTION, Slack, local_slack

from perennial.spec import load_specs
from perennial.stores.open import open_stores
from perennial.stores.ports import Stores

#: number of the day at whose end the made model's sensor asks for a retrain
RETRAIN_DAY = 5


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    return write_model(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def _airflow_database(_made: MadeModel) -> None:
    """Airflow's tables, and all DAGs of this project and of the made model in them."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import BundleDagBag, sync_bag_to_db
    from airflow.settings import Session
    from airflow.utils.db import initdb

    with contextlib.redirect_stdout(io.StringIO()):
        initdb()
    manager = DagBundlesManager()
    session = Session()
    manager.sync_bundles_to_db(session=session)
    session.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERENNIAL_MODELS", str(_made.spec.folder.parent))
        for bundle in manager.get_all_dag_bundles():
            bundle.initialize()
            bag = BundleDagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
            sync_bag_to_db(bag, bundle.name, bundle.version)


# --- the made model on disk ------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _homes(_made: MadeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Homes in which the loop has lived to several points; MLflow's artifacts stay where they were written.

    `empty` nothing has happened. `champion` the first champion serves, two days were measured. `harmed` the sensor has
    all that it needs to ask for a retrain. `admitted` the gate has let a challenger in.
    """
    homes = {"empty": _made.settings.home}

    def keep(name: str) -> None:
        homes[name] = tmp_path_factory.mktemp("homes") / name
        shutil.copytree(_made.settings.home, homes[name], ignore=shutil.ignore_patterns("artifacts", "reports"))

    with open_stores(_made.settings) as stores:
        homes["empty"] = tmp_path_factory.mktemp("homes") / "empty"
        _made.first_champion(stores)
        for number in range(2):
            _made.live(stores, _made.day(number))
    keep("champion")
    with open_stores(_made.settings) as stores:
        for number in range(2, RETRAIN_DAY + 1):
            _made.score(stores, _made.day(number))
            _made.monitor(stores, _made.day(number))
    keep("harmed")
    with open_stores(_made.settings) as stores:
        change = _made.day(RETRAIN_DAY - 2).key
        admitted = _made.retrain(stores, _made.day(RETRAIN_DAY).end, "retrain-1", "lost quality", change)
        assert admitted.version == "2"
    keep("admitted")
    return homes


@pytest.fixture
def live_in(
    _made: MadeModel, _homes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., tuple[MadeModel, Stores]]]:
    """Airflow's tasks find a copy of the made model, and of one of the homes; both, to look at and to edit.

    Sections of the spec may be changed, as in `live_in("admitted", rollout={"strategy": "shadow"})`.
    """
    from perennial_airflow import wiring

    with contextlib.ExitStack() as opened:

        def live(home: str, **sections: Any) -> tuple[MadeModel, Stores]:
            made = copy_model(_made, tmp_path / "own").varied(**sections)
            if _homes[home].exists():
                shutil.copytree(_homes[home], made.settings.home)
            for name in ("PERENNIAL_LAKE", "PERENNIAL_LEDGER", "MLFLOW_TRACKING_URI"):
                monkeypatch.delenv(name, raising=False)
            monkeypatch.setenv("PERENNIAL_MODELS", str(made.spec.folder.parent))
            monkeypatch.setenv("PERENNIAL_SUITES", str(made.settings.suites))
            monkeypatch.setenv("PERENNIAL_HOME", str(made.settings.home))
            monkeypatch.setenv("PERENNIAL_POKE_SECONDS", "0.05")
            # the triggerer keeps its ledger open for life; here it ends with the test
            opened.callback(wiring.open_ledger.cache_clear)
            opened.callback(lambda: wiring.open_ledger(made.settings.ledger_url).close())
            return made, opened.enter_context(open_stores(made.settings))

        yield live


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slack]:
    """Where the alerts arrive."""
    with local_slack() as slack:
        monkeypatch.setenv(CONNECTION, slack.connection)
        yield slack


# --- Airflow ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def dagbag(_airflow_database: None) -> Any:
    """The project's DAGs, parsed once."""
    from airflow.dag_processing.dagbag import DagBag

    return DagBag()


@pytest.fixture
def scheduler(_airflow_database: None, load_dag_file: Callable[[str], Any]) -> Scheduler:
    return Scheduler(load_dag_file)


@pytest.fixture
def runs_of(_airflow_database: None) -> Callable[[str], dict[str, Any]]:
    """The runs of a DAG in the metadata database: run id -> conf."""

    def runs(dag_id: str) -> dict[str, Any]:
        import sqlalchemy as sa
        from airflow.models.dagrun import DagRun
        from airflow.settings import Session

        found = Session().scalars(sa.select(DagRun).where(DagRun.dag_id == dag_id))
        return {run.run_id: run.conf for run in found}

    return runs


@pytest.fixture
def load_dag_file(project: Any) -> Callable[[str], Any]:
    """A DAG file as a module, for its factory function."""
    import importlib.util

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"dag_file_{name}", project / "dags" / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def human_rollout(load_dag_file: Callable[[str], Any]) -> Any:
    """The rollout DAG of a model whose spec asks for a person's approval."""
    spec = load_specs()[0]["flight_delay"]
    asked = spec.model_copy(update={"rollout": spec.rollout.model_copy(update={"approval": "human"})})
    return load_dag_file("rollout").rollout_dag(asked)
