from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build_formats.canonical_json import canonical_json, check_json_value, parse_json
from m3build_formats.layout import MAX_JSON_DEPTH, MAX_JSON_INTEGER

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-MAX_JSON_INTEGER, MAX_JSON_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_a_value_comes_back_from_its_canonical_form(value: object) -> None:
    assert parse_json(canonical_json(value).encode()) == value


@given(values)
def test_the_form_is_the_same_however_the_input_was_written(value: object) -> None:
    spread = json.dumps(value, indent=3, ensure_ascii=True)
    assert canonical_json(parse_json(spread.encode())) == canonical_json(value)


def test_the_form_is_sorted_dense_and_unescaped() -> None:
    value = {"b": [1, 2.0, 1e22, 1e-7, -0.0], "a": 'é\n\u2028\x7f\x01"\\/', "B": None}
    expected = '{"B":null,"a":"é\\n\u2028\x7f\\u0001\\"\\\\/","b":[1,2.0,1e+22,1e-07,-0.0]}'
    assert canonical_json(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        MAX_JSON_INTEGER + 1,
        -MAX_JSON_INTEGER - 1,
        [1, 2**53],
        "\ud800",
        ["a", "\udfff"],
        {"\ud800": 1},
        {1: 2},
        {"a": NotImplemented},
        b"bytes",
        np.float64(1.0),
        np.int64(1),
        {1, 2},
    ],
    ids=repr,
)
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(ValueError):
        canonical_json(value)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"NaN",
        b"[Infinity]",
        b"-Infinity",
        b"1e999",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b'"\\ud800"',
        b'"\xff"',
        b"9007199254740993",
        b"1" * 5000,
        b"\xef\xbb\xbf{}",
        b"[1] [2]",
        b"'a'",
    ],
    ids=lambda text: text[:20].decode("latin-1"),
)
def test_text_that_is_not_strict_json_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("depth", [MAX_JSON_DEPTH + 1, 100_000])
def test_deep_nesting_is_refused_without_a_crash(opening: bytes, depth: int) -> None:
    closing = b"]" if opening == b"[" else b"}"
    with pytest.raises(ValueError, match=r"nested|recursion"):
        parse_json(opening * depth + b"1" + closing * depth)


def test_nesting_up_to_the_limit_is_read() -> None:
    text = b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH
    check_json_value(parse_json(text))
