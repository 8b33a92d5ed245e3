"""JSON lines: ranges, and every way in which a line can be bad."""

from __future__ import annotations

import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus import SourceFile, SourceOptions, read_range, split
from m3build.corpus.source import SourceRange
from m3build.records import Document, Reject

DEEP = "[" * 100_000 + "]" * 100_000


def test_records_carry_offset_id_title_and_kept_fields(make: Any, read: Any) -> None:
    path = make("a.jsonl", '{"text": "é", "t": "T", "k": [1], "x": 0}\n\n{"text": "b"}\n')
    first, second = read(path, title_field="t", keep_fields=("k",)).documents
    assert (first.position, first.text, first.title, first.metadata) == (0, "é", "T", {"k": [1]})
    assert (second.position, second.title, second.metadata) == (44, "", {})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "broken JSON"),
        ("nonsense", "broken JSON"),
        ('{"text": "a"} {"text": "b"}', "broken JSON"),
        ('["text"]', "not a JSON object"),
        ("null", "not a JSON object"),
        ('{"other": "a"}', "--text-field"),
        ('{"text": null}', "null"),
        ('{"text": 1}', "number"),
        ('{"text": NaN}', "null"),
        ('{"text": "\\ud800"}', "surrogate"),
        (f'{{"text": "a", "k": {DEEP}}}', "nested"),
        (f'{{"text": "a", "k": {"9" * 10_000}}}', "broken JSON"),
        ('{"text": "a\x01b"}', "broken JSON"),
    ],
)
def test_a_bad_line_is_one_reject_with_line_and_offset(make: Any, read: Any, line: str, reason: str) -> None:
    found = read(make("a.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "three"}}\n'), keep_fields=("k",))
    assert found.texts == ["one", "three"]
    assert reason in found.reason
    assert found.rejects[0].where == "line 2, offset 16"


@pytest.mark.parametrize(
    ("line", "text", "kept"),
    [
        ('{"text": "a", "k": 123456789012345678901234567890}', "a", 123456789012345678901234567890),
        ('{"text": "a", "k": NaN}', "a", None),
        ('{"text": "a", "k": -Infinity}', "a", None),
        ('{"text": "a", "k": 1e999}', "a", None),
        ('{"text": "a", "text": "b", "k": 1, "k": 2}', "b", 2),
        ('{"text": "\\ud83d\\ude42", "k": "\\u0000"}', "🙂", "\0"),
        ('\t{"text":"a","k":"x"}\r', "a", "x"),
    ],
)
def test_odd_json_is_read(make: Any, read: Any, line: str, text: str, kept: Any) -> None:
    document = read(make("a.jsonl", line + "\n"), keep_fields=("k",)).only
    assert (document.text, document.metadata["k"]) == (text, kept)


def test_blank_lines_and_a_missing_last_line_feed_are_nothing(make: Any, read: Any) -> None:
    found = read(make("a.jsonl", '\n  \n\r\n{"text": "a"}\n\n{"text": "b"}'))
    assert found.texts == ["a", "b"]
    assert not found.rejects


def test_an_empty_file_holds_no_record(make: Any, read: Any) -> None:
    found = read(make("a.jsonl", ""))
    assert not found.documents
    assert not found.rejects


@pytest.mark.parametrize("compression", [None, "gz", "bz2", "xz", "zst"])
@pytest.mark.parametrize("last", [b"\n", b""])
def test_a_line_over_the_limit_is_skipped_to_its_end(
    make: Any, read: Any, compress: Any, compression: str | None, last: bytes
) -> None:
    long = b'{"text": "' + b"x" * 3000 + b'"}\n'
    data = b'{"text": "a"}\n' + long + b'{"text": "b"}\n' + long.rstrip() + last
    path = (
        make(f"a.jsonl.{compression}", compress(data, compression)) if compression else make("a.jsonl", data)
    )
    found = read(path, max_document_bytes=100)
    assert found.texts == ["a", "b"]
    assert [reject.where.split(",")[0] for reject in found.rejects] == ["line 2", "line 4"]


def test_a_long_line_is_not_held(make: Any, read: Any) -> None:
    path = make("a.jsonl", b'{"text": "' + b"x" * 50_000_000 + b'"}\n{"text": "b"}\n')
    tracemalloc.start()
    found = read(path, max_document_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.texts == ["b"]
    assert peak < 8_000_000


def test_a_line_over_many_ranges_is_read_about_once(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make("a.jsonl", b'{"text": "' + b"x" * 1_000_000 + b'"}\n{"text": "b"}\n')
    file = SourceFile(str(path), "a.jsonl", path.stat().st_size, "jsonl")
    options = SourceOptions(range_bytes=10_000, max_document_bytes=1000)
    taken = 0

    class Counting:
        def __init__(self, inner: Any) -> None:
            self._inner = inner

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            self._inner.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._inner, name)

        def readline(self, size: int = -1) -> bytes:
            nonlocal taken
            line: bytes = self._inner.readline(size)
            taken += len(line)
            return line

    from m3build.corpus import compression
    from m3build.corpus.readers import json_lines

    inner = compression.open_bytes
    monkeypatch.setattr(json_lines, "open_bytes", lambda file: Counting(inner(file)))
    found = [item for part in split(file, options) for item in read_range(part, options)]
    assert [item.text for item in found if isinstance(item, Document)] == ["b"]
    assert taken < 1.2 * path.stat().st_size


def test_compressed_and_wide_files_are_one_range(make: Any, find: Any, compress: Any) -> None:
    options = SourceOptions(range_bytes=10)
    data = b'{"text": "a"}\n' * 100
    for path in (
        make("a.jsonl.gz", compress(data, "gz")),
        make("b.jsonl", ("\ufeff" + data.decode()).encode("utf-16-le")),
    ):
        assert split(find(path)[0][0], options) == [SourceRange(find(path)[0][0])]
    assert len(split(find(make("c.jsonl", data))[0][0], options)) == 140


LINES = st.lists(
    st.one_of(
        st.text(max_size=8).map(lambda text: json.dumps({"text": text}).encode()),
        st.text(max_size=8).map(
            lambda text: json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace")
        ),
        st.sampled_from(
            [b"", b" ", b"\r", b"broken", b'{"text": 1}', b"\xff", b'{"text": "' + b"x" * 60 + b'"}']
        ),
    ),
    max_size=12,
)


@given(lines=LINES, size=st.integers(1, 60), bom=st.booleans(), ended=st.booleans())
def test_all_ranges_in_a_row_are_the_whole_file(
    lines: list[bytes], size: int, bom: bool, ended: bool
) -> None:
    data = (b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if ended else b"")

    def place(item: Document | Reject) -> Any:
        # Only the first range knows line numbers; every reject names the offset.
        return (item.where.split("offset ")[1], item.reason) if isinstance(item, Reject) else item

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.jsonl")
        path.write_bytes(data)
        file = SourceFile(str(path), "a.jsonl", len(data), "jsonl")
        options = SourceOptions(range_bytes=size, max_document_bytes=50)
        ranges = split(file, options)
        found = [place(item) for part in ranges for item in read_range(part, options)]
        assert found == [place(item) for item in read_range(SourceRange(file), options)]
        # Ranges may be read apart and in any order.
        assert [
            place(item) for part in reversed(ranges) for item in reversed(list(read_range(part, options)))
        ] == found[::-1]


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a.jsonl")
        path.write_bytes(data)
        for item in read_range(
            SourceRange(SourceFile(str(path), "a.jsonl", len(data), "jsonl")), SourceOptions()
        ):
            assert isinstance(item, Document | Reject)
