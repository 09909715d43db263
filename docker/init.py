"""Prepare what the containers keep: tables, buckets, the passwords of Airflow's users. Safe to run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import boto3
from botocore.exceptions import ClientError

from perennial.settings import Settings
from perennial.stores.database import upgrade


def main() -> None:
    """Do all of it; the first error ends the program with a non-zero code."""
    write_passwords(Path(os.environ["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"]))
    subprocess.run(  # noqa: S603 - our own command
        [Path(sys.executable).with_name("airflow"), "db", "migrate"], check=True
    )
    upgrade(Settings().ledger_url)
    for bucket in os.environ["BUCKETS"].split():
        make_bucket(bucket)
    for bucket in os.environ["VERSIONED_BUCKETS"].split():
        keep_versions(bucket)


def write_passwords(file: Path) -> None:
    """The users and passwords that Airflow's SimpleAuthManager reads, for this user's eyes alone."""
    passwords = {name: os.environ[f"AIRFLOW_{name.upper()}_PASSWORD"] for name in ("admin", "viewer")}
    file.touch(mode=0o600)
    file.write_text(json.dumps(passwords), encoding="utf-8")


def make_bucket(name: str) -> None:
    """Make the bucket, unless it is ours already."""
    try:
        boto3.client("s3").create_bucket(Bucket=name)
    except ClientError as error:
        if error.response["Error"]["Code"] != "BucketAlreadyOwnedByYou":
            raise


def keep_versions(bucket: str) -> None:
    """From now on an object that is overwritten or deleted can be fetched as it was."""
    boto3.client("s3").put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})


if __name__ == "__main__":
    main()
