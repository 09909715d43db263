"""What can be known of docker-compose.yml and the Dockerfile without a Docker engine.

The images are neither built nor started here: where there is an engine, `docker compose up --build` is the test.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).resolve().parents[2]
COMPOSE = PROJECT / "docker-compose.yml"
DOCKERFILE = PROJECT / "Dockerfile"

STORES = {"postgres", "redis", "minio"}
AIRFLOW = {
    "airflow-api-server",
    "airflow-scheduler",
    "airflow-dag-processor",
    "airflow-triggerer",
    "airflow-worker",
}
#: `${NAME:?what to do}`; `$$` is a dollar sign for the container's own shell
VARIABLE = re.compile(r"(?<!\$)\$\{?(?P<name>[A-Z_]+)(?P<rest>[^}]*)\}?")
PINNED = re.compile(r"^[a-z0-9./-]+:(?!latest)[A-Za-z0-9._-]*\d[A-Za-z0-9._-]*(@sha256:[0-9a-f]{64})?$")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = YAML(typ="safe", pure=True).load(COMPOSE)
    return loaded


def texts(value: object) -> Iterator[str]:
    """Every string inside a loaded YAML value, keys left out."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def stages() -> dict[str, str]:
    """Dockerfile stage -> its base image."""
    return {
        name: base
        for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    }


