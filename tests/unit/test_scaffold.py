"""`perennial new`: all files of a model or none, and a model that is good as it stands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from perennial.data.sources import check_readers, read_batch, read_labels
from perennial.errors import SpecError
from perennial.measures import checks
from perennial.model.training import load_pipeline
from perennial.spec import load_spec, scaffold
from perennial.spec.scaffold import create_model


def create(root: Path, name: str = "parcel_returns") -> tuple[Path, ...]:
    return create_model(
        root / "include" / "models", name, suites=root / "great_expectations", tests=root / "tests" / "models"
    )


def files_in(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if "__pycache__" not in path.parts}


def test_a_new_model_is_good_as_it_stands(tmp_path: Path) -> None:
    files = create(tmp_path)
    assert all(file.is_file() for file in files)
    spec = load_spec(files[0])
    suite = checks.load_suite(tmp_path / "great_expectations", spec.expectations)
    checks.check_suite(suite, spec)
    check_readers(spec, {})
    assert load_pipeline(spec)(dict(spec.training.params), spec.training.seed) is not None
    week = spec.schedule.partition(spec.schedule.start)
    assert read_batch(spec, week, {}).num_rows == 700
    assert set(read_labels(spec, week.start, week.end, {})["label"].to_pylist()) == {0.0, 1.0}
    assert spec.rollout.approval == "human"


def test_no_placeholder_is_left_in_the_files(tmp_path: Path) -> None:
    for file in create(tmp_path):
        text = file.read_text().replace('{"$batch"', "").replace("# yaml-language-server: $schema=", "")
        assert "$" not in text, file


def test_a_new_spec_tells_editors_where_the_schema_is(tmp_path: Path) -> None:
    spec = create(tmp_path)[0]
    first = spec.read_text().splitlines()[0]
    schema = spec.parent / first.removeprefix("# yaml-language-server: $schema=")
    assert json.loads(schema.read_text())["title"] == "Perennial model spec"


def test_the_code_of_a_new_model_passes_the_linter(tmp_path: Path, project: Path) -> None:
    create(tmp_path)
    # the project's own rules by path (tests may assert) apply where the files stand in its folders
    shutil.copy(project / "pyproject.toml", tmp_path / "pyproject.toml")
    for command in (["check"], ["format", "--check"]):
        subprocess.run([sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["Orders", "2nd", "my-model", "", "a b", "../up", "näher"])
def test_a_name_that_is_none_is_refused_with_one_that_is(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=r"is no model name: .* as in '[a-z][a-z0-9_]*'"):
        create(tmp_path, name)
    assert not files_in(tmp_path)


@pytest.mark.parametrize(
    "taken",
    [
        "include/models/parcel_returns/notes.txt",
        "great_expectations/expectations/parcel_returns.json",
        "tests/models/test_parcel_returns.py",
    ],
)
def test_a_name_that_is_taken_is_refused_and_nothing_is_written(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).parent.mkdir(parents=True)
    (tmp_path / taken).write_text("mine")
    before = files_in(tmp_path)
    with pytest.raises(SpecError, match="exists already; nothing was written"):
        create(tmp_path)
    assert files_in(tmp_path) == before
    assert (tmp_path / taken).read_text() == "mine"


def test_a_model_that_cannot_be_written_whole_is_not_written_at_all(tmp_path: Path) -> None:
    (tmp_path / "tests").write_text("a file where a folder must be")
    before = files_in(tmp_path)
    with pytest.raises(SpecError, match="cannot be written"):
        create(tmp_path)
    assert files_in(tmp_path) == before


def test_a_template_that_is_broken_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaffold, "_TEMPLATES", tmp_path / "no templates")
    with pytest.raises(FileNotFoundError):
        create(tmp_path)
    assert not files_in(tmp_path)
