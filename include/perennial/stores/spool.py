"""Rows on their way into the lake: counted, and kept in a temporary file where they are read twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from perennial.errors import LakeError
from perennial.stores.scratch import scratch_folder, unusable

if TYPE_CHECKING:
    import pyarrow as pa

_KEPT = "rows are kept there on their way into the lake"


class Counted:
    """Batches on their way into Delta: counts the rows, and keeps an error that Rust would turn into text."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._error: BaseException | None = None
        self.rows = 0

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            for batch in self._batches:
                self.rows += batch.num_rows
                yield batch
        except Exception as error:
            self._error = error
            raise

    def reader(self, schema: pa.Schema) -> pa.RecordBatchReader:
        """The batches as Arrow's own stream."""
        import pyarrow as pa

        return pa.RecordBatchReader.from_batches(schema, iter(self))

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Raise what the source raised, not the writer's account of it."""
        try:
            yield
        except Exception:
            if self._error is not None:
                raise self._error from None
            raise


@contextmanager
def spooled(schema: pa.Schema, batches: Counted) -> Iterator[Path]:
    """All batches in one temporary file, so that they can be read twice without being held in memory.

    Raises:
        LakeError: the temporary folder cannot be written.
    """
    import pyarrow as pa

    rows = iter(batches)
    with ExitStack() as opened:
        folder = opened.enter_context(scratch_folder(LakeError, _KEPT))
        with _temporary():
            spool = folder / "rows.arrow"
            sink = opened.enter_context(pa.OSFile(str(spool), "wb"))
            writer = pa.ipc.new_stream(sink, schema)
        for batch in rows:
            with _temporary():
                writer.write_batch(batch)
        with _temporary():
            writer.close()
            sink.close()
        yield spool


@contextmanager
def _temporary() -> Iterator[None]:
    """An error of the temporary folder is none of the lake's."""
    try:
        yield
    except OSError as error:
        raise LakeError(unusable(_KEPT, error)) from error


@contextmanager
def unspooled(spool: Path) -> Iterator[pa.RecordBatchReader]:
    """The batches of the temporary file, from the first one on."""
    import pyarrow as pa

    with pa.OSFile(str(spool), "rb") as source, pa.ipc.open_stream(source) as reader:
        yield reader
