"""One byte sequence for one JSON value, and a reader that trusts nothing.

Canonical form: keys sorted by code point, no white space, UTF-8 with only the escapes JSON requires, integers
within ±(2^53 − 1) so that every language reads them exactly, finite floats in Python's shortest round-trip
form. SPEC.md, "Canonical JSON", states the rules for other languages.

The reader refuses what JSON leaves open: duplicate keys, NaN and infinities, numbers out of range, lone
surrogates, nesting deeper than ``MAX_JSON_DEPTH``. It raises ValueError, since only the caller knows which
file the bytes came from.
"""

from __future__ import annotations

import json
import math
from typing import NoReturn

from m3build_formats.layout import MAX_JSON_DEPTH, MAX_JSON_INTEGER


def canonical_json(value: object) -> str:
    """The canonical text of ``value`` (None, bool, int, float, str, lists or tuples, and dicts with string
    keys of these).

    Raises ValueError for anything else, for numbers out of range, lone surrogates and too deep nesting.
    """
    check_json_value(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def parse_json(text: bytes | bytearray | memoryview) -> object:
    """The value that UTF-8 ``text`` holds; raises ValueError where it is not JSON as this module defines
    it."""
    try:
        value: object = json.loads(
            str(text, "utf-8"),
            object_pairs_hook=_object_without_duplicates,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels") from None
    check_json_value(value)
    return value


def check_json_value(value: object, depth: int = 0) -> None:
    """Raises ValueError unless ``value`` has a canonical form."""
    # The types are compared exactly: a subclass (numpy scalar, enum) may print itself in another way.
    kind = type(value)
    if value is None or kind is bool:
        return
    if isinstance(value, str) and kind is str:
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"lone surrogate in the string {value[:40]!r}") from None
    elif isinstance(value, int) and kind is int:
        if abs(value) > MAX_JSON_INTEGER:
            raise ValueError("integer beyond ±(2^53 − 1)")
    elif isinstance(value, float) and kind is float:
        if not math.isfinite(value):
            raise ValueError(f"number that is not finite: {value}")
    elif isinstance(value, (dict, list, tuple)) and kind in (dict, list, tuple):
        if depth >= MAX_JSON_DEPTH:
            raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
        if isinstance(value, dict):
            if set(map(type, value)) - {str}:
                raise ValueError("an object has a key that is not a string")
            _check_items(list(value), depth)
            _check_items(list(value.values()), depth)
        else:
            _check_items(value, depth)
    else:
        raise ValueError(f"{kind.__name__} has no JSON form")


def _check_items(items: list[object] | tuple[object, ...], depth: int) -> None:
    kinds = set(map(type, items))
    # A manifest's batch offsets and digests are lists of thousands of equal things: one C loop each instead
    # of a call per item.
    if kinds == {int}:
        check_json_value(max(items), depth + 1)  # type: ignore[type-var]
        check_json_value(min(items), depth + 1)  # type: ignore[type-var]
    elif kinds == {str}:
        check_json_value("".join(items), depth + 1)  # type: ignore[arg-type]
    else:
        for item in items:
            check_json_value(item, depth + 1)


def _object_without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"key {key[:40]!r} twice in one object")
            seen.add(key)
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
