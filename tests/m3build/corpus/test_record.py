"""The rules that every record format shares."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus import SourceOptions
from m3build.corpus.record import MAX_METADATA_DEPTH, document_of_record, json_value
from m3build.corpus.source import SourceFile
from m3build.records import Document, Reject

FILE = SourceFile("/somewhere/a.jsonl", "a.jsonl", 1, "jsonl")


def of(fields: dict[str, Any], **options: Any) -> Document | Reject:
    return document_of_record(fields, FILE, 3, "line 4", SourceOptions(**options))


def test_text_title_and_kept_fields_are_taken_over() -> None:
    document = of(
        {"body": "words", "name": "Title", "url": "u", "other": 1},
        text_field="body",
        title_field="name",
        keep_fields=("url", "missing"),
    )
    assert isinstance(document, Document)
    assert (document.text, document.title, document.metadata) == ("words", "Title", {"url": "u"})
    assert (document.source, document.position) == ("a.jsonl", 3)


@pytest.mark.parametrize("value", [None, 1, 1.5, True, [], {}, b"x"])
def test_a_text_field_that_is_no_string_is_a_reject(value: Any) -> None:
    reject = of({"text": value})
    assert isinstance(reject, Reject)
    assert reject.where == "line 4"
    assert "not a string" in reject.reason


def test_a_record_without_the_text_field_is_a_reject_that_names_the_option() -> None:
    reject = of({"body": "x"})
    assert isinstance(reject, Reject)
    assert "--text-field" in reject.reason


def test_an_empty_text_is_an_empty_document() -> None:
    document = of({"text": ""})
    assert isinstance(document, Document)
    assert document.text == ""


@pytest.mark.parametrize(("value", "title"), [(None, ""), ("", ""), (7, "7"), (1.5, "1.5")])
def test_a_missing_title_is_empty_and_a_number_is_written_out(value: Any, title: str) -> None:
    document = of({"text": "x", "t": value}, title_field="t")
    assert isinstance(document, Document)
    assert document.title == title


@pytest.mark.parametrize(
    "fields", [{"text": "\ud800"}, {"text": "x", "t": "\ud800"}, {"text": "x", "k": ["\udfff"]}]
)
def test_a_lone_surrogate_is_a_reject_or_replaced(fields: dict[str, Any]) -> None:
    assert isinstance(of(fields, title_field="t", keep_fields=("k",)), Reject)
    document = of(fields, title_field="t", keep_fields=("k",), encoding_errors="replace")
    assert isinstance(document, Document)
    assert "�" in json.dumps([document.text, document.title, dict(document.metadata)], ensure_ascii=False)


def test_kept_values_become_json() -> None:
    day = datetime.date(2024, 2, 29)
    assert json_value([day, Decimal("1.50"), b"abc", b"\xff", float("nan"), (1, 2), {"k": {1: None}}]) == [
        "2024-02-29",
        "1.50",
        "abc",
        "ff",
        None,
        [1, 2],
        {"k": {"1": None}},
    ]


def test_kept_values_nested_too_deeply_are_a_reject() -> None:
    deep: Any = 1
    for _ in range(MAX_METADATA_DEPTH + 1):
        deep = [deep]
    assert isinstance(of({"text": "x", "k": deep}, keep_fields=("k",)), Reject)
    assert isinstance(of({"text": "x", "k": deep[0]}, keep_fields=("k",)), Document)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(JSON)
def test_whatever_json_holds_is_kept_as_valid_json(value: Any) -> None:
    found = of({"text": "x", "k": value}, keep_fields=("k",), encoding_errors="replace")
    if isinstance(found, Document):
        json.dumps(dict(found.metadata), allow_nan=False, ensure_ascii=False).encode()
