"""A record as JSON and back, and the one text that is hashed and compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter

Json = Any
T = TypeVar("T")
_ADAPTERS: dict[type, TypeAdapter[Any]] = {}


def _adapter(cls: type) -> TypeAdapter[Any]:
    # building one takes milliseconds, using it microseconds
    if cls not in _ADAPTERS:
        _ADAPTERS[cls] = TypeAdapter(cls)
    return _ADAPTERS[cls]


def to_json(record: object) -> dict[str, Json]:
    """A record as plain JSON values (times as ISO strings, enums as their values)."""
    return cast("dict[str, Json]", _adapter(type(record)).dump_python(record, mode="json"))


def from_json(cls: type[T], data: Mapping[str, Json]) -> T:
    """The record that `to_json` wrote; unknown keys and wrong types are refused."""
    return cast("T", _adapter(cls).validate_json(canonical(data)))


def canonical(data: Json) -> str:
    """One text for one value: sorted keys, no spaces, no NaN. What is hashed and compared byte for byte."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def digest(data: Json) -> str:
    """SHA-256 of the canonical text, hex."""
    return hashlib.sha256(canonical(data).encode()).hexdigest()


class Strict:
    """A record that refuses keys it does not know."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
