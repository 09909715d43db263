"""Score streams of Arrow record batches with one or more fitted estimators, in bounded memory.

Most of a pipeline's time goes into turning text columns into numbers, row by row. Where the pipeline is a
ColumnTransformer of ordinal or one-hot encoders and numeric transformers, each *distinct* value is sent through the
fitted encoder once and the rows pick up the result by their Arrow dictionary index: the same matrix, without a Python
object for every row. Every other pipeline gets a pandas frame, as scikit-learn expects.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from perennial import training
from perennial.errors import SourceUnreadable, StoreError, TrainingError

if TYPE_CHECKING:
    import numpy.typing as npt

    from perennial.specs import ModelSpec

#: rows that are in memory at once, times a few copies; larger is no faster (measured from 32k to 512k)
BATCH_ROWS = 131_072
#: a process takes at least so many rows: one process scores on all cores already, and a fork costs a tenth of a second
PROCESS_ROWS = 1_048_576

Scored = tuple[pa.RecordBatch, dict[str, tuple[pa.Array, ...]], dict[str, str]]


def prediction_field(spec: ModelSpec) -> tuple[pa.Field, ...]:
    """The columns that a prediction has: a number, or (multiclass) the class and the probabilities of all classes."""
    if spec.task == "multiclass":
        return (pa.field("prediction", pa.string()), pa.field("probabilities", pa.list_(pa.float64())))
    return (pa.field("prediction", pa.float64()),)


def predict_batches(
    estimators: Mapping[str, Any],
    batches: Iterable[pa.RecordBatch],
    spec: ModelSpec,
    *,
    may_fail: Collection[str] = (),
) -> Iterator[Scored]:
    """Score every batch with every estimator.

    Args:
        estimators: fitted, by model version.
        batches: features (text columns plain or dictionary encoded) and any other columns.
        spec: names the features and the task.
        may_fail: versions whose errors are reported instead of raised: all their rows of that batch are missing.

    Yields:
        The batch; per version the arrays of `prediction_field`, null where the prediction is not finite; per failed
        version what went wrong. Empty batches are skipped.

    Raises:
        TrainingError: a version outside `may_fail` refused the rows.
    """
    plans = {version: _plan(estimator, spec) for version, estimator in estimators.items()}
    for batch in batches:
        if not batch.num_rows:
            continue
        predictions: dict[str, tuple[pa.Array, ...]] = {}
        errors: dict[str, str] = {}
        for version, estimator in estimators.items():
            try:
                predictions[version] = _columns(_predict(estimator, plans[version], batch, spec), spec)
            except Exception as error:
                if version not in may_fail:
                    msg = (
                        f"{spec.name}: version {version} refused a batch of {batch.num_rows} rows "
                        f"({type(error).__name__}: {error}). Roll back to a version that scores this data."
                    )
                    raise TrainingError(msg) from error
                errors[version] = f"{type(error).__name__}: {error}"
                predictions[version] = tuple(pa.nulls(batch.num_rows, f.type) for f in prediction_field(spec))
        yield batch, predictions, errors


def score_parquet(
    estimators: Mapping[str, Any],
    source: Path,
    target: Path,
    spec: ModelSpec,
    *,
    processes: int = 1,
    batch_rows: int = BATCH_ROWS,
) -> int:
    """Score one Parquet file into a folder of Parquet parts, in the rows' order.

    The parts hold entity, event time and `prediction_field` for one estimator; with several, the fields are named
    `<field>_<version>`. One process scores a batch on each of its processors; of several processes each works on one
    processor and writes one part, and the source needs as many row groups.

    Args:
        estimators: fitted, by model version.
        source: needs the spec's columns; others are not read.
        target: folder; appears whole or not at all.
        spec: names the columns.
        processes: at most so many, forked from this one so that they need not import anything again; fewer where a
            process would have fewer than `PROCESS_ROWS` rows.
        batch_rows: memory is proportional to it.

    Returns:
        Rows scored.

    Raises:
        SourceUnreadable: the file is absent, truncated, or lacks a column.
        StoreError: the target exists, or cannot be written.
        TrainingError: an estimator refused the rows, or a process died.
    """
    import pyarrow.parquet as pq

    if target.exists():
        msg = f"{target} exists. Name a new folder, or remove it."
        raise StoreError(msg)
    try:
        metadata = pq.read_metadata(source)
    except (OSError, pa.ArrowException) as error:
        msg = f"{source}: cannot be read as Parquet ({error}). Write the file again."
        raise SourceUnreadable(msg) from error
    names = metadata.schema.to_arrow_schema().names
    if missing := sorted(set(spec.columns) - set(names)):
        msg = f"{source}: lacks columns {missing}; it has {names}. Rename them, or change the spec."
        raise SourceUnreadable(msg)
    groups = metadata.num_row_groups
    worth = max(1, min(processes, groups, metadata.num_rows // PROCESS_ROWS))
    shares = [list(share) for share in np.array_split(np.arange(groups), worth)]
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        threads = (os.cpu_count() or 1) if len(shares) == 1 else 1
        work = partial(_score_groups, dict(estimators), source, unfinished, spec, batch_rows, threads)
        rows = [work(0, shares[0])] if len(shares) == 1 else _in_processes(work, shares)
        unfinished.rename(target)
    except OSError as error:
        msg = f"{target}: cannot be written ({error}). Free space, or name a folder you may write to."
        raise StoreError(msg) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return sum(rows)


def _in_processes(work: Callable[[int, list[int]], int], shares: list[list[int]]) -> list[int]:
    # fork, not spawn: importing scikit-learn and pandas again takes longer than scoring a million rows
    context = multiprocessing.get_context("fork")
    try:
        with ProcessPoolExecutor(len(shares), mp_context=context, initializer=_one_thread) as pool:
            with warnings.catch_warnings():
                # Python 3.12 warns of forks beside threads. Ours are Arrow's, which survive a fork, and OpenMP's,
                # which the child never starts
                warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
                futures = [pool.submit(work, number, share) for number, share in enumerate(shares)]
            return [future.result() for future in futures]
    except BrokenProcessPool as error:
        msg = f"one of {len(shares)} scoring processes died ({error}). Lower batch_rows or processes; memory ran out."
        raise TrainingError(msg) from error


def _one_thread() -> None:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # has no stubs

    pa.set_cpu_count(1)
    threadpool_limits(limits=1)


def _ahead(
    score: Callable[[pa.RecordBatch], Scored], batches: Iterable[pa.RecordBatch], threads: int
) -> Iterator[Scored]:
    """`map` in order on threads of which each is its own OpenMP team of one; a batch more than threads is in memory.

    Boosted trees meet at a barrier after every tree: a team of several waits there whenever the machine is busy.
    """
    from threadpoolctl import threadpool_limits

    # OpenMP keeps its limit by thread; BLAS would take it for the whole process, and is left alone
    limit = partial(threadpool_limits, limits=1, user_api="openmp")
    waiting: deque[Future[Scored]] = deque()
    with ThreadPoolExecutor(threads, initializer=limit) as pool:
        for batch in filter(len, batches):
            waiting.append(pool.submit(score, batch))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _score_groups(
    estimators: dict[str, Any],
    source: Path,
    folder: Path,
    spec: ModelSpec,
    batch_rows: int,
    threads: int,
    number: int,
    groups: list[int],
) -> int:
    import pyarrow.parquet as pq

    keys = list(dict.fromkeys([*spec.entity, spec.event_time]))
    fields = {
        version: [
            f.with_name(f.name if len(estimators) == 1 else f"{f.name}_{version}") for f in prediction_field(spec)
        ]
        for version in estimators
    }
    # without pre_buffer the file is not held in memory beside its batches: half the memory, and faster
    with pq.ParquetFile(source, read_dictionary=list(spec.features.categorical), pre_buffer=False) as file:
        schema = pa.schema([*(file.schema_arrow.field(c) for c in keys), *(f for v in fields.values() for f in v)])
        stream = file.iter_batches(batch_size=batch_rows, row_groups=groups, columns=list(spec.columns))
        rows = 0

        def score(batch: pa.RecordBatch) -> Scored:
            return next(predict_batches(estimators, [batch], spec))

        with pq.ParquetWriter(folder / f"part-{number:05d}.parquet", schema) as writer:
            for batch, predictions, _ in _ahead(score, stream, threads):
                arrays = [batch.column(c) for c in keys] + [a for v in fields for a in predictions[v]]
                writer.write_batch(pa.RecordBatch.from_arrays(arrays, schema=schema))
                rows += batch.num_rows
        return rows


def _columns(values: npt.NDArray[np.float64], spec: ModelSpec) -> tuple[pa.Array, ...]:
    if spec.task != "multiclass":
        return (pa.array(values, mask=~np.isfinite(values)),)
    missing = np.asarray(~np.isfinite(values).all(axis=1))
    best = np.array(spec.label.classes, dtype=object)[values.argmax(axis=1)]
    flat = pa.array(values.ravel())
    ends = pa.array(np.arange(0, values.size + 1, values.shape[1], dtype=np.int32))
    probabilities = pa.ListArray.from_arrays(ends, flat, mask=pa.array(missing))
    return (pa.array(best, pa.string(), mask=missing), probabilities)


def _predict(estimator: Any, plan: _Plan | None, batch: pa.RecordBatch, spec: ModelSpec) -> npt.NDArray[np.float64]:
    if plan is None:
        return training.predict(estimator, batch.select(list(spec.features.names)).to_pandas(), spec)
    return training.predict_matrix(plan.final, plan.matrix(batch), spec)


# --- the same matrix, sooner ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Block:
    """One fitted transformer of a ColumnTransformer and the columns it reads."""

    kind: str  # ordinal | one_hot | as_is | numeric
    fitted: Any
    columns: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """How to build what a pipeline's ColumnTransformer would, and the estimator that takes it."""

    blocks: tuple[_Block, ...]
    sparse: bool
    final: Any

    def matrix(self, batch: pa.RecordBatch) -> Any:
        """Dense or CSR, equal to the ColumnTransformer's output."""
        return self._csr(batch) if self.sparse else self._dense(batch)

    def _dense(self, batch: pa.RecordBatch) -> npt.NDArray[np.floating[Any]]:
        parts: list[tuple[npt.NDArray[Any], npt.NDArray[np.int64] | None]] = []
        for block in self.blocks:
            if block.kind in {"as_is", "numeric"}:
                parts.append((_numbers(block, batch), None))
                continue
            codes, encoded = _encode_distinct(block, batch)
            dense = _dense_array(encoded)
            parts += [(dense[rows, span], code) for code, rows, span in codes]
        # row by row in memory, as estimators read it
        matrix = np.empty(
            (batch.num_rows, sum(p.shape[1] for p, _ in parts)), dtype=np.result_type(*(p.dtype for p, _ in parts))
        )
        left = 0
        for values, code in parts:
            right = left + values.shape[1]
            matrix[:, left:right] = values if code is None else values[code]
            left = right
        return matrix

    def _csr(self, batch: pa.RecordBatch) -> Any:
        from scipy import sparse

        size = batch.num_rows
        values: list[npt.NDArray[Any]] = []
        places: list[npt.NDArray[np.int32]] = []
        width = 0
        for block in self.blocks:
            if block.kind in {"as_is", "numeric"}:
                numbers = _numbers(block, batch)
                values += list(numbers.T)
                places += [np.full(size, width + j, dtype=np.int32) for j in range(numbers.shape[1])]
                width += numbers.shape[1]
                continue
            codes, encoded = _encode_distinct(block, batch)
            for code, rows, span in codes:
                # one entry a distinct value, or none where the encoder does not know it
                found = encoded[rows, span].tocsr()
                known = np.diff(found.indptr) > 0
                place, value = np.zeros(len(known), dtype=np.int32), np.zeros(len(known), dtype=found.dtype)
                place[known], value[known] = found.indices, found.data
                values.append(value[code])
                places.append(place[code] + np.int32(width))
                width += span.stop - span.start
        shape = (size, width)
        entries = len(values)
        indptr = np.arange(0, size * entries + 1, entries, dtype=np.int32)
        csr = sparse.csr_matrix(
            (np.stack(values, axis=1).ravel(), np.stack(places, axis=1).ravel(), indptr), shape=shape
        )
        csr.eliminate_zeros()
        return csr


