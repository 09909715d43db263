"""Where rows, labels and features come from."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from perennial.spec.grammar import (
    Column,
    Duration,
    RuleBroken,
    Section,
    check_zone,
)


class Source(Section):
    """Where the rows come from. Readers yield the rows of `[start, end)` by event time."""

    kind: Literal["python", "files", "sql"] = Field(examples=["files"])
    """How the rows are read: by Python code beside the spec, from files, or by an SQL query."""
    function: str = Field(default="read", examples=["read_orders"])
    """For `python`: name of the function in `source.py`. It is called as `function(start, end)` and returns a pyarrow
    Table or RecordBatchReader."""
    path: str | None = Field(default=None, examples=["s3://orders/%Y-%m-%d.parquet"])
    """For `files`: a local or `s3://` path with strftime fields of the partition's start. Environment variables are
    written as `${NAME}`. Without strftime fields the whole file is read and cut to the partition."""
    format: Literal["parquet", "csv"] | None = Field(default=None, examples=["csv"])
    """For `files`: their format, where the path's ending does not say it."""
    url: str | None = Field(default=None, examples=["postgresql+psycopg2://${ORDERS_USER}@db.example/orders"])
    """For `sql`: a SQLAlchemy URL. Environment variables are written as `${NAME}`."""
    query: str | None = Field(
        default=None, examples=["select * from orders where ordered_at >= :start and ordered_at < :end"]
    )
    """For `sql`: the query. It must filter by the parameters `:start` and `:end`."""
    drop: tuple[str, ...] = Field(default=(), examples=[["internal_note"]])
    """Columns that the source has and the model does not want. Any other column that the spec does not name is
    refused."""
    naive_times_are: str | None = Field(default=None, examples=["Europe/Vienna"])
    """IANA time zone of times that carry no offset. Without it such times are refused. With it, times that do carry an
    offset are refused, because then the source has changed."""

    @field_validator("naive_times_are")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        return value if value is None else check_zone(value)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        own = {"python": ("function",), "files": ("path", "format"), "sql": ("url", "query")}[self.kind]
        keys = {"function": "read", "path": None, "format": None, "url": None, "query": None}
        others = [k for k, default in keys.items() if k not in own and getattr(self, k) != default]
        if others:
            text = f"{others} are not read by kind {self.kind!r}, which has {list(own)}; take them out or change kind"
            raise RuleBroken("key_of_another_kind", text, (others[0],))
        if self.kind == "files" and not self.path:
            text = "a 'files' source needs 'path', as in 'data/%Y-%m-%d.parquet'"
            raise RuleBroken("files_without_path", text)
        if self.kind == "files" and self.path and not self.format and not self.suffix:
            text = f"path {self.path!r} ends neither in .parquet nor in .csv; add 'format: parquet' or 'format: csv'"
            raise RuleBroken("files_without_format", text, ("path",))
        if self.kind == "sql" and not (self.url and self.query):
            text = "a 'sql' source needs 'url' and 'query' (with :start and :end)"
            raise RuleBroken("sql_without_query", text)
        if self.query and not (":start" in self.query and ":end" in self.query):
            text = "the query must filter by :start and :end, or every batch would read the whole table"
            raise RuleBroken("query_without_bounds", text, ("query",))
        return self

    @property
    def suffix(self) -> Literal["parquet", "csv"] | None:
        """What the path's ending says about its format."""
        name = (self.path or "").rsplit("/", 1)[-1].lower()
        if name.endswith((".parquet", ".pq")):
            return "parquet"
        return "csv" if name.endswith((".csv", ".csv.gz")) else None


class Label(Section):
    """The truth, and when it is known."""

    column: Column = Field(examples=["returned"])
    """The column that holds the label."""
    delay: Duration = Field(examples=["1d"])
    """How long after the event the label is known, where the label rows do not carry the column `known_at`."""
    positive: str | int | float | bool | None = Field(default=None, examples=[1])
    """For `binary`: the value that counts as 1. Without it the label must be 0 and 1, or false and true."""
    negative: str | int | float | bool | None = Field(default=None, examples=[0])
    """For `binary`: the value that counts as 0. Without it: the other one of 0 and 1; beside any other `positive`, the
    one other value that the labels hold. Any further value is refused."""
    classes: tuple[str, ...] = Field(default=(), examples=[["low", "middle", "high"]])
    """For `multiclass`: all classes, three or more, in the order of the predicted probabilities."""
    lookback: Duration = Field(default=timedelta(days=30), examples=["60d"])
    """How far back the monitoring of a batch looks for labels that came late or were corrected; at least over the delay
    and three partitions."""
    source: Source | None = None
    """Where labels come from, when not from the batch's own source. It must yield the entity, the event time and the
    label column, and may yield `known_at`, the moment at which a label became known."""


class Features(Section):
    """Columns that the model sees, in this order: numeric first, then categorical."""

    numeric: tuple[Column, ...] = Field(default=(), examples=[["price", "discount"]])
    """Columns that become 64-bit floating point numbers."""
    categorical: tuple[Column, ...] = Field(default=(), examples=[["channel", "country"]])
    """Columns that become strings."""

    @property
    def names(self) -> tuple[str, ...]:
        """Numeric first, then categorical, in the spec's order."""
        return self.numeric + self.categorical
