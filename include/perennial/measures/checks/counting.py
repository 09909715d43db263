"""Great Expectations' own engine on Arrow: the library judges as ever, and the rows stay where they are.

Its pandas engine wants the whole batch once more as pandas, every text of it a Python object. Here what it asks of the
rows (its metrics) is answered by the library's own functions on as little pandas as will do:

- a condition on single rows is asked of one chunk after the other; on text, of each distinct value once;
- what follows from the distinct texts of a column is asked of those;
- anything else, as a quantile, is asked of the columns that it names.

So no meaning is translated: verdicts, counts and examples are the library's. Sources: its `ExecutionEngine.
resolve_metrics` and `MetricConfiguration` (Great Expectations 1.24); `tests/unit/measures/test_counting.py` compares
both engines on random suites and batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from great_expectations.datasource.fluent import PandasDatasource
from great_expectations.exceptions import MetricResolutionError
from great_expectations.execution_engine import PandasExecutionEngine

#: rows that are pandas at one time: a few columns of so many stay below 20 MB, and the library's own cost a chunk
#: (about a millisecond for each metric) is small beside the work on them
CHUNK_ROWS = 262_144
#: conditions on single rows: the value of one says nothing of another
_ROWWISE = frozenset(
    {
        *(
            f"column_values.{name}"
            for name in (
                "between",
                "in_set",
                "not_in_set",
                "match_regex",
                "not_match_regex",
                "match_regex_list",
                "not_match_regex_list",
                "match_strftime_format",
                "match_json_schema",
                "dateutil_parseable",
                "json_parseable",
                "of_type",
                "in_type_list",
                "value_length",
                "value_length.between",
                "value_length.equals",
            )
        ),
        *(f"column_pair_values.{name}" for name in ("a_greater_than_b", "equal", "in_set")),
        "multicolumn_sum.equal",
        "multicolumn_values.equal",
        "select_column_values.unique.within_record",
    }
)
_NULLNESS = "column_values.nonnull"
_UNIQUE = "column_values.unique"
#: what is asked of a condition, and how the answers of chunks become one
_COUNT, _VALUES, _FILTERED = "unexpected_count", "unexpected_values", "filtered_row_count"
#: what a condition itself is until something asks for it
_LATER = object()
#: of a text column, what follows from its distinct values
_OF_DISTINCT = frozenset(
    {
        *("column.min", "column.max", "column.distinct_values", "column.distinct_values.count"),
        *("column.distinct_values.not_in_set", "column.distinct_values.not_in_set.count"),
        *("column.distinct_values.missing_from_column", "column.distinct_values.missing_from_column.count"),
    }
)


class CountingEngine(PandasExecutionEngine):  # type: ignore[misc]
    """The library's pandas engine, whose batch holds columns and types only; `rows` has the rows."""

    rows: pa.Table

    def resolve_metrics(
        self,
        metrics_to_resolve: Iterable[Any],
        metrics: Mapping[Any, Any] | None = None,
        runtime_configuration: dict[str, Any] | None = None,  # noqa: ARG002 - of the overridden method; unused there
    ) -> dict[Any, Any]:
        """The values of the metrics by id; `metrics` has those that they depend on.

        Raises:
            MetricResolutionError: one cannot be computed; it is named.
        """
        found: dict[Any, Any] = {}
        known = dict(metrics or {})
        conditions: dict[Any, list[Any]] = {}
        for metric in metrics_to_resolve:
            base, _, asked = metric.metric_name.rpartition(".")
            if metric.metric_name == "table.row_count":
                found[metric.id] = self.rows.num_rows
            elif base in {_NULLNESS, _UNIQUE, *_ROWWISE} and asked in {"condition", "map"} and self._answers(metric):
                found[metric.id] = _LATER
            elif _is_later(metric, known):
                conditions.setdefault(metric.metric_dependencies["unexpected_condition"].id, []).append(metric)
            else:
                found[metric.id] = self._of_columns(metric, known)
        for group in conditions.values():
            found |= _explained(group, partial(self._of_condition, group, known))
        return found

    def _answers(self, metric: Any) -> bool:
        """Whether there is a way for this condition other than the whole column as pandas."""
        if metric.metric_name.rpartition(".")[0] != _UNIQUE:
            return True
        return self._is_text(_columns(metric))

    # --- conditions ------------------------------------------------------------------------------------------------

    def _of_condition(self, asked: list[Any], known: Mapping[Any, Any]) -> dict[Any, Any]:
        """All that is asked of one condition."""
        condition = asked[0].metric_dependencies["unexpected_condition"]
        columns, base = _columns(condition), condition.metric_name.rpartition(".")[0]
        if base == _NULLNESS:
            return self._of_nulls(asked, columns[0])
        if self._is_text(columns):
            return self._of_texts(asked, condition, known, columns[0])
        parts: dict[Any, list[Any]] = {metric.id: [] for metric in asked}
        for frame in self._chunks(columns):
            here = {**known, **self._on(frame, condition, known)}
            for metric in asked:
                parts[metric.id].append(self._on(frame, metric, here)[metric.id])
        return {metric.id: _together(metric, parts[metric.id]) for metric in asked}

    def _of_nulls(self, asked: list[Any], name: str) -> dict[Any, Any]:
        column = self.rows[name]
        nulls = pc.sum(pc.is_null(column, nan_is_null=True)).as_py() or 0
        found = {}
        for metric in asked:
            found[metric.id] = nulls
            if metric.metric_name.endswith(_VALUES):
                found[metric.id] = list(pa.nulls(min(nulls, _most(metric)), column.type).to_pandas())
        return found

    def _of_texts(self, asked: list[Any], condition: Any, known: Mapping[Any, Any], name: str) -> dict[Any, Any]:
        """Of each distinct text once; the rows are counted with it."""
        texts = self._texts(name)
        if condition.metric_name.startswith(f"{_UNIQUE}."):
            unexpected = texts.counts > 1
        else:
            mask = self._on(texts.frame, condition, known)[condition.id][0]
            unexpected = mask.to_numpy(dtype=bool)
        found: dict[Any, Any] = {}
        for metric in asked:
            if metric.metric_name.endswith(_VALUES):
                found[metric.id] = texts.first(unexpected, _most(metric))
            else:
                found[metric.id] = int(texts.counts[unexpected if metric.metric_name.endswith(_COUNT) else ...].sum())
        return found

    # --- the rest --------------------------------------------------------------------------------------------------

    def _of_columns(self, metric: Any, known: Mapping[Any, Any]) -> Any:
        """Asked of the columns that the metric names, as pandas; of a text column's distinct values where they do."""
        columns = _columns(metric)
        if metric.metric_name in _OF_DISTINCT and self._is_text(columns):
            frame = self._texts(columns[0]).frame
        else:
            frame = self.rows.select(columns).to_pandas() if columns else self._types
        return _explained([metric], lambda: self._on(frame, metric, known))[metric.id]

    def _on(self, frame: pd.DataFrame, metric: Any, known: Mapping[Any, Any]) -> dict[Any, Any]:
        """The library's own answer on these rows, after those of what it depends on there."""
        known = dict(known)
        for dependency in metric.metric_dependencies.values():
            if known.get(dependency.id) is _LATER:
                known |= self._on(frame, dependency, known)
        held = self.batch_manager.active_batch_data
        held._dataframe = frame  # noqa: SLF001 - the engine asks its batch for the rows, and that has no other place
        try:
            return dict(super().resolve_metrics([metric], known))
        finally:
            held._dataframe = self._types  # noqa: SLF001 - the same

    # --- rows ------------------------------------------------------------------------------------------------------

    @cached_property
    def _types(self) -> pd.DataFrame:
        """All columns with their types in pandas, and no row."""
        return types_of(self.rows)

    def _is_text(self, columns: list[str]) -> bool:
        return len(columns) == 1 and pa.types.is_string(self.rows[columns[0]].type)

    def _chunks(self, columns: list[str]) -> Iterator[pd.DataFrame]:
        rows = self.rows.select(columns)
        for start in range(0, rows.num_rows, CHUNK_ROWS):
            frame = rows.slice(start, CHUNK_ROWS).to_pandas()
            # the place of a row in the batch: two chunks have no row in common
            frame.index += start
            yield frame

    def _texts(self, name: str) -> _Texts:
        if name not in self._counted:
            self._counted[name] = _Texts(name, self.rows[name])
        return self._counted[name]

    @cached_property
    def _counted(self) -> dict[str, _Texts]:
        return {}


