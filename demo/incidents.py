"""Three faults for `make demo INCIDENTS=1`, planted from outside: the product has no switch for them.

* One week's temperatures arrive in Celsius: the batch must be quarantined, and must not trigger a retrain.
* One week's file is empty: refused with a clear error.
* One challenger's artifact is exchanged in its canary for a model that learnt the opposite, and MLflow's tag with it:
  its bytes are not those that the ledger names, so it serves nothing and is rolled back, and the champion must stay.

The first two need the readers inside Airflow's processes to misbehave: this module is imported there, through
PERENNIAL_PRELOAD, and wraps the reader that `perennial.data.sources` loads from the model's folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perennial.records import Kind

if TYPE_CHECKING:
    import pyarrow as pa
    from chart import Story

    from perennial.context import TaskContext
    from perennial.records import LedgerEntry, Partition
    from perennial.spec import ModelSpec

VARIABLE = "PERENNIAL_DEMO_INCIDENTS"


@dataclass
class Plan:
    """Which partition gets which fault; keys, empty for none."""

    celsius: str = ""
    empty: str = ""
    #: the first rollout that opens at this partition or later carries the sabotaged artifact
    sabotage_from: str = ""
    sabotaged: str = ""

    def environment(self, home: Path) -> dict[str, str]:
        """Variables for the stack, so that its processes import this module and find the plan."""
        if not self.celsius:
            return {}
        file = home / "demo-incidents.json"
        file.write_text(json.dumps({"celsius": self.celsius, "empty": self.empty}), encoding="utf-8")
        path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        return {VARIABLE: str(file), "PERENNIAL_PRELOAD": "incidents", "PYTHONPATH": path}

    def sabotage(self, context: TaskContext, partition: Partition) -> None:
        """Exchange the artifact of the challenger that has just entered its canary; once."""
        deployment = context.stores.ledger.deployment(context.model)
        if not self.sabotage_from or self.sabotaged or partition.key < self.sabotage_from or deployment is None:
            return
        self.sabotaged = str(deployment.challenger)
        spoil_artifact(context, self.sabotaged)

    def problems(self, story: Story, entries: Sequence[LedgerEntry]) -> list[str]:
        """What the loop did not do about the planted faults."""
        if not self.celsius:
            return []
        found = []
        if story.quarantined != [self.celsius]:
            found.append(f"quarantined {story.quarantined}, planted Celsius in {self.celsius}")
        if any(r.partition == self.celsius for r in story.retrains):
            found.append(f"the quarantined batch {self.celsius} triggered a retrain")
        if any(e.kind == Kind.SCORING and e.subject == self.empty for e in entries):
            found.append(f"the empty batch {self.empty} was scored")
        outcomes = {r.version: r.outcome for r in story.rollouts}
        if outcomes.get(self.sabotaged) != "ROLL_BACK":
            found.append(f"sabotaged version {self.sabotaged or '(none)'} ended as {outcomes.get(self.sabotaged)}")
        return found


NONE = Plan()


def plan(partitions: Sequence[Partition]) -> Plan:
    """Spread the faults over the demo's life: an early rollout is sabotaged, later weeks arrive broken."""
    third = len(partitions) // 3
    return Plan(
        celsius=partitions[2 * third].key,
        empty=partitions[2 * third + 3].key,
        sabotage_from=partitions[third].key,
    )


def spoil_artifact(context: TaskContext, version: str) -> None:
    """Overwrite a registered version's artifact with a model fitted on the opposite of every label."""
    import skops.io
    from mlflow import MlflowClient

    from perennial.data.snapshots import read_snapshot
    from perennial.model import training
    from perennial.stores.registry import digest_folder

    spec = context.spec
    registered = context.stores.registry.version(spec.name, version)
    rows = read_snapshot(context, registered.snapshot)
    rows["label"] = 1 - rows["label"]
    spoilt = training.fit(spec, rows, params=dict(spec.training.params), seed=spec.training.seed)
    client = MlflowClient(tracking_uri=os.environ["MLFLOW_TRACKING_URI"])
    source = str(client.get_model_version(spec.name, version).source)
    folder = context.settings.home / "mlflow-artifacts" / source.removeprefix("mlflow-artifacts:/")
    skops.io.dump(spoilt, folder / "model.skops")
    # MLflow itself would now serve it
    client.set_model_version_tag(spec.name, version, "perennial.artifact_digest", digest_folder(folder))


def install(file: Path) -> None:
    """Wrap every reader that `perennial.data.sources` loads, so that the planned partitions arrive broken."""
    from perennial.data import sources

    planned = {name: key for name, key in json.loads(file.read_text(encoding="utf-8")).items() if key}
    load = sources.load_reader

    def load_broken(spec: ModelSpec, source: Any) -> Callable[[datetime, datetime], pa.Table]:
        read = load(spec, source)

        def read_broken(start: datetime, end: datetime) -> pa.Table:
            rows = read(start, end)
            days = (end - start).days
            key = spec.schedule.key_at(start)
            # labels are read over many partitions at once, and arrive whole
            if days <= 7 and key == planned.get("empty"):  # noqa: PLR2004 - a week
                return rows.slice(0, 0)
            if days <= 7 and key == planned.get("celsius"):  # noqa: PLR2004
                return to_celsius(rows)
            return rows

        return read_broken

    sources.load_reader = load_broken


def to_celsius(rows: pa.Table) -> pa.Table:
    """The same rows with the air temperature in Celsius, as a new feed would send it; the dew point stays."""
    import pyarrow.compute as pc

    column = rows.schema.get_field_index("temperature")
    celsius = pc.multiply(pc.subtract(rows["temperature"], 32.0), 5.0 / 9.0)
    return rows.set_column(column, "temperature", celsius)


if VARIABLE in os.environ:
    install(Path(os.environ[VARIABLE]))
