"""`make up`: the whole stack on this machine, in the foreground, until Ctrl-C.

Prepares `.perennial/` (Airflow's home, made-up secrets, databases), then runs the Procfile. Nothing listens beyond
loopback. `AIRFLOW_PORT` and `MLFLOW_PORT` move the ports, `PERENNIAL_HOME` moves the state.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import honcho.manager
import psutil
from honcho.environ import parse_procfile
from honcho.printer import Printer

PROJECT = Path(__file__).resolve().parent.parent
#: Tasks that run may end; what still lives after this many seconds, or at a second Ctrl-C, is killed.
STOP_SECONDS = 20
READY_SECONDS = 180
#: Between two looks at whether the components live.
WATCH_SECONDS = 2
#: A component that answers no question for so long is named; Airflow itself calls one unhealthy after 30 s of silence.
SILENT_SECONDS = 30


def main() -> int:
    """Start everything, say where it is, stop everything. The exit code is 0 after Ctrl-C."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--quiet", action="store_true", help="write the components' output to .perennial/logs only")
    quiet = arguments.parse_args().quiet

    home = Path(os.environ.get("PERENNIAL_HOME", PROJECT / ".perennial")).resolve()
    environment = stack_environment(home)
    for name in ("AIRFLOW_PORT", "MLFLOW_PORT"):
        refuse_busy_port(name, int(environment[name]))
    print(f"Preparing {home} ...", flush=True)
    prepare(home, environment)

    honcho.manager.KILL_WAIT = STOP_SECONDS
    logs = (home / "logs" / "stack.log").open("w", encoding="utf-8")
    manager = Stack(Printer(output=logs if quiet else sys.stdout, prefix=True))
    for name, command in parse_procfile((PROJECT / "Procfile").read_text(encoding="utf-8")).processes.items():
        manager.add_process(name, command, env=environment, cwd=str(PROJECT))
    # a closed terminal stops the stack as Ctrl-C does
    signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    threading.Thread(target=announce, args=(home, environment), daemon=True).start()
    manager.loop()
    manager.kill()
    asked_to_stop = manager.returncode in {130, 143}
    print("Stopped." if asked_to_stop else f"A component ended by itself (code {manager.returncode}).", flush=True)
    return 0 if asked_to_stop else 1


class Stack(honcho.manager.Manager):
    """The components, and whatever they start.

    A task is a process group of its own and outlives its scheduler, but it stays in the session that honcho opens for
    each component: so whole sessions are ended.
    """

    def loop(self) -> None:
        """Run until one component ends, or somebody asks to stop."""
        threading.Thread(target=self.watch, daemon=True).start()
        super().loop()

    def watch(self) -> None:
        """End what a component that has died leaves behind.

        Honcho hears of an end when the component's output is closed. Workers of a killed scheduler keep it open, and do
        nothing for anybody.
        """
        while not self._terminating:
            for name, process in self._processes.items():
                if "pid" in process and "returncode" not in process and has_ended(process["pid"]):
                    if members := session_members({process["pid"]}):
                        self._system_print(f"{name} has died; killing the {len(members)} processes that it left\n")
                    kill(members)
            time.sleep(WATCH_SECONDS)

    def terminate(self) -> None:
        """Ask every component to stop; asked again, kill."""
        if self._terminating:
            self.kill()
        super().terminate()

    def kill(self) -> None:
        """Kill all that is left of the components' sessions."""
        super().kill()
        kill(session_members({process["pid"] for process in self._processes.values() if "pid" in process}))


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or a zombie that nobody has asked for its end yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def session_members(sessions: set[int]) -> list[int]:
    """The living processes of the sessions."""
    members = []
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) in sessions and not has_ended(pid):
                members.append(pid)
    return members


