"""The lake on Delta tables: a local folder, or `s3://bucket/prefix`. The only file that imports deltalake.

One table a model and kind, at `<root>/<model>/<table>`. Delta's own log gives atomic commits, versions and transaction
ids; Spark, Trino and DuckDB read the same tables.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from perennial.errors import LakeError
from perennial.stores.ports import Commit, Table
from perennial.stores.schemas import fit_batches, fit_schema, refuse_other_partitions, scan_schema
from perennial.stores.spool import Counted, spooled, unspooled

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

#: Delta deletes the log of old commits after 30 days; snapshots and audits need every version, so: a century
_KEEP = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}
#: rows a writer holds before it writes them, and a reader reads at once
_ROW_GROUP = 131_072
#: how often a run that replaces a partition gives way to another; of those that race, one wins each time
_TURNS = 32
#: what the readers below understand; another writer's deletion vectors would be silently ignored
_READABLE = frozenset({"timestampNtz"})


class DeltaLake:
    """Delta tables under one root. See `ports.Lake`."""

    def __init__(self, root: str, storage_options: Mapping[str, str] | None = None) -> None:
        """Args: `root` as a path or s3:// URI; `storage_options` as deltalake takes them (AWS_* names)."""
        # On more threads deltalake 1.6 reads ahead of its own writer, and memory grows with the rows (1.8 GB at 20M
        # rows of 9 columns; 0.3 GB on one thread, as fast). Its runtime reads this once, at the first call.
        os.environ.setdefault("TOKIO_WORKER_THREADS", "1")
        self._root = root.rstrip("/")
        self._options = dict(storage_options or {})
        self._local = "://" not in root

    def uri(self, table: Table, model: str) -> str:
        """Where the table is, for other readers."""
        return f"{self._root}/{model}/{table}"

    # --- writing -----------------------------------------------------------------------------------------------

    def append(self, table: Table, model: str, batches: pa.RecordBatchReader, *, transaction: str) -> Commit:
        """Add rows in one commit that carries the transaction id; see `ports.Lake.append`."""
        from deltalake import CommitProperties, Transaction

        with self._explained(table, model, "append"):
            target = self._load(table, model)
            if target is not None and target.transaction_version(transaction) is not None:
                return self._landed(table, model, target, transaction)
            properties = CommitProperties(app_transactions=[Transaction(transaction, 1)])
            schema = fit_schema(table, model, None if target is None else _arrow_schema(target), batches.schema)
            rows = Counted(fit_batches(table, model, schema, batches))
            if target is None:
                # spooled first, so that a stream that breaks off does not leave an empty table behind
                with spooled(schema, rows) as spool, unspooled(spool) as reader:
                    target = self._create(table, model, schema)
                    fitted = fit_schema(table, model, _arrow_schema(target), schema)
                    again = Counted(fit_batches(table, model, fitted, reader))
                    return self._commit(table, model, target, fitted, again, properties, transaction)
            return self._commit(table, model, target, schema, rows, properties, transaction)

    def _create(self, table: Table, model: str, schema: pa.Schema) -> DeltaTable:
        """The empty table; where another run creates it at the same moment, that one.

        Not by a first `write_deltalake`: of two that race, the loser's rows would land without the check of its
        transaction id.
        """
        from deltalake import CommitProperties, DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            return DeltaTable.create(
                self.uri(table, model),
                schema,
                mode="error",
                partition_by=["partition"],
                configuration=_KEEP,
                storage_options=self._options,
                # a retry would write the table's description a second time, as version 1
                commit_properties=CommitProperties(max_commit_retries=0),
            )
        except DeltaError:
            existing = self._load(table, model)
            if existing is None:
                raise
            return existing

    def _commit(
        self,
        table: Table,
        model: str,
        target: DeltaTable,
        schema: pa.Schema,
        rows: Counted,
        properties: Any,
        transaction: str,
    ) -> Commit:
        """Append to the version that was looked at: Delta refuses a transaction id that landed after it."""
        from deltalake import WriterProperties, write_deltalake
        from deltalake.exceptions import CommitFailedError

        if target.transaction_version(transaction) is not None:
            return self._landed(table, model, target, transaction)
        try:
            with rows.failures():
                write_deltalake(
                    target,
                    rows.reader(schema),
                    mode="append",
                    commit_properties=properties,
                    writer_properties=WriterProperties(max_row_group_size=_ROW_GROUP),
                )
        except CommitFailedError:
            newer = self._load(table, model)
            if newer is not None and newer.transaction_version(transaction) is not None:
                return self._landed(table, model, newer, transaction)
            raise
        return replace(self._landed(table, model, target, transaction), wrote=True)

    def replace(self, table: Table, model: str, partition: str, batches: pa.RecordBatchReader) -> Commit:
        """Make `batches` the rows of one partition; see `ports.Lake.replace`."""
        from deltalake import write_deltalake
        from deltalake.exceptions import CommitFailedError

        with self._explained(table, model, "replace"):
            target = self._load(table, model)
            schema = fit_schema(table, model, None if target is None else _arrow_schema(target), batches.schema)
            rows = Counted(_of_partition(table, model, partition, fit_batches(table, model, schema, batches)))
            with spooled(schema, rows) as spool:
                target = target or self._create(table, model, schema)
                quoted = partition.replace("'", "''")
                for left in reversed(range(_TURNS)):
                    try:
                        with unspooled(spool) as reader:
                            write_deltalake(target, reader, mode="overwrite", predicate=f"partition = '{quoted}'")
                    except CommitFailedError:
                        # another run replaced the partition meanwhile; of two the later one counts
                        if not left:
                            raise
                        target.update_incremental()
                    else:
                        break
                return Commit(target.version(), rows.rows, wrote=True)

    def landed(self, table: Table, model: str, transaction: str) -> Commit | None:
        """The commit of a transaction; see `ports.Lake.landed`."""
        with self._explained(table, model, "landed"):
            target = self._load(table, model)
            if target is None or target.transaction_version(transaction) is None:
                return None
            return self._landed(table, model, target, transaction)

    # --- reading -----------------------------------------------------------------------------------------------

    def scan(
        self,
        table: Table,
        model: str,
        *,
        columns: Sequence[str] | None = None,
        since: str | None = None,
        before: str | None = None,
        version: int | None = None,
        categorical: Sequence[str] = (),
        batch_rows: int = 131_072,
    ) -> pa.RecordBatchReader:
        """Stream rows by partition, then in the order they were written; see `ports.Lake.scan`."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        with self._explained(table, model, "scan"):
            source = None if version == -1 else self._load(table, model, version)
            if source is None:
                return pa.RecordBatchReader.from_batches(pa.schema([]), [])
            features = set(source.protocol().reader_features or ()) - _READABLE
            if features:
                raise LakeError(
                    f"table '{table}' of {model!r} at {self.uri(table, model)} uses Delta features {sorted(features)}, "
                    f"known are {sorted(_READABLE)}. Rewrite it without them."
                )
            stored = _arrow_schema(source)
            schema = scan_schema(table, model, stored, columns, categorical)
            encoded = [f.name for f in schema if pa.types.is_dictionary(f.type) and f.name != "partition"]
            form = ds.ParquetFileFormat(
                read_options=ds.ParquetReadOptions(dictionary_columns=encoded),
                # Reading ahead halves nothing on a local disk and doubles the memory; S3 needs it against its latency.
                default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=not self._local),
            )
            system = self._filesystem(table, model)
            fragments = [
                form.make_fragment(file.path, system, partition_expression=ds.field("partition") == file.partition)
                for file in self._files(table, model, source)
                if (since is None or file.partition >= since) and (before is None or file.partition < before)
            ]
            dictionaries = pa.schema([schema.field(f.name) if f.name in encoded else f for f in stored])
            rows = ds.FileSystemDataset(fragments, dictionaries, form, system)
            batches = rows.scanner(
                columns=schema.names, batch_size=batch_rows, batch_readahead=2, fragment_readahead=1
            ).to_batches()
        return pa.RecordBatchReader.from_batches(schema, self._stream(table, model, schema, batches))

    def _stream(
        self, table: Table, model: str, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
    ) -> Iterator[pa.RecordBatch]:
        with self._explained(table, model, "scan"):
            for batch in batches:
                if batch.num_rows:
                    yield batch if batch.schema.equals(schema) else batch.cast(schema)

    def version(self, table: Table, model: str) -> int:
        """The newest version; -1 where the table does not exist."""
        with self._explained(table, model, "version"):
            source = self._load(table, model)
            return -1 if source is None else int(source.version())

    def partitions(self, table: Table, model: str, *, version: int | None = None) -> dict[str, int]:
        """Rows per partition key, from the log; see `ports.Lake.partitions`."""
        with self._explained(table, model, "partitions"):
            source = None if version == -1 else self._load(table, model, version)
            rows: dict[str, int] = {}
            for file in self._files(table, model, source) if source is not None else ():
                rows[file.partition] = rows.get(file.partition, 0) + file.rows
            return rows

    # --- the table underneath ------------------------------------------------------------------------------------

    def _load(self, table: Table, model: str, version: int | None = None) -> DeltaTable | None:
        """The table, None where there is none."""
        from deltalake import DeltaTable
        from deltalake.exceptions import TableNotFoundError

        uri = self.uri(table, model)
        if self._local and not (Path(uri) / "_delta_log").exists():
            return None
        try:
            return DeltaTable(uri, version=version, storage_options=self._options)
        except TableNotFoundError:
            if self._local:
                raise
            return None

    def _files(self, table: Table, model: str, source: DeltaTable) -> list[_File]:
        """The table's files by partition, then in the order they were written."""
        import pyarrow as pa

        actions = pa.table(source.get_add_actions(flatten=True)).to_pylist()
        uncounted = [action["path"] for action in actions if action["num_records"] is None]
        if uncounted:
            raise LakeError(
                f"table '{table}' of {model!r} at {self.uri(table, model)}: {len(uncounted)} files carry no row count, "
                f"{uncounted[0]} first; another program wrote them. Rewrite them with statistics."
            )
        return [
            _File(unquote(action["path"]), action["partition.partition"], action["num_records"])
            for action in sorted(actions, key=lambda a: (a["partition.partition"], a["modification_time"], a["path"]))
        ]

    def _filesystem(self, table: Table, model: str) -> Any:
        """A pyarrow file system rooted at the table, with the same credentials as the writes."""
        from deltalake.fs import DeltaStorageHandler
        from pyarrow import fs

        uri = self.uri(table, model)
        if self._local:
            return fs.SubTreeFileSystem(str(Path(uri).resolve()), fs.LocalFileSystem())
        return fs.PyFileSystem(DeltaStorageHandler(uri, self._options))

    def _landed(self, table: Table, model: str, target: DeltaTable, transaction: str) -> Commit:
        """The commit of this transaction, from the table's log, newest first.

        Not from `DeltaTable.history()`: that numbers commits wrongly while others commit (deltalake 1.6).
        """
        system = self._filesystem(table, model)
        for version in range(target.version(), -1, -1):
            with system.open_input_stream(f"_delta_log/{version:020}.json") as stream:
                actions = [json.loads(line) for line in stream.read().splitlines()]
            if any(action.get("txn", {}).get("appId") == transaction for action in actions):
                metrics = next(a["commitInfo"] for a in actions if "commitInfo" in a)["operationMetrics"]
                return Commit(version, int(metrics["num_added_rows"]), wrote=False)
        raise LakeError(
            f"table '{table}' of {model!r} at {self.uri(table, model)} has transaction {transaction!r}, its log up to "
            f"version {target.version()} does not. Restore `_delta_log` from a backup."
        )

    @contextmanager
    def _explained(self, table: Table, model: str, operation: str) -> Iterator[None]:
        """Foreign errors become a LakeError that names the table and its address."""
        import pyarrow as pa
        from deltalake.exceptions import DeltaError

        try:
            yield
        except (DeltaError, pa.ArrowException, OSError) as error:
            raise LakeError(
                f"{operation} on table '{table}' of {model!r} at {self.uri(table, model)}: {error}. "
                "Check that the place exists, can be read and written, and that no file of it is damaged."
            ) from error


@dataclass(frozen=True)
class _File:
    """One Parquet file of a table; `path` is relative to the table's root."""

    path: str
    partition: str
    rows: int


def _of_partition(
    table: Table, model: str, partition: str, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

    for batch in batches:
        refuse_other_partitions(table, model, partition, pc.unique(batch["partition"]).to_pylist())
        yield batch


def _arrow_schema(table: DeltaTable) -> pa.Schema:
    import pyarrow as pa

    return pa.schema(table.schema().to_arrow())
