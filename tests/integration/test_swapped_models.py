"""Somebody writes to MLflow, which asks nobody's leave: what serves is what the ledger names, or nothing.

The commands are those that a person types, on Delta tables, SQLite and MLflow.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from made_model import MadeModel, copy_model, write_model
from states import rows_of
from typer.testing import CliRunner

from perennial.cli import app
from perennial.records import Event, Kind, ScoringBody
from perennial.stores.open import open_stores
from perennial.stores.registry import digest_folder

#: the first batch that the rollout of version 2 serves
FIRST = 6


@dataclass(frozen=True)
class Attacked:
    """A model whose version 1 serves and whose version 2 was admitted, and somebody who can write to MLflow."""

    made: MadeModel

    def folder(self, version: str) -> Path:
        """Where the artifact lies."""
        return Path(self._client().get_model_version("made", version).source)

    def swap(self, version: str) -> None:
        """Serve the opposite from now on, and let MLflow's tag say that this is what was registered."""
        import skops.io

        folder = self.folder(version)
        model = skops.io.load(folder / "model.skops", trusted=["numpy.dtype"])
        model[-1].coef_, model[-1].intercept_ = -model[-1].coef_, -model[-1].intercept_
        self.put(version, "model.skops", skops.io.dumps(model))

    def put(self, version: str, name: str, content: bytes) -> None:
        """One file of the artifact, and the tag."""
        folder = self.folder(version)
        # a file that may not be written can be replaced, where the folder may be
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        self._client().set_model_version_tag("made", version, "perennial.artifact_digest", digest_folder(folder))

    def _client(self) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(self.made.settings.tracking_uri, self.made.settings.tracking_uri)

    def type(self, *arguments: str, code: int = 0) -> str:
        """What `perennial` says."""
        said = CliRunner().invoke(app, list(arguments))
        assert said.exit_code == code, said.output
        assert code == 0 or isinstance(said.exception, SystemExit), said.exception
        return said.output

    def look(self, seen: Callable[..., Any]) -> Any:
        with open_stores(self.made.settings) as stores:
            return seen(stores)


@pytest.fixture(scope="module")
def _lived(tmp_path_factory: pytest.TempPathFactory) -> MadeModel:
    made = write_model(tmp_path_factory.mktemp("swapped"))
    with open_stores(made.settings) as stores:
        assert made.first_champion(stores).first
        for number in range(FIRST):
            made.score(stores, made.day(number))
        # labels of all days before
        made.monitor(stores, made.day(FIRST - 1))
        change = made.day(FIRST - 3).key
        assert made.retrain(stores, made.day(FIRST - 1).end, "retrain-1", "lost quality", change).version == "2"
    return made


@pytest.fixture
def attacked(_lived: MadeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacked]:
    made = copy_model(_lived, tmp_path / "own")
    shutil.copytree(_lived.settings.home, made.settings.home)
    for name in ("PERENNIAL_LAKE", "PERENNIAL_LEDGER", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PERENNIAL_MODELS", str(made.spec.folder.parent))
    monkeypatch.setenv("PERENNIAL_SUITES", str(made.settings.suites))
    monkeypatch.setenv("PERENNIAL_HOME", str(made.settings.home))
    found = Attacked(made)
    for version in ("1", "2"):
        # the artifacts lie where they were written: the next test finds them as they were
        shutil.copytree(found.folder(version), tmp_path / version)
    yield found
    for version in ("1", "2"):
        folder = found.folder(version)
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / version, folder)


def test_a_champion_that_was_swapped_serves_nothing(attacked: Attacked) -> None:
    day = attacked.made.day(FIRST).key
    attacked.swap("1")
    said = attacked.type("score", "made", day, code=1)
    assert "ArtifactChanged: version 1 of 'made'" in said
    assert "the ledger says" in said
    assert [row for row in attacked.look(lambda s: rows_of(s, "predictions")) if row["partition"] == day] == []
    assert attacked.look(lambda s: s.ledger.entries("made", kind=Kind.SCORING, subject=day)) == ()


def test_a_challenger_that_was_swapped_before_its_rollout_gets_none(attacked: Attacked) -> None:
    attacked.swap("2")
    said = attacked.type("rollout", "made", "2", code=1)
    assert "ArtifactChanged: version 2 of 'made' is tagged with artifact digest" in said
    assert attacked.look(lambda s: s.ledger.deployment("made")).challenger is None


def scored_beside(attacked: Attacked) -> ScoringBody:
    """What became of the first batch of version 2's rollout, which the champion must have served whole."""
    day = attacked.made.day(FIRST)
    said = attacked.type("score", "made", day.key)
    assert "400 rows scored; served: 400 by version 1." in said
    [entry] = attacked.look(lambda s: s.ledger.entries("made", kind=Kind.SCORING, subject=day.key))
    assert entry.verdict == Event.SERVED
    body: ScoringBody = entry.read(ScoringBody)
    assert (body.missing, set(body.errors)) == ({"1": 0, "2": 400}, {"2"})
    return body


def test_a_challenger_that_was_swapped_in_its_rollout_serves_nothing_and_is_rolled_back(attacked: Attacked) -> None:
    attacked.type("rollout", "made", "2")
    attacked.swap("2")
    assert scored_beside(attacked).errors["2"].startswith("ArtifactChanged: version 2 of 'made'")
    attacked.type("monitor", "made", attacked.made.day(FIRST).key, "--no-report")
    assert "ROLL_BACK" in attacked.type("rollout", "made")
    assert attacked.look(lambda s: s.ledger.deployment("made")).challenger is None


@pytest.mark.parametrize("name", ["MLmodel", "model.skops"])
def test_a_challenger_with_an_empty_file_does_not_stop_the_champion(attacked: Attacked, name: str) -> None:
    attacked.type("rollout", "made", "2")
    attacked.put("2", name, b"")
    scored_beside(attacked)
