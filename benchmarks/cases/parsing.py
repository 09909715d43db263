"""What the DAG files cost when Airflow parses them: `parsing.py <way> <repeats>`, with PERENNIAL_MODELS set.

`fresh`: one process that has imported `airflow.sdk` and nothing else reads all files, one after the other.
`forked`: as the dag-processor does it, one fork for each file, from a process that has done what
`config/airflow_local_settings.py` does there.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]


def parse(file: Path) -> tuple[int, float]:
    """DAGs of one file, and seconds."""
    from airflow.sdk.definitions._internal.contextmanager import DagContext

    DagContext.autoregistered_dags.clear()
    begun = time.perf_counter()
    found = importlib.util.spec_from_file_location(f"parsed_{file.stem}", file)
    module = importlib.util.module_from_spec(found)
    DagContext.current_autoregister_module_name = module.__name__
    sys.modules[module.__name__] = module
    found.loader.exec_module(module)
    return len(DagContext.autoregistered_dags), time.perf_counter() - begun


def parse_in_a_fork(file: Path) -> tuple[int, float]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, json.dumps(parse(file)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    dags, seconds = json.loads(answer)
    return dags, seconds


if __name__ == "__main__":
    import airflow.sdk  # noqa: F401 - what a DAG file costs beyond this

    files = sorted((PROJECT / "dags").glob("*.py"))
    if sys.argv[1] == "forked":
        import airflow_local_settings

        airflow_local_settings.preload(airflow_local_settings.modules_for(["airflow", "dag-processor"]))
        tries = [[parse_in_a_fork(file) for file in files] for _ in range(int(sys.argv[2]))]
    else:
        # a second time in the same process would not pay for the imports again
        tries = [[parse(file) for file in files]]
    answer = {
        "dags": sum(dags for dags, _ in tries[0]),
        "seconds": [sum(seconds for _, seconds in parsed) for parsed in tries],
    }
    print(json.dumps(answer))