def kill(pids: list[int]) -> None:
    """Kill the processes, where they still are."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def stack_environment(home: Path) -> dict[str, str]:
    """The environment of all components. What the caller has set already is kept."""
    airflow_port = os.environ.get("AIRFLOW_PORT", "8080")
    mlflow_port = os.environ.get("MLFLOW_PORT", "5000")
    made_up = made_up_secrets(home / "airflow" / "secrets.json")
    airflow_url, mlflow_url = f"http://127.0.0.1:{airflow_port}", f"http://127.0.0.1:{mlflow_port}"
    defaults = {
        "AIRFLOW_PORT": airflow_port,
        "MLFLOW_PORT": mlflow_port,
        "PERENNIAL_HOME": str(home),
        "PERENNIAL_AIRFLOW_URL": airflow_url,
        "PERENNIAL_MLFLOW_URL": mlflow_url,
        "PERENNIAL_MLFLOW_STORE": f"sqlite:///{home / 'mlflow.db'}",
        "PERENNIAL_MLFLOW_ARTIFACTS": str(home / "mlflow-artifacts"),
        "MLFLOW_TRACKING_URI": mlflow_url,
        # nothing leaves the machine
        "GX_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "1",
        # where things are
        "AIRFLOW_HOME": str(home / "airflow"),
        # SQLite waits 5 s for a lock by default; on a busy machine a request would fail instead of being late
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow' / 'airflow.db'}?timeout=60",
        "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "dags"),
        "AIRFLOW__CORE__PLUGINS_FOLDER": str(PROJECT / "plugins"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{airflow_url}/execution/",
        "AIRFLOW__API__BASE_URL": airflow_url,
        # who may come in
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "airflow" / "passwords.json"),
        "AIRFLOW__CORE__FERNET_KEY": made_up["fernet"],
        "AIRFLOW__API__SECRET_KEY": made_up["api"],
        "AIRFLOW__API_AUTH__JWT_SECRET": made_up["jwt"],
        # a small machine, and batches that follow each other: look often, run few at a time
        "AIRFLOW__CORE__PARALLELISM": "4",
        # OpenMP threads that wait for a busy core burn the other ones: one a task is steadier
        "OMP_NUM_THREADS": "1",
        "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.2",
        # a task's supervisor may miss the end of its process, and looks again only after this time
        "AIRFLOW__WORKERS__MIN_HEARTBEAT_INTERVAL": "1",
        "AIRFLOW__DAG_PROCESSOR__PARSING_PROCESSES": "1",
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "60",
    }
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**defaults, **os.environ, "PATH": path, "AIRFLOW_PORT": airflow_port, "MLFLOW_PORT": mlflow_port}


def made_up_secrets(file: Path) -> dict[str, str]:
    """Secrets of this stack alone, made once and readable by this user alone."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)
        values = {name: secrets.token_urlsafe(32) for name in ("api", "jwt")}
        # a Fernet key is 32 bytes in URL-safe base64, padding kept
        values["fernet"] = secrets.token_urlsafe(32) + "="
        file.write_text(json.dumps(values), encoding="utf-8")
    return dict(json.loads(file.read_text(encoding="utf-8")))


