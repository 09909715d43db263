"""The schema rules that both lakes keep: which differences count, and the errors that name them. Needs Arrow only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from perennial.errors import LakeError

if TYPE_CHECKING:
    import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type as a table stores it: no dictionary encoding, views or 64-bit offsets; times in UTC microseconds."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(plain_type(kind.value_type))
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz else None)
    return kind


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The schema as a table stores it; every column may be null."""
    import pyarrow as pa

    return pa.schema([pa.field(f.name, plain_type(f.type)) for f in schema])


def compare_schemas(table: pa.Schema, rows: pa.Schema) -> list[str]:
    """How `rows` do not fit `table`, one sentence a column; empty where they fit. Order does not matter."""
    old, new = plain_schema(table), plain_schema(rows)
    differences = [f"column {n!r} is missing from the rows" for n in old.names if n not in new.names]
    differences += [f"column {n!r} is not in the table" for n in new.names if n not in old.names]
    differences += [
        f"column {n!r} is {old.field(n).type} in the table and {new.field(n).type} in the rows"
        for n in old.names
        if n in new.names and old.field(n).type != new.field(n).type
    ]
    return differences


def fit_schema(table: str, model: str, stored: pa.Schema | None, incoming: pa.Schema) -> pa.Schema:
    """The schema in which the rows are written: the table's, or the rows' own where there is no table yet.

    Args:
        table: its name, for errors.
        model: whose table, for errors.
        stored: the table's schema; None where it does not exist yet.
        incoming: the rows' schema.

    Raises:
        LakeError: the rows do not fit; every difference and both schemas are named.
    """
    import pyarrow as pa

    rows = plain_schema(incoming)
    if "partition" not in rows.names or rows.field("partition").type != pa.string():
        raise LakeError(
            f"rows for table '{table}' of {model!r} have no text column 'partition'; they have {_show(rows)}. "
            "Add the batch's key."
        )
    if stored is None:
        return rows
    if differences := compare_schemas(stored, rows):
        raise LakeError(
            f"rows do not fit table '{table}' of {model!r}: {'; '.join(differences)}. Table: {_show(stored)}. "
            f"Rows: {_show(rows)}. Mend the source, or give the model a new name."
        )
    return plain_schema(stored)


def fit_batches(
    table: str, model: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """The batches in `schema`, one at a time.

    Raises:
        LakeError: a value cannot be held (a time finer than a microsecond), or a row has no partition.
    """
    import pyarrow as pa

    for batch in batches:
        try:
            fitted = batch.select(schema.names).cast(schema)
        except pa.ArrowInvalid as error:
            raise LakeError(f"rows for table '{table}' of {model!r}: {error}. Round or mend the values.") from error
        if fitted["partition"].null_count:
            raise LakeError(
                f"rows for table '{table}' of {model!r}: {fitted['partition'].null_count} of {fitted.num_rows} have no "
                "partition. Give every row its batch's key."
            )
        yield fitted


def refuse_other_partitions(table: str, model: str, partition: str, keys: Iterable[str]) -> None:
    """A replacement holds rows of its own partition only.

    Raises:
        LakeError: names the other partitions.
    """
    if others := sorted(set(keys) - {partition}):
        raise LakeError(
            f"the rows that replace partition {partition!r} of '{table}' of {model!r} hold rows of {others}. "
            "Pass rows of that partition only."
        )


def scan_schema(
    table: str, model: str, stored: pa.Schema, columns: Sequence[str] | None, categorical: Sequence[str]
) -> pa.Schema:
    """The schema of a scan: `columns` in their order (None: all), text columns in `categorical` dictionary encoded.

    Raises:
        LakeError: the table lacks a column.
    """
    import pyarrow as pa

    names = list(stored.names if columns is None else columns)
    if missing := [name for name in names if name not in stored.names]:
        raise LakeError(f"table '{table}' of {model!r} has no columns {missing}; it has {stored.names}.")

    def encode(field: pa.Field) -> pa.Field:
        encoded = field.name in categorical and pa.types.is_string(field.type)
        return field.with_type(pa.dictionary(pa.int32(), pa.string())) if encoded else field

    return pa.schema([encode(stored.field(name)) for name in names])


def _show(schema: pa.Schema) -> str:
    return "{" + ", ".join(f"{f.name}: {f.type}" for f in schema) + "}"
