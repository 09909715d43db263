"""A batch in a bucket is read like one on disk; one that is absent or cut short is refused like one on disk."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perennial.data.sources import check_readers, read_batch
from perennial.errors import SourceUnreadable
from perennial.spec import ModelSpec, load_spec

DAY = datetime(2025, 3, 3, tzinfo=UTC)


@pytest.fixture
def spec(tmp_path: Path, project: Path) -> ModelSpec:
    """The good spec of the tests, reading a bucket by UTC weeks."""
    text = (project / "tests" / "data" / "good_spec" / "spec.yaml").read_text()
    text = text.replace("kind: python", "kind: files\n  path: s3://${BUCKET}/sources/%Y-%m-%d.parquet")
    text = text.replace("America/New_York", "UTC")
    folder = tmp_path / "good_spec"
    folder.mkdir()
    (folder / "spec.yaml").write_text(text)
    return load_spec(folder / "spec.yaml")


def put(options: dict[str, str], key: str, body: bytes) -> None:
    import boto3

    client: Any = boto3.client(
        "s3",
        endpoint_url=options["AWS_ENDPOINT_URL"],
        region_name=options["AWS_REGION"],
        aws_access_key_id=options["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=options["AWS_SECRET_ACCESS_KEY"],
    )
    client.put_object(Bucket="lake", Key=key, Body=body)
    client.close()


def test_a_batch_is_read_from_a_bucket_or_refused(spec: ModelSpec, s3_options: dict[str, str]) -> None:
    environment = {**s3_options, "BUCKET": "lake"}
    partition = spec.schedule.partition(DAY)
    check_readers(spec, environment)
    with pytest.raises(SourceUnreadable, match=r"s3://lake/sources/2025-03-03\.parquet does not exist"):
        read_batch(spec, partition, environment)

    rows = {
        "order_id": ["a", "b"],
        "ordered_at": pa.array([DAY, DAY]),
        "price": [1.0, 2.0],
        "discount": [0.1, 0.2],
        "channel": ["app", "web"],
        "country": ["AT", "CH"],
    }
    sink = io.BytesIO()
    pq.write_table(pa.table(rows), sink)
    put(s3_options, "sources/2025-03-03.parquet", sink.getvalue())
    assert read_batch(spec, partition, environment)["order_id"].to_pylist() == ["a", "b"]

    put(s3_options, "sources/2025-03-03.parquet", sink.getvalue()[:200])
    with pytest.raises(SourceUnreadable, match="cannot be read"):
        read_batch(spec, partition, environment)
