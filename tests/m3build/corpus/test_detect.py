"""Which format a file has: by name, else by content."""

from __future__ import annotations

import gzip
import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3build.corpus.detect import detect
from m3build.corpus.registry import formats, formats_by_extension
from m3build.corpus.source import BadInput

PARQUET = io.BytesIO()
pq.write_table(pa.table({"text": ["a"]}), PARQUET)


@pytest.mark.parametrize(
    ("name", "format_", "compression"),
    [
        ("a.txt", "text", None),
        ("A.TXT", "text", None),
        ("a.md", "markdown", None),
        ("a.rst", "rst", None),
        ("a.rst.txt", "rst", None),
        ("a.md.txt.gz", "markdown", "gz"),
        ("a.HTM", "html", None),
        ("a.jsonl", "jsonl", None),
        ("a.ndjson.zst", "jsonl", "zst"),
        ("a.csv.bz2", "csv", "bz2"),
        ("a.tsv.xz", "tsv", "xz"),
        ("a.parquet", "parquet", None),
        ("a.feather", "arrow", None),
        ("a.b.txt", "text", None),
    ],
)
def test_a_name_that_says_the_format_is_believed_without_a_look(
    make: Any, name: str, format_: str, compression: str | None
) -> None:
    assert detect(str(make(name, b"\0\1\2"))) == (format_, compression)


@pytest.mark.parametrize(
    ("name", "content", "format_"),
    [
        ("README", "Some words.", "text"),
        ("ls.1", ".TH LS 1", "text"),
        ("part-00000", '{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        ("dump", '[\n  {"text": "a"}\n]', "json"),
        ("page", "\n<!DOCTYPE html>\n<html><p>x", "html"),
        ("page.php", "<?xml version='1.0'?><html><p>x", "html"),
        ("table", PARQUET.getvalue(), "parquet"),
        ("a.json", '{"text": "a"}\n{"text": "b"}\n', "jsonl"),
        ("b.json", '{\n "text": "a"\n}\n', "json"),
        ("c.json", '[{"text": "a"}]', "json"),
        ("d.json", "﻿[]", "json"),
        ("empty", "", "text"),
        ("note", "{this is no JSON}", "text"),
        ("list", "[1] a footnote", "text"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_content_decides_where_the_name_does_not(
    make: Any, name: str, content: bytes | str, format_: str, packed: bool
) -> None:
    data = content.encode() if isinstance(content, str) else content
    path = make(f"{name}.gz", gzip.compress(data)) if packed else make(name, data)
    assert detect(str(path)) == (format_, "gz" if packed else None)


def test_compression_is_found_by_content_too(make: Any) -> None:
    assert detect(str(make("part-0001", gzip.compress(b'{"text": "a"}\n')))) == ("jsonl", "gz")


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n\0\0", b"%PDF-1.4 text only", b"{\\rtf1 text}", b"<?xml version='1.0'?><a/>"],
)
def test_content_of_no_known_kind_is_unsupported(make: Any, content: bytes) -> None:
    path = str(make("file", content))
    with pytest.raises(BadInput) as passed:
        detect(path)
    assert passed.value.kind == "unsupported"
    with pytest.raises(BadInput) as named:
        detect(path, named=True)
    assert named.value.kind == "reject"


def test_style_sheets_and_scripts_are_read_only_if_named(make: Any) -> None:
    path = str(make("a.js", "var x = 1"))
    with pytest.raises(BadInput) as passed:
        detect(path)
    assert passed.value.kind == "unsupported"
    assert detect(path, named=True) == ("text", None)


def test_every_reader_module_registers_its_formats() -> None:
    assert list(formats()) == [
        "arrow",
        "csv",
        "tsv",
        "html",
        "jsonl",
        "json",
        "markdown",
        "parquet",
        "rst",
        "text",
    ]
    assert [form.name for form in formats_by_extension()[".json"]] == ["jsonl", "json"]