def test_the_services_are_the_whole_stack(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == STORES | AIRFLOW | {"init", "mlflow"}


def test_every_service_that_stays_has_a_health_check(compose: dict[str, Any]) -> None:
    without = {name for name, service in compose["services"].items() if "healthcheck" not in service}
    assert without == {"init"}, "init runs once and ends; all others stay"


def test_services_wait_for_what_they_need_to_be_healthy(compose: dict[str, Any]) -> None:
    services = compose["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            expected = "service_completed_successfully" if needed == "init" else "service_healthy"
            assert needed in services, f"{name} waits for {needed}, which is not there"
            assert how == {"condition": expected}, f"{name} waits for {needed}"
    for name in AIRFLOW:
        assert set(services[name]["depends_on"]) == STORES | {"init", "mlflow"}


def test_waiting_never_goes_in_a_circle(compose: dict[str, Any]) -> None:
    waits = {name: set(service.get("depends_on", {})) for name, service in compose["services"].items()}
    while waits:
        free = {name for name, needed in waits.items() if not needed}
        assert free, f"these wait for each other: {sorted(waits)}"
        waits = {name: needed - free for name, needed in waits.items() if name not in free}


def test_no_service_runs_as_root_or_may_become_it(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        user, group = service["user"].split(":")
        assert int(user) > 0, name
        assert int(group) > 0, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name


def test_images_are_pinned_and_those_built_here_have_a_stage(compose: dict[str, Any]) -> None:
    built = {s["image"]: s["build"]["target"] for s in compose["services"].values() if "build" in s}
    for name, service in compose["services"].items():
        assert PINNED.match(service["image"]), f"{name}: {service['image']} is not pinned"
    for image, target in built.items():
        assert target in stages(), f"{image} is built from stage {target!r}, which the Dockerfile lacks"
    for stage, base in stages().items():
        assert PINNED.match(base), f"stage {stage}: {base} is not pinned"


def test_every_image_ends_as_the_user_that_compose_names(compose: dict[str, Any]) -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    for service in compose["services"].values():
        if "build" in service:
            stage = text.split(f" AS {service['build']['target']}\n")[1].split("\nFROM ")[0]
            assert re.findall(r"^USER (\S+)$", stage, re.MULTILINE)[-1] == service["user"]


def test_ports_are_bound_to_loopback(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_stores_are_on_a_network_without_a_way_out(compose: dict[str, Any]) -> None:
    assert compose["networks"]["stores"] == {"internal": True}
    for name in STORES:
        assert compose["services"][name]["networks"] == ["stores"]


def test_every_variable_is_required_and_says_what_to_set() -> None:
    for line in COMPOSE.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("#"):
            continue
        for found in VARIABLE.finditer(line):
            assert found["rest"].startswith(":?set "), f"{found[0]} may be empty, or says nothing when it is"
            assert found["name"] in found["rest"], f"{found[0]} does not name itself in its message"


def test_the_example_environment_holds_exactly_the_variables_used_and_no_value(compose: dict[str, Any]) -> None:
    used = {found["name"] for text in texts(compose) for found in VARIABLE.finditer(text)}
    lines = [
        line
        for line in (PROJECT / ".env.example").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert {line.split("=")[0] for line in lines} == used
    assert all(line.endswith("=") for line in lines), "an example value is a default password"


def test_no_secret_stands_in_the_file(compose: dict[str, Any]) -> None:
    secret = re.compile(r"PASSWORD$|SECRET|FERNET|ACCESS_KEY|ROOT_USER")
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            if secret.search(key):
                assert str(value).startswith("${"), f"{name}: {key} is written out"
    for text in texts(compose):
        for user, password in re.findall(r"://(\w*):([^@/]+)@", text):
            assert password.startswith("${"), f"the password of {user or 'redis'} is written out in {text}"


def test_components_share_one_secret_for_tokens_and_one_fernet_key(compose: dict[str, Any]) -> None:
    for key in ("AIRFLOW__API_AUTH__JWT_SECRET", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__CORE__FERNET_KEY"):
        values = {compose["services"][name]["environment"][key] for name in AIRFLOW}
        assert len(values) == 1, key


def test_addresses_inside_name_services_that_listen_there(compose: dict[str, Any]) -> None:
    listens = {
        "postgres": "5432",
        "redis": "6379",
        "minio": "9000",
        "mlflow": "5000",
        "airflow-api-server": "8080",
        "127.0.0.1": None,
    }
    environment = compose["services"]["airflow-worker"]["environment"]
    found = [
        re.search(r"://(?:[^@/]*@)?([a-z0-9.-]+):(\d+)", re.sub(r"\$\{[^}]*\}", "x", v)) for v in texts(environment)
    ]
    addresses = [(match[1], match[2]) for match in found if match]
    assert len(addresses) >= 7
    for host, port in addresses:
        assert host in listens, host
        assert listens[host] in {None, port}, (host, port)


def test_files_that_are_mounted_copied_or_run_exist(compose: dict[str, Any]) -> None:
    mounted = [
        volume.split(":")[0]
        for s in compose["services"].values()
        for volume in s.get("volumes", [])
        if volume[0] in "./"
    ]
    copied = [
        path
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
        for path in line.split()
    ]
    run = [word for text in texts(compose["services"]) for word in re.findall(r"^docker/\S+$", text)]
    assert mounted
    assert copied
    assert run
    for path in (*mounted, *copied, *run):
        assert (PROJECT / path).exists(), path


def test_what_is_copied_is_in_the_build_context_and_secrets_are_not() -> None:
    ignored = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    copied = {
        path
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
        for path in line.split()
    }
    assert "*" in ignored
    assert {f"!{path}" for path in copied} == {line for line in ignored if line.startswith("!")}


def test_named_volumes_are_declared_and_all_used(compose: dict[str, Any]) -> None:
    used = {
        volume.split(":")[0]
        for service in compose["services"].values()
        for volume in service.get("volumes", [])
        if volume[0] not in "./"
    }
    assert used == set(compose["volumes"])


def test_the_databases_that_are_connected_to_are_the_ones_that_are_made(compose: dict[str, Any]) -> None:
    script = (PROJECT / "docker" / "create-databases.sh").read_text(encoding="utf-8")
    made = dict(re.findall(r'^create (\w+) "\$(\w+)"$', script, re.MULTILINE))
    connected = {
        (database, user, variable)
        for text in texts(compose)
        for user, variable, database in re.findall(
            r"postgresql\+psycopg2://(\w+):\$\{(\w+)[^}]*\}@postgres:5432/(\w+)", text
        )
    }
    assert connected == {(name, name, variable) for name, variable in made.items()}
    assert set(made.values()) <= set(compose["services"]["postgres"]["environment"])


def test_the_buckets_that_are_written_to_are_the_ones_that_are_made(compose: dict[str, Any]) -> None:
    made = set(compose["services"]["init"]["environment"]["BUCKETS"].split())
    used = {bucket for text in texts(compose) for bucket in re.findall(r"s3://([a-z0-9-]+)", text)}
    assert made == used
    # model files can be had back where somebody overwrites them; tables keep their own versions
    assert compose["services"]["init"]["environment"]["VERSIONED_BUCKETS"] == "mlflow"


def test_mlflow_which_has_no_login_is_reached_from_loopback_and_the_stack_only(compose: dict[str, Any]) -> None:
    service = compose["services"]["mlflow"]
    assert service["ports"] == ["127.0.0.1:5000:5000"]
    allowed = next(word for word in service["command"] if word.startswith("--allowed-hosts="))
    assert {host.split(":")[0] for host in allowed.split("=")[1].split(",")} == {"mlflow", "127.0.0.1", "localhost"}
    assert not any(word.startswith("--cors-allowed-origins") for word in service["command"])


def airflow_commands(compose: dict[str, Any]) -> Iterator[list[str]]:
    for service in compose["services"].values():
        for words in (service.get("command"), (service.get("healthcheck") or {}).get("test")):
            if isinstance(words, list) and "airflow" in words:
                yield words[words.index("airflow") + 1 :]


def test_airflow_knows_every_subcommand_and_option(
    compose: dict[str, Any], tmp_path: Path, airflow_parser: Any
) -> None:
    commands = list(airflow_commands(compose))
    assert len(commands) == 7
    for words in commands:
        airflow_parser.parse_args(words)  # exits where it does not know a word
    with pytest.raises(SystemExit):
        airflow_parser.parse_args(["scheduler", "--no-such-option"])


@pytest.fixture
def airflow_parser() -> Any:
    from airflow.cli import cli_parser

    return cli_parser.get_parser()


def test_mlflow_knows_every_option_and_variable(compose: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        # MLflow warns about its own type hints when it is imported
        warnings.filterwarnings("ignore", message=".*AnyType", category=UserWarning)
        from mlflow.cli import server

    service = compose["services"]["mlflow"]
    known = {option for parameter in server.params for option in parameter.opts}
    asked = {word.split("=")[0] for word in service["command"] if word.startswith("--")}
    assert asked <= known
    variables = {parameter.envvar for parameter in server.params}
    assert "MLFLOW_BACKEND_STORE_URI" in variables & set(service["environment"])


def test_airflow_knows_every_section_and_option_that_is_set(compose: dict[str, Any]) -> None:
    from airflow.configuration import conf

    named = set(compose["services"]["airflow-worker"]["environment"]) | set(
        re.findall(r"\b(AIRFLOW__\w+)=", DOCKERFILE.read_text(encoding="utf-8"))
    )
    for name in (n for n in named if n.startswith("AIRFLOW__")):
        _, section, option = name.lower().split("__")
        assert option in conf.configuration_description[section]["options"], (
            f"{name}: Airflow has no [{section}] {option}"
        )


def test_perennial_knows_every_setting(compose: dict[str, Any]) -> None:
    from perennial.settings import Settings

    known = {f"PERENNIAL_{name.upper()}" for name in Settings.model_fields} | {"MLFLOW_TRACKING_URI"}
    asked = {
        name
        for name in compose["services"]["airflow-worker"]["environment"]
        if name.startswith(("PERENNIAL_", "MLFLOW_"))
    }
    assert asked <= known


def test_the_celery_application_exists(compose: dict[str, Any]) -> None:
    from importlib import import_module

    (path,) = re.findall(r"celery --app (\S+)", " ".join(compose["services"]["airflow-worker"]["healthcheck"]["test"]))
    module, name = path.rsplit(".", 1)
    assert hasattr(import_module(module), name)


def test_the_image_holds_every_package_of_the_cluster() -> None:
    import tomllib
    from importlib.metadata import version

    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert "--extra cluster" in DOCKERFILE.read_text(encoding="utf-8")
    for requirement in extras["cluster"]:
        assert version(re.split(r"[<>=!\[; ]", requirement)[0])


def test_compose_itself_accepts_the_file(tmp_path: Path, compose: dict[str, Any]) -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("no `docker compose` here: its own check of the file could not be run")
    environment = tmp_path / "env"
    names = {found["name"] for text in texts(compose) for found in VARIABLE.finditer(text)}
    environment.write_text("".join(f"{name}=x\n" for name in sorted(names)), encoding="utf-8")
    found = subprocess.run(
        [docker, "compose", "--file", str(COMPOSE), "--env-file", str(environment), "config", "--quiet"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
