"""Arrow IPC files and streams: batches as ranges, damage, and structure that lies."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather

from m3build.corpus import SourceOptions, read_range, split
from m3build.corpus.source import SourceRange
from m3build.records import Document

TABLE = pa.table({"n": list(range(50)), "text": [f"text {n}" for n in range(50)]})


def file_bytes(table: pa.Table, rows: int = 1000, kind: str = "file", **options: Any) -> bytes:
    sink = io.BytesIO()
    new = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
    with new(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, max_chunksize=rows)
    return sink.getvalue()


@pytest.mark.parametrize("kind", ["file", "stream", "feather", "lz4", "zstd"])
def test_every_kind_of_arrow_file_is_read(tmp_path: Path, read: Any, kind: str) -> None:
    path = tmp_path / "a.feather"
    if kind == "feather":
        feather.write_feather(TABLE, str(path))
    elif kind in ("lz4", "zstd"):
        path.write_bytes(file_bytes(TABLE, compression=kind))
    else:
        path.write_bytes(file_bytes(TABLE, kind=kind))
    found = read(path, id_field="n")
    assert [(d.id, d.position, d.text) for d in found.documents] == [
        (str(n), n, f"text {n}") for n in range(50)
    ]


@pytest.mark.parametrize("name", ["table", "table.bin"])
@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_are_found_by_content(make: Any, read: Any, name: str, kind: str) -> None:
    assert len(read(make(name, file_bytes(TABLE, kind=kind))).documents) == 50


@pytest.mark.parametrize("rows", [1, 7, 50])
@pytest.mark.parametrize("range_bytes", [1, 2000, 10**9])
def test_all_ranges_in_a_row_are_the_whole_file(make: Any, find: Any, rows: int, range_bytes: int) -> None:
    (file,), _ = find(make("a.arrow", file_bytes(TABLE, rows)))
    options = SourceOptions(range_bytes=range_bytes)
    ranges = split(file, options)
    found = [item for part in ranges for item in read_range(part, options)]
    assert found == list(read_range(SourceRange(file), options))
    assert [item.position for item in found if isinstance(item, Document)] == list(range(50))
    assert (len(ranges) > 1) == (rows < 50 and range_bytes < 10**9)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_every_kind_of_string_column_is_read(make: Any, read: Any, kind: pa.DataType) -> None:
    column = pa.array(["a", None, "a long string that no view holds inline"]).cast(kind)
    found = read(make("a.arrow", file_bytes(pa.table({"text": column}))))
    assert found.texts == ["a", "a long string that no view holds inline"]
    assert found.rejects[0].where == "row 1"


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_compressed_arrow_file_is_read(make: Any, read: Any, compress: Any, compression: str) -> None:
    assert len(read(make(f"a.arrow.{compression}", compress(file_bytes(TABLE), compression))).documents) == 50


def test_large_batches_are_mapped_and_read_alike(
    make: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make("a.arrow", file_bytes(TABLE, 20))
    expected = read(path)
    monkeypatch.setattr("m3build.corpus.readers.arrow._MAPPED_BATCH_BYTES", 1)
    before = pa.total_allocated_bytes()
    assert read(path) == expected
    assert pa.total_allocated_bytes() == before


def test_bytes_that_are_not_utf_8_cost_their_row(make: Any, read: Any) -> None:
    column = pa.array([b"a", b"\xff", b"c"]).view(pa.string())
    found = read(make("a.arrow", file_bytes(pa.table({"text": column}))))
    assert found.texts == ["a", "c"]
    assert found.rejects[0].where == "row 1"


def test_offsets_that_lie_are_a_reject_of_their_batch(make: Any, read: Any) -> None:
    lying = pa.Array.from_buffers(
        pa.string(),
        2,
        [
            None,
            pa.py_buffer(
                (0).to_bytes(4, "little") + (2**30).to_bytes(4, "little") + (1).to_bytes(4, "little")
            ),
            pa.py_buffer(b"ab"),
        ],
    )
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, pa.schema([("text", pa.string())])) as writer:
        writer.write_batch(pa.record_batch([pa.array(["good", "good"])], ["text"]))
        writer.write_batch(pa.record_batch([lying], ["text"]))
        writer.write_batch(pa.record_batch([pa.array(["also"])], ["text"]))
    found = read(make("a.arrow", sink.getvalue()))
    assert found.texts == ["good", "good", "also"]
    assert "damaged" in found.reason
    assert found.rejects[0].where == "rows 2 to 3"
    assert found.documents[-1].position == 4


def test_a_file_without_the_text_column_is_one_reject(make: Any, read: Any) -> None:
    assert "'body'" in read(make("a.arrow", file_bytes(pa.table({"body": ["a"]})))).reason


@pytest.mark.parametrize("kind", ["file", "stream"])
@pytest.mark.parametrize("size", [0, 4, 100, 600, -10])
def test_a_truncated_file_is_a_reject(make: Any, read: Any, kind: str, size: int) -> None:
    data = file_bytes(TABLE, 10, kind)
    found = read(make("a.arrow", data[:size]))
    # A stream may end behind any batch, the mark at its end is optional.
    assert len(found.rejects) == (0 if kind == "stream" and size == -10 and len(found.documents) == 50 else 1)


def test_feather_version_1_is_refused_by_name(make: Any, read: Any) -> None:
    found = read(make("a.feather", b"FEA1" + b"\0" * 100 + b"FEA1"))
    assert "version 2" in found.reason
    assert "Feather version 1" in read(make("a", b"FEA1" + b"\0" * 100 + b"FEA1")).reason


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_no_flipped_byte_breaks_the_reader(make: Any, find: Any, kind: str) -> None:
    data = file_bytes(pa.table({"text": [f"word {n}" for n in range(30)]}), 10, kind)
    for offset in range(0, len(data), 2):
        flipped = data[:offset] + bytes([data[offset] ^ 0x81]) + data[offset + 1 :]
        (file,), _ = find(make("a.arrow", flipped))
        found = list(read_range(SourceRange(file), SourceOptions()))
        documents = sum(isinstance(item, Document) for item in found)
        # Only the footer of a file can hide a batch: nothing else in it tells how many there are.
        assert documents == 30 or documents < len(found) or kind == "file", offset


def test_a_length_beyond_all_memory_is_a_reject(make: Any, read: Any) -> None:
    data = bytearray(file_bytes(TABLE, kind="stream"))
    # The body length of the first record batch, in its flatbuffer: eight bytes with the size of the columns.
    size = len(file_bytes(TABLE, kind="stream")) - len(file_bytes(TABLE.slice(0, 0), kind="stream"))
    at = next(
        offset
        for offset in range(0, len(data) - 8, 8)
        if size - 400 < int.from_bytes(data[offset : offset + 8], "little") <= size
    )
    data[at + 5] = 0x7F
    assert len(read(make("a.arrows", bytes(data))).rejects) == 1
