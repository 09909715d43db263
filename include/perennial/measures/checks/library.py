"""Great Expectations itself: kept quiet, asked for its expectations, and made to evaluate them on a frame."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from perennial.errors import SuiteError
from perennial.records import Json

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow as pa


@contextmanager
def quiet() -> Iterator[None]:
    """No telemetry, and none of the hundreds of log lines that the library writes on import and evaluation."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    # its modules set levels of their own, so only the way out of the whole tree can be closed
    logger, sink = logging.getLogger("great_expectations"), logging.NullHandler()
    before = logger.propagate
    logger.propagate = False
    logger.addHandler(sink)
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(sink)


def expectation_types() -> list[str]:
    """Every type that a suite may name, sorted."""
    with quiet():
        import great_expectations.expectations  # noqa: F401 - fills the registry
        from great_expectations.expectations.registry import list_registered_expectation_implementations

        return sorted(list_registered_expectation_implementations())


def expectation_class(kind: str) -> Any:
    """The library's model of one type; its fields are the arguments."""
    from great_expectations.expectations.registry import get_expectation_impl

    return get_expectation_impl(kind)


def evaluate(rows: pa.Table, expectations: Sequence[Mapping[str, Json]], file: Path) -> Any:
    """The library's result of the suite, one result an expectation in the file's order, in plain Python values.

    Args:
        rows: the batch.
        expectations: as in the file, their bounds filled in.
        file: the suite's, for errors.

    Raises:
        SuiteError: not all were loaded and evaluated.
    """
    with quiet():
        import great_expectations as gx

        from perennial.measures.checks.counting import RowsSource, types_of

        suite = gx.ExpectationSuite(
            name=file.stem, expectations=[_build(expectation, n) for n, expectation in enumerate(expectations)]
        )
        source = _new_context().data_sources.add_rows(RowsSource(name="batch"))
        definition = source.add_dataframe_asset("rows").add_batch_definition_whole_dataframe("all")
        # the frame shows the library columns and types; its engine has the rows
        source.get_execution_engine().rows = rows
        batch = definition.get_batch(batch_parameters={"dataframe": types_of(rows)})
        evaluated = batch.validate(suite, result_format="BASIC")
    evaluated.results.sort(key=lambda result: result.expectation_config.meta["position"])
    counts = (len(expectations), len(suite.expectations), len(evaluated.results))
    if len({*counts}) > 1:
        raise SuiteError(
            f"{file}: {counts[0]} expectations in the file, {counts[1]} loaded, {counts[2]} evaluated. "
            "The library dropped some without a word: evaluate the suite in halves to find which, and rewrite those."
        )
    for result in evaluated.results:
        result.success = bool(result.success)
        result.result = _plain(result.result)
    return evaluated


def _new_context() -> Any:
    """An ephemeral context, for a file context writes into its folder just by opening.

    Without sites, for the default ones leave a temporary folder behind every time.
    """
    import great_expectations as gx
    from great_expectations.data_context.types.base import (
        DataContextConfig,
        InMemoryStoreBackendDefaults,
        ProgressBarsConfig,
    )

    return gx.get_context(
        mode="ephemeral",
        project_config=DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(init_temp_docs_sites=False),
            progress_bars=ProgressBarsConfig(globally=False),
        ),
    )


def _build(expectation: Mapping[str, Json], position: int) -> Any:
    return expectation_class(expectation["type"])(
        **expectation["kwargs"],
        severity=expectation.get("severity", "critical"),
        description=expectation.get("description"),
        notes=expectation.get("notes"),
        # results come in an order of the library's own
        meta={"position": position},
    )


def raised(info: Json) -> str | None:
    """The message of an exception that the library caught, from a result's `exception_info`; it has two shapes."""
    if not isinstance(info, dict):
        return None
    if info.get("raised_exception"):
        return str(info.get("exception_message"))
    nested = (raised(part) for part in info.values() if isinstance(part, dict))
    return next((message for message in nested if message is not None), None)


def _plain(value: Any) -> Any:
    """Numpy scalars as Python's own; the library's pages cannot show them otherwise."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value.item() if type(value).__module__ == "numpy" and hasattr(value, "item") else value
