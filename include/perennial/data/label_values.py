"""Labels as they may be: the values that the spec declares. A label that is null is not known yet, and no error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from perennial.data.columns import Delivery, decoded, nearest, refuse_huge, to_texts
from perennial.errors import SchemaMismatch

#: values that an error shows; the rest are counted
_SHOWN = 5
_NUMBERS = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
_CLASSES = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_string)


def known_labels(delivery: Delivery) -> Delivery:
    """The rows whose label is known: null and NaN mean "not yet", and may come later."""
    values = decoded(delivery.table[delivery.spec.label.column])
    known = pc.invert(pc.is_null(values, nan_is_null=pa.types.is_floating(values.type)))
    return replace(delivery, table=delivery.table.filter(known))


def to_label_values(delivery: Delivery) -> pa.ChunkedArray:
    """The label column, without nulls: binary as 0.0 and 1.0, multiclass as the class names, regression as float64.

    Raises:
        SchemaMismatch: a value that the spec's label does not declare, with its count; or no number, text or boolean.
    """
    spec, column = delivery.spec, delivery.spec.label.column
    values = decoded(delivery.table[column])
    if not len(values):
        return values.cast(pa.string() if spec.task == "multiclass" else pa.float64())
    if spec.task == "regression":
        return _numbers(delivery, values)
    if not any(fits(values.type) for fits in (*_CLASSES, pa.types.is_decimal)):
        raise delivery.wrong_type(column, "numbers, text or booleans", "One value a row, and no date, list or struct.")
    return _classes(delivery) if spec.task == "multiclass" else _binary(delivery, values)


def _numbers(delivery: Delivery, values: pa.ChunkedArray) -> pa.ChunkedArray:
    column = delivery.spec.label.column
    if not any(fits(values.type) for fits in _NUMBERS):
        raise delivery.wrong_type(column, "a number", "Write the label as a number, one a row.")
    values = values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values
    values = values.cast(pa.float64(), safe=False)  # unsafe: integers beyond 2**53 are rounded
    _refuse(delivery, values.filter(pc.is_inf(values)), "finite numbers", "Mend the division upstream.")
    refuse_huge(delivery, column, values)
    return values


def _binary(delivery: Delivery, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """1.0 for the positive value and 0.0 for the negative one; nothing else is taken for either."""
    spec, column = delivery.spec, delivery.spec.label.column
    positive, negative = spec.label.positive, spec.label.negative
    as_text = isinstance(positive, str)
    if pa.types.is_string(values.type) != as_text:
        if positive is None:
            raise delivery.wrong_type(
                column, "true and false, or 0 and 1", "Say which value counts as 1: label.positive."
            )
        cure = "Make label.positive and the column one type."
        raise delivery.wrong_type(column, f"the type of label.positive {positive!r}", cure)
    if not as_text:
        values = (values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values).cast(pa.float64(), safe=False)
    one = 1 if positive is None else positive
    if negative is None and one in {0, 1}:
        negative = 1 - int(one)
    found = pc.unique(values).to_pylist()
    others = [value for value in found if value != one]
    if negative is None and len(others) == 1:
        negative = others[0]
    strays = pa.array([value for value in others if value != negative], values.type)
    declared = f"{one!r} for 1" + (
        f" and {negative!r} for 0" if negative is not None else ", and one other value for 0"
    )
    cure = "Mend them upstream, or declare what counts as 1 and as 0: label.positive, label.negative."
    _refuse(delivery, values.filter(pc.is_in(values, strays)), declared, cure)
    return pc.equal(values, pa.scalar(one, values.type)).cast(pa.int8()).cast(pa.float64())


def _classes(delivery: Delivery) -> pa.ChunkedArray:
    spec = delivery.spec
    texts = to_texts(delivery, spec.label.column, nullable=False)
    strays = texts.filter(pc.invert(pc.is_in(texts, pa.array(spec.label.classes))))
    near = nearest(strays[0].as_py(), spec.label.classes) if len(strays) else None
    hint = f"Did you mean {near!r}? " if near else ""
    cure = f"{hint}Add the class to the spec and retrain, or mend it upstream."
    _refuse(delivery, strays, f"label.classes {list(spec.label.classes)}", cure)
    return texts


def _refuse(delivery: Delivery, strays: pa.ChunkedArray, declared: str, cure: str) -> None:
    """Raise where there are `strays`: name the values, the commonest first, and how many rows hold each."""
    if not len(strays):
        return
    counts = sorted(_counts(strays), key=lambda each: (-each[1], str(each[0])))
    shown = ", ".join(f"{_show(value)} ({rows} row{'s' if rows > 1 else ''})" for value, rows in counts[:_SHOWN])
    more = f" and {len(counts) - _SHOWN} more values" if len(counts) > _SHOWN else ""
    column = delivery.spec.label.column
    raise SchemaMismatch(
        f"{delivery.what}: {len(strays)} of {delivery.table.num_rows} labels in column {column!r} "
        f"{delivery.at(column)} are not declared: {shown}{more}; the spec declares {declared}. No label was taken. "
        f"{cure}"
    )


def _show(value: object) -> str:
    return repr(value).removesuffix(".0") if isinstance(value, float) else repr(value)


def _counts(values: pa.ChunkedArray) -> Iterable[tuple[object, int]]:
    return ((each["values"], each["counts"]) for each in pc.value_counts(values).to_pylist())
