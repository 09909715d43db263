"""Reviewed expectations against one batch. The only folder that imports great_expectations.

A suite is a JSON file that people review and no run ever writes, in Great Expectations' own form:

    {"name": "flight_delay", "expectations": [
        {"type": "expect_column_values_to_not_be_null", "kwargs": {"column": "carrier"}, "severity": "critical"}]}

`severity` is `critical` (the default: a failure keeps the batch out) or `warning` (recorded, nothing more). A bound
that moves with the batch is written as `{"$batch": "end - 1d"}`: one of the moments that `validate` gets as
`parameters` (`start` and `end` of the partition), plus or minus a whole number of m, h, d or w.

The library says yes to nothing: an empty batch, a column of nulls, a misspelt type. So expectations are counted (in the
file = loaded = evaluated), a column of nulls fails what is asked of its values, and an error is never a verdict.
"""

from __future__ import annotations

from perennial.measures.checks.evaluation import validate
from perennial.measures.checks.pages import KEPT_PAGES
from perennial.measures.checks.suite import Suite, check_suite, load_suite

__all__ = ["KEPT_PAGES", "Suite", "check_suite", "load_suite", "validate"]
