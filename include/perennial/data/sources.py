"""Where rows come from: a Python function, Parquet or CSV files, a SQL query. All end in the canonical schema.

A reader only fetches; `schema.py` judges what came.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

import pyarrow as pa

from perennial.data.columns import Delivery, decoded_table
from perennial.data.schema import canonical_schema, check_names, label_schema, to_batch, to_labels
from perennial.errors import PerennialError, SourceEmpty, SourceUnreadable, without_secrets
from perennial.records import Partition
from perennial.spec import ModelSpec, Source
from perennial.spec.code import load_function

if TYPE_CHECKING:
    import sqlalchemy as sa
    from pyarrow import fs

__all__ = ["canonical_schema", "check_readers", "label_schema", "load_reader", "read_batch", "read_labels"]


def read_batch(spec: ModelSpec, partition: Partition, environment: Mapping[str, str]) -> pa.Table:
    """The rows of one batch: `spec.columns` and `partition`, in canonical types (see `canonical_schema`).

    Args:
        spec: the model; its folder holds source.py.
        partition: `[start, end)`.
        environment: what `${NAME}` in a path or URL stands for.

    Raises:
        SourceUnreadable: data absent, truncated or corrupt, or the reader itself failed.
        SourceEmpty: no rows.
        BatchError: the rows break the spec's contract (SchemaMismatch, DuplicateEntity, OutsidePartition,
            TimeZoneMismatch).
        SpecError: source.py has no such reader.
    """
    what = f"batch {_show(partition)} of {spec.name!r}"
    rows = _fetch(spec, spec.source, partition, what, environment)
    delivery = Delivery(spec, decoded_table(rows), what, spec.source.naive_times_are)
    if rows.num_columns:
        # the label may come with the rows or later; it is never among the features
        check_names(rows.column_names, spec.columns, {spec.label.column, "known_at", *spec.source.drop}, delivery)
    batch = to_batch(delivery, partition, cut=_is_single_file(spec.source)) if rows.num_rows else rows
    if not batch.num_rows:
        raise SourceEmpty(
            f"{what} has no rows: {_name(spec.source, partition)} gave {rows.num_rows} rows, none of them in "
            f"[{partition.start.isoformat()}, {partition.end.isoformat()}). Deliver the batch and clear the task; "
            "if the partition is rightly empty, mark the task as skipped."
        )
    return batch


def read_labels(spec: ModelSpec, start: datetime, end: datetime, environment: Mapping[str, str]) -> pa.Table:
    """Labels of events in [start, end), as they came; no rows where none were delivered yet.

    Returns:
        entity columns, event time, `partition`, `label` (float64: binary 0 or 1, regression the value; string for
        multiclass), `known_at` (event time + `label.delay`, unless the rows carry their own). A label that came twice
        or was corrected stands twice: who reads them takes the newest known by `as_of`.

    Raises:
        SchemaMismatch: a label is none of the values that the spec declares. Null: it is not known yet, and left out.
        SourceUnreadable, BatchError, SpecError: as for `read_batch`. A missing file holds no labels yet.
    """
    source = spec.label.source or spec.source
    if source.kind == "files" and not _is_single_file(source):
        spans = _spans(spec, start, end)
    else:
        spans = [Partition(start=start.astimezone(spec.schedule.zone), end=end.astimezone(spec.schedule.zone))]
    tables = [_labels_of(spec, source, span, environment) for span in spans]
    return pa.concat_tables([label_schema(spec).empty_table(), *tables]).combine_chunks()


def _labels_of(spec: ModelSpec, source: Source, span: Partition, environment: Mapping[str, str]) -> pa.Table:
    what = f"labels of {spec.name!r} for [{span.start.isoformat()}, {span.end.isoformat()})"
    rows = _fetch(spec, source, span, what, environment, absent_is_empty=source.kind == "files")
    if not rows.num_columns:
        return label_schema(spec).empty_table()
    delivery = Delivery(spec, decoded_table(rows), what, source.naive_times_are)
    needed = [*spec.entity, spec.event_time, spec.label.column]
    check_names(rows.column_names, needed, {*spec.columns, "known_at", *source.drop}, delivery)
    if not rows.num_rows:
        return label_schema(spec).empty_table()
    return to_labels(delivery, span.start, span.end, cut=_is_single_file(source))


def check_readers(spec: ModelSpec, environment: Mapping[str, str]) -> None:
    """Whether the readers of rows and labels could start: code, variables, folders, drivers. Reads no data.

    Raises:
        SpecError: source.py or its function is missing.
        SourceUnreadable: a variable is not set, a local folder or file is missing, or a URL cannot be used.
    """
    what = f"source of {spec.name!r}"
    for source in filter(None, (spec.source, spec.label.source)):
        if source.kind == "python":
            load_reader(spec, source)
        elif source.kind == "sql":
            _engine(source, what, environment).dispose()
        elif not (path := _expand(str(source.path), environment, what)).startswith("s3://"):
            # up to the first date field the path is the same for every batch
            fixed = spec.folder / path.partition("%")[0]
            needed = fixed.parent if "%" in path and not path.partition("%")[0].endswith("/") else fixed
            if not needed.exists():
                msg = f"{what}: {needed} does not exist (source.path {source.path!r}). Make it, or change source.path."
                raise SourceUnreadable(msg)


def load_reader(spec: ModelSpec, source: Source) -> Any:
    """The function `read(start, end)` of the model folder's source.py.

    Raises:
        SpecError: the file is absent, cannot be imported, or has no such function.
    """
    contract = f"`def {source.function}(start, end)` that returns a pyarrow Table"
    # a reader may keep its own data in memory (lru_cache in source.py)
    return load_function(spec.name, spec.folder / "source.py", source.function, contract, keep_module=True)


def _fetch(
    spec: ModelSpec,
    source: Source,
    span: Partition,
    what: str,
    environment: Mapping[str, str],
    *,
    absent_is_empty: bool = False,
) -> pa.Table:
    if source.kind == "python":
        return _from_python(spec, source, span, what)
    if source.kind == "sql":
        return _from_sql(source, span, what, environment)
    return _from_files(spec, source, span, what, environment, absent_is_empty=absent_is_empty)


# --- python ----------------------------------------------------------------------------------------------------------


def _from_python(spec: ModelSpec, source: Source, span: Partition, what: str) -> pa.Table:
    read = load_reader(spec, source)
    call = f"{spec.folder / 'source.py'}: {source.function}({span.start.isoformat()}, {span.end.isoformat()})"
    try:
        rows = read(span.start, span.end)
        if isinstance(rows, pa.RecordBatchReader):
            rows = rows.read_all()
    except PerennialError:
        raise
    except Exception as error:
        msg = f"{what}: {call} failed ({type(error).__name__}: {error}). Mend the reader or what it reads."
        raise SourceUnreadable(msg) from error
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    if isinstance(rows, pa.Table):
        return rows
    if type(rows).__name__ == "DataFrame" and type(rows).__module__.startswith("pandas"):
        try:
            return pa.Table.from_pandas(rows, preserve_index=False)
        except (pa.ArrowException, ValueError, TypeError) as error:
            msg = f"{what}: the DataFrame of {call} is no table ({error}). Give each column one type and name."
            raise SourceUnreadable(msg) from error
    msg = (
        f"{what}: {call} returned {type(rows).__name__}; a pyarrow Table, a RecordBatchReader or a pandas DataFrame "
        "is needed. Change its return."
    )
    raise SourceUnreadable(msg)


# --- files -----------------------------------------------------------------------------------------------------------


def _from_files(
    spec: ModelSpec,
    source: Source,
    span: Partition,
    what: str,
    environment: Mapping[str, str],
    *,
    absent_is_empty: bool,
) -> pa.Table:
    from pyarrow import fs

    path = _expand(str(source.path), environment, what, dated=span.start)
    system, address = _file_system(spec, path, environment)
    try:
        if system.get_file_info(address).type == fs.FileType.NotFound:
            if absent_is_empty:
                return pa.table({})
            msg = (
                f"{what}: {path} does not exist ({address}). Deliver the file and clear the task, or change "
                "source.path."
            )
            raise SourceUnreadable(msg)
        with system.open_input_file(address) as file:
            kind = source.format or source.suffix
            return _read_csv(spec, file) if kind == "csv" else _read_parquet(spec, source, file)
    except (OSError, pa.ArrowException) as error:
        msg = f"{what}: {path} cannot be read ({error}). Is it truncated, or of another format? Deliver it again."
        raise SourceUnreadable(msg) from error


def _file_system(spec: ModelSpec, path: str, environment: Mapping[str, str]) -> tuple[fs.FileSystem, str]:
    """The file system of `path`, and the path in it."""
    from pyarrow import fs

    if path.startswith("s3://"):
        # what the environment leaves out, the AWS libraries look for themselves (a profile, the machine's role)
        names = {
            "access_key": "AWS_ACCESS_KEY_ID",
            "secret_key": "AWS_SECRET_ACCESS_KEY",
            "session_token": "AWS_SESSION_TOKEN",
            "region": "AWS_REGION",
            "endpoint_override": "AWS_ENDPOINT_URL",
        }
        options = {option: environment[name] for option, name in names.items() if environment.get(name)}
        return fs.S3FileSystem(**options), path.removeprefix("s3://")
    # a relative path starts at the model folder: it means the same wherever a task runs
    return fs.LocalFileSystem(), str(spec.folder / path)


def _read_parquet(spec: ModelSpec, source: Source, file: Any) -> pa.Table:
    import pyarrow.parquet as pq

    parquet = pq.ParquetFile(file, pre_buffer=False)
    skipped = {*source.drop} - {*spec.columns}
    return parquet.read(columns=[c for c in parquet.schema_arrow.names if c not in skipped])


def _read_csv(spec: ModelSpec, file: Any) -> pa.Table:
    from pyarrow import csv

    # text stays text: "007" is no 7, and times are judged by the contract with their offsets
    texts = [*spec.features.categorical, *spec.entity, spec.event_time, "known_at"]
    # an empty cell, NA, NaN or null is missing, as pandas has it; in quotes it is text
    options = csv.ConvertOptions(
        column_types=dict.fromkeys(texts, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        return csv.read_csv(file, convert_options=options)
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            return pa.table({})
        raise


def _is_single_file(source: Source) -> bool:
    return source.kind == "files" and "%" not in str(source.path)


def _spans(spec: ModelSpec, start: datetime, end: datetime) -> list[Partition]:
    """Every partition that touches [start, end), whole: one file each."""
    tick = spec.schedule.tick_at_or_before(start)
    spans = []
    while tick < end:
        spans.append(Partition(start=tick, end=spec.schedule.tick_after(tick)))
        tick = spans[-1].end
    return spans


# --- sql -------------------------------------------------------------------------------------------------------------


def _from_sql(source: Source, span: Partition, what: str, environment: Mapping[str, str]) -> pa.Table:
    import sqlalchemy as sa

    engine = _engine(source, what, environment)
    moments = {
        name: _sql_moment(moment, source.naive_times_are, text=engine.dialect.name == "sqlite")
        for name, moment in (("start", span.start), ("end", span.end))
    }
    try:
        with engine.connect() as connection:
            result = connection.execute(sa.text(str(source.query)), moments)
            names = list(result.keys())
            columns = list(zip(*result.fetchall(), strict=True)) or [()] * len(names)
    except sa.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        # the URL may hold a password: only its public part is shown
        where = without_secrets(engine.url.render_as_string(hide_password=True))
        msg = f"{what}: the query on {where} failed ({cause}). Mend source.query, or the database."
        raise SourceUnreadable(msg) from error
    finally:
        engine.dispose()
    arrays = []
    for name, values in zip(names, columns, strict=True):
        try:
            arrays.append(pa.array(values))
        except (pa.ArrowException, OverflowError) as error:
            msg = f"{what}: column {name!r} of the query holds values of several types ({error}). Cast it in the query."
            raise SourceUnreadable(msg) from error
    return pa.Table.from_arrays(arrays, names=names)


def _engine(source: Source, what: str, environment: Mapping[str, str]) -> sa.Engine:
    import sqlalchemy as sa

    url = _expand(str(source.url), environment, what)
    try:
        return sa.create_engine(url, poolclass=sa.pool.NullPool)
    except (sa.exc.ArgumentError, ValueError, ImportError) as error:
        # `source.url` as written: the filled-in one may hold a password, and so may the library's message
        msg = f"{what}: source.url {source.url!r} cannot be used ({error}). Write it as 'postgresql+psycopg2://...'."
        raise SourceUnreadable(msg) from None


def _sql_moment(moment: datetime, naive_zone: str | None, *, text: bool) -> datetime | str:
    """A bound as the database compares it: without offset in the zone of its naive times, else aware.

    SQLite has no times: it compares texts. A text without fraction and offset sorts before every later time of that
    second, however the rows are written.
    """
    local = moment.astimezone(ZoneInfo(naive_zone or "UTC"))
    if text:
        return f"{local:%Y-%m-%d %H:%M:%S}"
    return local.replace(tzinfo=None) if naive_zone else local


# --- names -----------------------------------------------------------------------------------------------------------


def _expand(text: str, environment: Mapping[str, str], what: str, dated: datetime | None = None) -> str:
    """Fill in the date first, then `${NAME}`: a per cent sign in a variable's value is no date field."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in environment:
            msg = f"{what}: {text!r} needs the environment variable {match[1]!r}, which is not set. Set it."
            raise SourceUnreadable(msg)
        return environment[match[1]]

    return re.sub(r"\$\{(\w+)\}", value, dated.strftime(text) if dated and "%" in text else text)


def _name(source: Source, span: Partition) -> str:
    if source.kind == "files":
        return span.start.strftime(str(source.path)) if "%" in str(source.path) else str(source.path)
    return f"source.py {source.function}()" if source.kind == "python" else "the query"


def _show(partition: Partition) -> str:
    return partition.key.removesuffix("T00:00:00")
