"""The assets: the contract between the DAGs. One event a partition; its key is the batch's key.

The scheme begins with `x-` because Airflow asks its providers about every other one: it would import the Amazon
provider with boto3, 0.2 s, each time a DAG file is parsed and in every task.
"""

from __future__ import annotations

from airflow.sdk import Asset

from perennial.spec import ModelSpec


def predictions(spec: ModelSpec) -> Asset:
    """The batch was scored. Written by `score`, followed by `monitor`.

    Extra: `model`, `partition`, `versions` (variant -> version), `rows`, `table_version`.
    """
    return Asset(name=f"{spec.name}_predictions", uri=f"x-perennial://{spec.name}/predictions", group="perennial")


def health(spec: ModelSpec) -> Asset:
    """The batch was measured. Written by `monitor`, followed by `drift_sensor`.

    Extra: what `loop.monitor` returns: the partition, the drift verdict, the report.
    """
    return Asset(name=f"{spec.name}_health", uri=f"x-perennial://{spec.name}/health", group="perennial")
