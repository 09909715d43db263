"""The assets: the contract between the DAGs. One event a partition; its key is the batch's key."""

from __future__ import annotations

from airflow.sdk import Asset

from perennial.specs import ModelSpec


def predictions(spec: ModelSpec) -> Asset:
    """The batch was scored. Written by `score`, followed by `monitor`.

    Extra: `model`, `partition`, `versions` (variant -> version), `rows`, `table_version`.
    """
    return Asset(name=f"{spec.name}_predictions", uri=f"perennial://{spec.name}/predictions", group="perennial")


def health(spec: ModelSpec) -> Asset:
    """The batch was measured. Written by `monitor`, followed by `drift_sensor`.

    Extra: what `loop.monitor` returns: the partition, the drift verdict, the report.
    """
    return Asset(name=f"{spec.name}_health", uri=f"perennial://{spec.name}/health", group="perennial")
