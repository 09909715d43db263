"""The import rules, and what must not be in the repository."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import grimp
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2]
ARCHITECTURE = PROJECT / "ARCHITECTURE.md"
DAG_FILES = sorted((PROJECT / "dags").glob("*.py"))

#: What a DAG file may import when Airflow parses it. The rest of Airflow, and its providers, are slow to import.
AT_TOP = ("airflow.sdk", "perennial_airflow", "perennial.spec", "perennial.records", "perennial.errors")
#: What a task body may import as well.
IN_TASKS = (*AT_TOP, "perennial.loop", "airflow.providers")
#: the longest file and the longest function, in lines; how branched a function may be is ruff's to say (C901)
FILE_LINES, FUNCTION_LINES = 400, 50
#: What is longer, and why. A line that is no longer needed fails the test.
LONGER = {
    "include/perennial/stores/migrations/versions/v0001_ledger.py upgrade": "a migration stays as it was applied",
    "dags/retrain.py retrain_dag": "Airflow makes tasks of nested functions; each of the five is a few lines",
}
HEAVY = (
    "pandas",
    "mlflow",
    "sklearn",
    "evidently",
    "great_expectations",
    "deltalake",
    "pyarrow",
    "scipy",
    "matplotlib",
    "statsmodels",
)


def imported(tree: ast.AST, *, inside: bool = False) -> Iterator[tuple[str, int, bool]]:
    """Module, line, and whether the import stands inside a function, of every import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((name.name, node.lineno, inside) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if module in {"perennial", "airflow"}:
                yield from ((f"{module}.{name.name}", node.lineno, inside) for name in node.names)
            else:
                yield module, node.lineno, inside
        yield from imported(
            node, inside=inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )


def under(module: str, roots: tuple[str, ...]) -> bool:
    return any(module == root or module.startswith(f"{root}.") for root in roots)


def refused(source: str) -> list[str]:
    """The imports of a DAG file's text that the rules do not allow."""
    return [
        f"line {line}: {module}"
        for module, line, inside in imported(ast.parse(source))
        if module.split(".")[0] not in sys.stdlib_module_names and not under(module, IN_TASKS if inside else AT_TOP)
    ]


def tracked_files() -> list[Path]:
    """The files that git keeps."""
    found = subprocess.run(["git", "-C", str(PROJECT), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if found.returncode:
        pytest.skip("not a git checkout: there is no list of the repository's files")
    return [PROJECT / name for name in found.stdout.split("\0") if name and (PROJECT / name).is_file()]


def pyproject_requirements() -> list[Requirement]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [text for extra in project["optional-dependencies"].values() for text in extra]
    return [Requirement(text) for text in (*project["dependencies"], *extras)]


def locked() -> dict[str, tuple[str, int]]:
    """Package -> version and number of hashes, as the lock holds them."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    entries = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = {}
    for entry in entries:
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*])?==([^ ;]+)", entry)
        assert match, f"the lock holds a line that pins nothing: {entry[:80]}"
        found[canonicalize_name(match[1])] = (match[2], entry.count("--hash=sha256:"))
    return found


def test_the_layers_import_downwards_only() -> None:
    found = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_map_shows_the_folders_that_are_there() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    table = text[text.index("| folder | what it is for |") : text.index("Three files stand beside the folders")]
    mapped = re.findall(r"^\| `(\w+)/` \| \S", table, flags=re.MULTILINE)
    folders = [file.parent.name for file in (PROJECT / "include" / "perennial").glob("*/__init__.py")]
    assert sorted(mapped) == sorted(folders)


def test_the_drawn_arrows_are_the_imports() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+)$", text, flags=re.MULTILINE))
    graph = grimp.build_graph("perennial", "perennial_airflow", cache_dir=None)

    def folder(module: str) -> str:
        package, *rest = module.split(".")
        return package if package == "perennial_airflow" else (rest[0] if rest else "")

    imports = {
        (folder(module), folder(found))
        for module in graph.modules
        for found in graph.find_modules_directly_imported_by(module)
        if folder(module) and folder(found) and folder(module) != folder(found)
    }

    def reached(start: str) -> set[str]:
        following = {target for source, target in imports if source == start}
        return following.union(*(reached(target) for target in following))

    ways = {
        (source, target)
        for source, target in imports
        if not any(middle != target and target in reached(middle) for start, middle in imports if start == source)
    }
    assert drawn == ways


def too_long(file: str, source: str) -> list[str]:
    """The file, and its functions, that are longer than the limits."""
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = [n.name for n in functions if (n.end_lineno or n.lineno) - n.lineno + 1 > FUNCTION_LINES]
    return [*([file] if len(source.splitlines()) > FILE_LINES else []), *(f"{file} {name}" for name in long)]


def test_files_and_functions_are_short() -> None:
    files = [file for folder in ("include", "plugins", "dags") for file in (PROJECT / folder).rglob("*.py")]
    assert files
    texts = {str(file.relative_to(PROJECT)): file.read_text(encoding="utf-8") for file in files}
    assert sorted(name for file, text in texts.items() for name in too_long(file, text)) == sorted(LONGER)


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("x = 1\n" * 400, []),
        ("x = 1\n" * 401, ["f.py"]),
        ("def f():\n" + "    x = 1\n" * 49, []),
        ("def f():\n" + "    x = 1\n" * 50, ["f.py f"]),
        ("class A:\n    async def g(self):\n" + "        x = 1\n" * 50, ["f.py g"]),
    ],
)
def test_the_limit_of_lines_names(source: str, named: list[str]) -> None:
    assert too_long("f.py", source) == named


def test_there_is_a_dag_file_for_each_workflow() -> None:
    workflows = {"score", "monitor", "drift_sensor", "retrain", "rollout", "watch"}
    assert workflows <= {file.stem for file in DAG_FILES}
    assert workflows <= {file.stem for file in (PROJECT / "include" / "perennial" / "loop").iterdir()}


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda file: file.name)
def test_a_dag_file_imports_the_wiring_and_in_its_tasks_the_loop(file: Path) -> None:
    assert refused(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pandas",
        "from perennial.loop import score",
        "from perennial.stores import lake",
        "from perennial import stores",
        "from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook",
        "def task():\n    import mlflow",
        "def task():\n    from perennial.decisions import drift",
    ],
)
def test_the_rule_for_dag_files_refuses(source: str) -> None:
    assert len(refused(source)) == 1


def test_parsing_a_dag_file_loads_nothing_heavy() -> None:
    program = (
        "import runpy, sys\n"
        "for file in sys.argv[2:]: runpy.run_path(file)\n"
        "print(sorted(set(sys.argv[1].split(',')) & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", program, ",".join(HEAVY), *map(str, DAG_FILES)],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "plugins"), "PERENNIAL_MODELS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == "[]"


def test_no_file_knows_the_machine_it_was_written_on() -> None:
    # a home or scratch folder, a package index by name, a file: address
    machine = re.compile(rb"/(?:home|Users|root|work)/\w|file:///\w|pypi\.org|pythonhosted\.org|https?://\S+/simple\b")
    found = []
    for file in tracked_files():
        if file == Path(__file__):
            continue
        content = file.read_bytes()
        if b"\0" not in content[:8000]:
            found += [
                f"{file.relative_to(PROJECT)}:{number}: {line.strip()[:120].decode(errors='replace')}"
                for number, line in enumerate(content.splitlines(), start=1)
                if machine.search(line)
            ]
    assert found == []


def test_no_state_and_no_data_are_kept_in_git() -> None:
    names = [str(file.relative_to(PROJECT)) for file in tracked_files()]
    kept = [name for name in names if re.search(r"\.(db|sqlite|parquet|pkl|skops)$|^\.perennial/|^\.env$", name)]
    # a truncated Parquet file is what some tests are about
    assert [name for name in kept if not name.startswith("tests/data/")] == []


def test_the_lock_holds_everything_that_pyproject_asks_for() -> None:
    found = locked()
    for requirement in pyproject_requirements():
        name = canonicalize_name(requirement.name)
        assert name in found, f"{requirement} is not in requirements.lock. Run `make lock`."
        version = found[name][0]
        assert requirement.specifier.contains(version, prereleases=True), (
            f"requirements.lock has {name} {version}, pyproject.toml asks for {requirement}. Run `make lock`."
        )


def test_every_locked_package_has_hashes_and_no_address() -> None:
    found = locked()
    assert len(found) > len(pyproject_requirements())
    assert [name for name, (_, hashes) in found.items() if not hashes] == []
    assert "://" not in (PROJECT / "requirements.lock").read_text(encoding="utf-8")