def _numbers(block: _Block, batch: pa.RecordBatch) -> npt.NDArray[Any]:
    """The block's output on its numeric columns, (rows, outputs)."""
    import pandas as pd

    numbers = np.empty((batch.num_rows, len(block.columns)), order="F")
    for place, name in enumerate(block.columns):
        numbers[:, place] = batch.column(name).to_numpy(zero_copy_only=False)
    if block.kind == "as_is":
        return numbers
    return _dense_array(block.fitted.transform(pd.DataFrame(numbers, columns=list(block.columns), copy=False)))


def _dense_array(output: Any) -> npt.NDArray[Any]:
    return np.asarray(output.toarray() if hasattr(output, "toarray") else output)


def _encode_distinct(
    block: _Block, batch: pa.RecordBatch
) -> tuple[list[tuple[npt.NDArray[np.int64], slice, slice]], Any]:
    """Send every distinct value of the block's columns through its fitted encoder.

    Returns:
        Per column: each row's place among the column's values (the last stands for null), the rows of the encoded
        matrix that hold those values, and the columns of it that are this column's. Then the encoded matrix.
    """
    import pandas as pd

    arrays = [batch.column(name) for name in block.columns]
    arrays = [a if pa.types.is_dictionary(a.type) else a.dictionary_encode() for a in arrays]
    distinct = [
        np.array([np.nan if v is None else v for v in [*a.dictionary.to_pylist(), None]], dtype=object) for a in arrays
    ]
    ends = np.cumsum([len(values) for values in distinct])
    frame: dict[str, npt.NDArray[Any]] = {}
    parts: list[tuple[npt.NDArray[np.int64], slice, slice]] = []
    output = 0
    for name, array, values, end, categories in zip(
        block.columns, arrays, distinct, ends, block.fitted.categories_, strict=True
    ):
        rows = slice(int(end) - len(values), int(end))
        # beside another column's values any known category will do: encoders treat each column by itself
        frame[name] = np.full(ends[-1], categories[0], dtype=object)
        frame[name][rows] = values
        width = len(categories) if block.kind == "one_hot" else 1
        code = pc.fill_null(array.indices, len(values) - 1).to_numpy(zero_copy_only=False)
        parts.append((code, rows, slice(output, output + width)))
        output += width
    return parts, block.fitted.transform(pd.DataFrame(frame, columns=list(block.columns)))


