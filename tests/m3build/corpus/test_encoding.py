"""Bytes to text: marks, encodings, newlines; what cannot be decoded costs the record and no more."""

from __future__ import annotations

import codecs
import json
from typing import Any

import pytest

from m3build.corpus.encoding import has_surrogates, is_newline_safe, looks_binary, replace_surrogates

TEXT = "Größe, 尺寸, 🙂\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_a_byte_order_mark_says_the_encoding_and_is_no_text(
    make: Any, read: Any, mark: bytes, encoding: str, name: str
) -> None:
    record = json.dumps({"text": TEXT}, ensure_ascii=False)
    content = {
        "a.txt": TEXT,
        "a.jsonl": record + "\n" + record + "\n",
        "a.csv": f'n,text\n1,"{TEXT}"\n',
        "a.json": f"[{record}]",
    }
    found = read(make(name, mark + content[name].encode(encoding)), encoding="latin-1")
    assert found.texts == [TEXT] * (2 if name == "a.jsonl" else 1)
    assert not found.rejects


@pytest.mark.parametrize(
    "encoding", ["latin-1", "gb18030", "shift_jis", "utf-16", "utf-16-be", "koi8-r", "iso2022_jp"]
)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json"])
def test_the_encoding_asked_for_is_used(make: Any, read: Any, encoding: str, name: str) -> None:
    text = {"latin-1": "é", "koi8-r": "ж"}.get(encoding, "漢字 表能")
    record = json.dumps({"text": text}, ensure_ascii=False)
    content = {"a.txt": text, "a.jsonl": record + "\n", "a.csv": f"text\n{text}\n", "a.json": f"[{record}]"}[
        name
    ]
    # Without a mark UTF-16 is little-endian on every machine.
    data = content.encode("utf-16-le" if encoding == "utf-16" else encoding)
    assert read(make(name, data), encoding=encoding).texts == [text]


def test_strict_rejects_a_one_document_file_with_the_offset(make: Any, read: Any) -> None:
    found = read(make("a.txt", b"abc\xffdef"))
    assert found.rejects[0].where == "offset 3"
    assert "--encoding" in found.reason


def test_replace_keeps_a_one_document_file(make: Any, read: Any) -> None:
    assert read(make("a.txt", b"abc\xffdef"), encoding_errors="replace").texts == ["abc�def"]


BAD_RECORDS = {
    "a.jsonl": b'{"text":"one"}\n{"text":"t\xffwo"}\n{"text":"three"}\n',
    "a.json": b'[{"text":"one"},{"text":"t\xffwo"},{"text":"three"}]',
    "a.csv": b"n,text\n1,one\n2,t\xffwo\n3,three\n",
    "a.tsv": b"n\ttext\n1\tone\n2\tt\xffwo\n3\tthree\n",
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_strict_rejects_the_record_and_not_the_rest(make: Any, read: Any, name: str) -> None:
    found = read(make(name, BAD_RECORDS[name]))
    assert found.texts == ["one", "three"]
    assert "utf-8" in found.reason


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_replace_keeps_the_record(make: Any, read: Any, name: str) -> None:
    found = read(make(name, BAD_RECORDS[name]), encoding_errors="replace")
    assert found.texts == ["one", "t�wo", "three"]
    assert not found.rejects


def test_bad_utf_16_costs_its_line(make: Any, read: Any) -> None:
    good = '{"text":"good"}\n'.encode("utf-16-le")
    bad = '{"text":"'.encode("utf-16-le") + b"\x00\xd8" + '"}\n'.encode("utf-16-le")
    found = read(make("a.jsonl", codecs.BOM_UTF16_LE + good + bad + good))
    assert found.texts == ["good", "good"]
    assert len(found.rejects) == 1


def test_line_ends_of_text_files_become_line_feeds(make: Any, read: Any) -> None:
    assert read(make("a.txt", b"one\r\ntwo\rthree\nfour")).texts == ["one\ntwo\nthree\nfour"]


def test_line_ends_inside_records_are_data_and_stay(make: Any, read: Any) -> None:
    assert read(make("a.jsonl", b'{"text":"one\\r\\ntwo"}\r\n')).texts == ["one\r\ntwo"]


def test_a_stray_zero_byte_deep_in_a_text_is_kept(make: Any, read: Any) -> None:
    text = "word " * 20_000 + "\0 end"
    assert read(make("a.txt", text)).texts == [text]


@pytest.mark.parametrize(
    ("encoding", "safe"),
    [
        ("utf-8", True),
        ("latin-1", True),
        ("gb18030", True),
        ("shift_jis", True),
        ("utf-16", False),
        ("cp037", False),
    ],
)
def test_lines_are_found_unread_only_where_ascii_is_itself(encoding: str, safe: bool) -> None:
    assert is_newline_safe(encoding) is safe


def test_lone_surrogates_are_found_and_replaced() -> None:
    assert has_surrogates("a\ud800b")
    assert not has_surrogates("a😀é")
    assert replace_surrogates("a\ud800b\udfff😀") == "a�b�😀"


def test_compressed_data_and_pictures_look_binary_and_text_of_any_script_does_not() -> None:
    assert looks_binary(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    assert looks_binary(bytes(range(1, 256)) * 4)
    assert not looks_binary("漢字かな交じり文".encode())
    assert not looks_binary("漢字".encode("utf-16"))
    assert not looks_binary(b"")