def prepare(home: Path, environment: dict[str, str]) -> None:
    """Folders, the users' passwords, the databases of Airflow and MLflow."""
    for folder in ("airflow", "logs", "mlflow-artifacts", "reports"):
        (home / folder).mkdir(parents=True, exist_ok=True)
    config = home / "airflow" / "config"
    if not config.is_symlink():
        config.symlink_to(PROJECT / "config", target_is_directory=True)
    passwords = Path(environment["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    if not passwords.exists():
        passwords.touch(mode=0o600)
        passwords.write_text(json.dumps({name: secrets.token_urlsafe(9) for name in ("admin", "viewer")}))
    store = environment["PERENNIAL_MLFLOW_STORE"]
    run_first("airflow db migrate", ["airflow", "db", "migrate"], home / "logs" / "prepare.log", environment)
    # before any process of the server opens it: MLflow's own migration does not survive a kill
    make = [
        sys.executable,
        "-c",
        "import sys; from perennial.stores.registry import database; database.main(sys.argv[1])",
    ]
    run_first(f"making MLflow's tables in {store}", [*make, store], home / "logs" / "prepare-mlflow.log", environment)


def run_first(what: str, command: list[str], log: Path, environment: dict[str, str]) -> None:
    """Run what must have ended before anything starts; end with the last lines of its log where it fails."""
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)  # noqa: S603 - a fixed command
    if done.returncode:
        sys.exit(f"{what} failed (code {done.returncode}); its last lines, from {log}:\n{tail(log)}")


def tail(file: Path, lines: int = 15) -> str:
    """The last lines of a text file."""
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def refuse_busy_port(name: str, port: int) -> None:
    """End with a clear message where somebody listens already."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            sys.exit(f"Port {port} is taken. Stop what listens there, or choose another: {name}={port + 1} make up")


def announce(home: Path, environment: dict[str, str]) -> None:
    """Wait until every component answers, then print the addresses."""
    airflow_url, mlflow_url = environment["PERENNIAL_AIRFLOW_URL"], environment["PERENNIAL_MLFLOW_URL"]
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        waiting = waiting_for(airflow_url, mlflow_url)
        if not waiting:
            password = json.loads((home / "airflow" / "passwords.json").read_text(encoding="utf-8"))["admin"]
            print(
                f"\nPerennial is up. Ctrl-C stops it.\n"
                f"  Airflow   {airflow_url}  (user admin, password {password})\n"
                f"  Status    {airflow_url}/perennial/status\n"
                f"  MLflow    {mlflow_url}\n"
                f"  State     {home}\n",
                flush=True,
            )
            name_the_silent(airflow_url, mlflow_url)
            return
        time.sleep(0.5)
    print(f"After {READY_SECONDS} s these do not answer: {', '.join(waiting)}. See {home / 'logs'}.", flush=True)


def name_the_silent(airflow_url: str, mlflow_url: str) -> None:
    """Say which components answer no more, and when they answer again, until the stack ends."""
    health = Health()
    while True:
        time.sleep(WATCH_SECONDS)
        if message := health.look(waiting_for(airflow_url, mlflow_url), time.monotonic()):
            print(message, flush=True)


class Health:
    """Which components were silent for `SILENT_SECONDS`: they may be frozen, or busy; nobody ends them."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._named: set[str] = set()

    def look(self, silent: list[str], now: float) -> str | None:
        """What is news at this look, as a sentence; None: nothing. `now` is in seconds of any clock."""
        self._since = {name: self._since.get(name, now) for name in silent}
        lost = {name for name, since in self._since.items() if now - since >= SILENT_SECONDS}
        back, new = self._named - set(silent), lost - self._named
        self._named = (self._named | lost) - back
        sentences = [f"{name} has not answered for {SILENT_SECONDS} s; if it stays so: Ctrl-C." for name in sorted(new)]
        return "\n".join([*sentences, *(f"{name} answers again." for name in sorted(back))]) or None


def waiting_for(airflow_url: str, mlflow_url: str) -> list[str]:
    """The components that do not answer yet."""
    waiting = []
    try:
        with urllib.request.urlopen(f"{airflow_url}/api/v2/monitor/health", timeout=5) as answer:  # noqa: S310 - our own http address
            health = json.load(answer)
        waiting += [
            name
            for name in ("scheduler", "dag_processor", "triggerer")
            if (health.get(name) or {}).get("status") != "healthy"
        ]
    except (urllib.error.URLError, OSError):
        waiting.append("api-server")
    try:
        with urllib.request.urlopen(f"{mlflow_url}/health", timeout=5):  # noqa: S310 - our own http address
            pass
    except (urllib.error.URLError, OSError):
        waiting.append("mlflow")
    return waiting


if __name__ == "__main__":
    sys.exit(main())
