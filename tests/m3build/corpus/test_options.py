"""SourceOptions refuses what cannot be meant, before any file is opened."""

from __future__ import annotations

from typing import Any

import pytest

from m3build.corpus import SourceOptions
from m3build_formats.errors import UsageError


@pytest.mark.parametrize(
    "bad",
    [
        {"encoding": "no-such"},
        {"encoding": "hex"},
        {"encoding": "undefined"},
        {"encoding_errors": "ignore"},
        {"max_document_bytes": 0},
        {"range_bytes": 0},
        {"text_field": ""},
        {"id_field": ""},
        {"title_field": ""},
        {"keep_fields": ("",)},
        {"keep_fields": ("a", "a")},
    ],
)
def test_an_option_that_cannot_be_meant_is_a_usage_error(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        SourceOptions(**bad)


def test_each_needed_field_is_listed_once() -> None:
    options = SourceOptions(text_field="t", id_field="i", title_field="t", keep_fields=("i", "k"))
    assert options.fields == ("t", "i", "k")