def _plan(estimator: Any, spec: ModelSpec) -> _Plan | None:
    """The quick way for this estimator; None where equality is not certain."""
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import Pipeline

    if type(estimator) is not Pipeline or len(estimator.steps) != 2:  # noqa: PLR2004 - encoder and estimator
        return None
    encode, final = estimator.steps[0][1], estimator.steps[1][1]
    if (
        type(encode) is not ColumnTransformer
        or hasattr(encode, "_sklearn_output_config")  # set_output: the estimator wants a frame
        or encode.transformer_weights is not None
        or list(getattr(encode, "feature_names_in_", [])) != list(spec.features.names)
    ):
        return None
    blocks = []
    for _, fitted, chosen in encode.transformers_:
        names = _names(chosen, spec.features.names)
        block = None if names is None else _block(fitted, names, spec)
        if block is None:
            return None
        if block.columns and block.kind != "drop":
            blocks.append(block)
    return _Plan(blocks=tuple(blocks), sparse=encode.sparse_output_, final=final)


def _names(chosen: Any, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """A ColumnTransformer's choice of columns as names; one bare name passes a series and is left to scikit-learn."""
    if isinstance(chosen, str | int):
        return None
    if isinstance(chosen, list) and all(isinstance(c, str) for c in chosen):
        return tuple(chosen)
    return tuple(np.array(names, dtype=object)[chosen])


def _block(fitted: Any, names: tuple[str, ...], spec: ModelSpec) -> _Block | None:
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, OrdinalEncoder

    if isinstance(fitted, str) and fitted == "drop":
        return _Block("drop", None, names)
    if set(names) <= set(spec.features.numeric):
        if type(fitted) is FunctionTransformer and fitted.func is None:
            return _Block("as_is", None, names)
        return _Block("numeric", fitted, names)
    # an encoder that raises must raise for the rows' values only, and a dictionary may hold more; grouped or dropped
    # categories change the layout of the output
    if type(fitted) is OrdinalEncoder and fitted.handle_unknown == "use_encoded_value":
        kind = "ordinal"
    elif type(fitted) is OneHotEncoder and fitted.handle_unknown == "ignore" and fitted.drop is None:
        kind = "one_hot"
    else:
        return None
    grouped = fitted.min_frequency is not None or fitted.max_categories is not None
    if grouped or not set(names) <= set(spec.features.categorical):
        return None
    return _Block(kind, fitted, names)
