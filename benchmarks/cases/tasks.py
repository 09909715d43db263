"""What a task pays before its work begins: `tasks.py <way> <repeats>`.

Timed: the import of every heavy module, then the parse of the task's own DAG file. `fresh`: in a process of its own, as
without the preload. `forked`: in a fork of a process that has done what `config/airflow_local_settings.py` does in the
scheduler.
"""

from __future__ import annotations

import json
import os
import sys
import time

import airflow_local_settings
import parsing

DAG_ID = "flight_delay_score"


def begin() -> float:
    """Seconds until the task's body could start."""
    os.environ["_AIRFLOW_PARSING_CONTEXT_DAG_ID"] = DAG_ID
    begun = time.perf_counter()
    # in the fresh process too: a thousand warnings of skops's search would cost it seconds more
    airflow_local_settings.preload(airflow_local_settings.HEAVY)
    dags, _ = parsing.parse(parsing.PROJECT / "dags" / "score.py")
    if dags != 1:
        msg = f"a task of {DAG_ID} parsed {dags} DAGs; it needs its own only."
        raise SystemExit(msg)
    return time.perf_counter() - begun


def in_a_fork() -> float:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(begin()).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return float(json.loads(answer))


if __name__ == "__main__":
    # what every task process has, with or without our settings
    import airflow.sdk.execution_time.task_runner  # noqa: F401

    if sys.argv[1] == "forked":
        airflow_local_settings.preload(airflow_local_settings.wanted(["airflow", "scheduler"]))
        seconds = [in_a_fork() for _ in range(int(sys.argv[2]))]
    else:
        seconds = [begin()]
    print(json.dumps({"seconds": seconds}))