class _Texts:
    """The distinct texts of a column in the order of their first row, and how often each stands."""

    def __init__(self, name: str, column: pa.ChunkedArray) -> None:
        whole = pc.dictionary_encode(column.combine_chunks())
        if isinstance(whole, pa.ChunkedArray):
            whole = whole.combine_chunks()
        self.codes = whole.indices
        self.counts = np.bincount(self.codes.drop_null().to_numpy(), minlength=len(whole.dictionary))
        self.frame = pd.DataFrame({name: whole.dictionary.to_pandas()}, dtype=object)

    def first(self, chosen: np.ndarray[Any, Any], most: int) -> list[str]:
        """The values of the first rows whose text is chosen."""
        if not chosen.any():
            return []
        places = pc.indices_nonzero(pc.is_in(self.codes, pa.array(np.flatnonzero(chosen), self.codes.type)))[:most]
        return list(self.frame.iloc[self.codes.take(places).to_numpy(), 0])


class RowsSource(PandasDatasource):  # type: ignore[misc]
    """The library's data source of a frame, whose engine this is; its class registers itself by the type's name."""

    type: Literal["rows"] = "rows"
    execution_engine_override: ClassVar = CountingEngine


def types_of(rows: pa.Table) -> pd.DataFrame:
    """The columns of a table with their types in pandas, and no row."""
    # an integer column with nulls is one of floats in pandas: one null shows it
    kinds = [pa.nulls(1, column.type) if column.null_count else column.slice(0, 1) for column in rows.columns]
    shown: pd.DataFrame = pa.table(kinds, names=rows.column_names).to_pandas()
    return shown.iloc[:0]


def _columns(metric: Any) -> list[str]:
    domain = metric.metric_domain_kwargs
    named = [domain[key] for key in ("column", "column_A", "column_B") if key in domain]
    return list(dict.fromkeys([*named, *(domain.get("column_list") or ())]))


def _is_later(metric: Any, known: Mapping[Any, Any]) -> bool:
    condition = metric.metric_dependencies.get("unexpected_condition")
    asked = metric.metric_name.rpartition(".")[2]
    return condition is not None and known.get(condition.id) is _LATER and asked in {_COUNT, _VALUES, _FILTERED}


def _most(metric: Any) -> int:
    return int(metric.metric_value_kwargs["result_format"]["partial_unexpected_count"])


def _together(metric: Any, parts: list[Any]) -> Any:
    """The answers of all chunks as one."""
    if metric.metric_name.endswith(_VALUES):
        return [value for part in parts for value in part][: _most(metric)]
    return sum(parts)


def _explained(metrics: list[Any], compute: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
    """What is computed; an error names the metrics that were asked for, not one that they depend on.

    The library gives a metric that fails some tries: one that it has not asked for would be tried for ever.
    """
    try:
        return compute()
    except Exception as error:
        raise MetricResolutionError(message=str(error), failed_metrics=metrics) from error
