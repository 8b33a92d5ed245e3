from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from m3build_formats.arrow_file import CheckedArrowFile, batch_digest, write_table
from m3build_formats.data_directory import TableShape
from m3build_formats.entries import Batches, FileEntry
from m3build_formats.errors import CorruptError

SCHEMA = pa.schema(
    [pa.field("number", pa.uint32(), nullable=False), pa.field("word", pa.string(), nullable=False)]
)


def record_batch(first: int, rows: int) -> Any:
    numbers = np.arange(first, first + rows, dtype=np.uint32)
    return pa.record_batch([pa.array(numbers), pa.array([f"w{n}" for n in numbers.tolist()])], schema=SCHEMA)


def file_of(rows: int, each: int) -> tuple[bytes, FileEntry]:
    sink = io.BytesIO()
    batches = (record_batch(first, min(each, rows - first)) for first in range(0, rows, each))
    return entry_for(sink, write_table(sink, SCHEMA, batches, each))


def entry_for(sink: io.BytesIO, shape: TableShape) -> tuple[bytes, FileEntry]:
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return data, FileEntry(f"{digest}.chunks.arrow", digest, len(data), shape.rows, shape.batches)


def entry_of_any(data: bytes, rows: int, each: int, head: int, ends: list[int]) -> FileEntry:
    """An entry whose digests are right for ``data``, as a hostile writer would make it."""
    starts = [head, *ends[:-1]]
    digests = tuple(batch_digest(data[start:end]) for start, end in zip(starts, ends, strict=True))
    batches = Batches(each, head, batch_digest(data[:head]), tuple(ends), digests)
    return FileEntry("x.chunks.arrow", "0" * 64, len(data), rows, batches)


def ipc_file(batches: list[Any], schema: Any, **options: Any) -> tuple[bytes, int, list[int]]:
    """A file by pyarrow's own writer, the end of its head and of each batch."""
    sink = pa.BufferOutputStream()
    ends = []
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
            ends.append(sink.tell())
    data = sink.getvalue().to_pybytes()
    return data, 16 + int.from_bytes(data[12:16], "little"), ends


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 11])
def test_any_arrow_reader_reads_the_file(rows: int) -> None:
    data, entry = file_of(rows, 4)
    table = pa.ipc.open_file(pa.py_buffer(data)).read_all()
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.column("number").to_pylist() == list(range(rows))
    assert entry.batches is not None
    assert len(entry.batches.ends) == -(-rows // 4)


@pytest.mark.parametrize("rows", [0, 1, 3, 4, 5, 11])
def test_a_checked_read_gives_the_rows(rows: int) -> None:
    data, entry = file_of(rows, 4)
    file = CheckedArrowFile(entry, memoryview(data), SCHEMA)
    assert [n for batch in file.batches() for n in batch.column("number").to_pylist()] == list(range(rows))
    for row in range(rows):
        batch, place = file.place(row)
        assert file.batch(batch).column("word")[place].as_py() == f"w{row}"
    with pytest.raises(IndexError):
        file.place(rows)
    with pytest.raises(IndexError):
        file.place(-1)


def test_the_manifest_tells_where_each_batch_lies() -> None:
    data, entry = file_of(11, 4)
    assert entry.batches is not None
    for number in range(3):
        start, end = entry.batches.span(number)
        message = pa.ipc.read_message(pa.py_buffer(data[start:end]))
        assert message.type == "record batch"
        assert entry.batches.digests[number] == hashlib.sha256(data[start:end]).hexdigest()[:32]


def test_the_metadata_version_is_five_and_nothing_is_compressed() -> None:
    data, entry = file_of(3, 4)
    message = pa.ipc.read_message(pa.py_buffer(data[8:]))
    assert message.metadata_version == pa.ipc.MetadataVersion.V5
    assert pa.ipc.read_schema(pa.py_buffer(data[8:])).metadata is None
    assert b"pyarrow" not in data
    assert b"pandas" not in data
    assert entry.rows == 3


@pytest.mark.parametrize("sizes", [[4, 3, 4], [5], [0], [4, 0]])
def test_batches_that_break_the_row_rule_are_refused(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="rows"):
        write_table(io.BytesIO(), SCHEMA, (record_batch(0, size) for size in sizes), 4)


def test_every_flipped_bit_in_head_and_batches_is_found_before_it_is_returned() -> None:
    data, entry = file_of(5, 2)
    good = [batch.to_pydict() for batch in CheckedArrowFile(entry, memoryview(data), SCHEMA).batches()]
    assert entry.batches is not None
    spoiled = bytearray(data)
    found = 0
    for bit in range(8 * entry.batches.ends[-1]):
        spoiled[bit // 8] ^= 1 << bit % 8
        try:
            file = CheckedArrowFile(entry, memoryview(bytes(spoiled)), SCHEMA)
        except CorruptError:
            found += 1
        else:
            bad = 0
            for number in range(3):
                try:
                    assert file.batch(number).to_pydict() == good[number]
                except CorruptError:
                    bad += 1
            assert bad == 1
            found += 1
        spoiled[bit // 8] ^= 1 << bit % 8
    assert found == 8 * entry.batches.ends[-1]


def test_a_file_of_another_size_is_refused() -> None:
    data, entry = file_of(5, 2)
    for wrong in (data[:-1], data + b"\0", b""):
        with pytest.raises(CorruptError, match="bytes, expected"):
            CheckedArrowFile(entry, memoryview(wrong), SCHEMA)


def test_other_columns_are_refused() -> None:
    data, entry = file_of(5, 2)
    other = pa.schema([pa.field("number", pa.uint32(), nullable=False)])
    with pytest.raises(CorruptError, match="other columns"):
        CheckedArrowFile(entry, memoryview(data), other)


def test_schema_metadata_is_refused() -> None:
    data, head, ends = ipc_file([record_batch(0, 2)], SCHEMA.with_metadata({"pandas": "{}"}))
    with pytest.raises(CorruptError, match="other columns"):
        CheckedArrowFile(entry_of_any(data, 2, 2, head, ends), memoryview(data), SCHEMA)


@pytest.mark.parametrize("compression", ["zstd", "lz4"])
def test_compressed_batches_are_refused_since_they_may_be_bombs(compression: str) -> None:
    big = pa.record_batch([pa.array(np.zeros(1000, np.uint32)), pa.array(["x" * 100] * 1000)], schema=SCHEMA)
    data, head, ends = ipc_file([big], SCHEMA, compression=compression)
    file = CheckedArrowFile(entry_of_any(data, 1000, 1000, head, ends), memoryview(data), SCHEMA)
    with pytest.raises(CorruptError, match="compressed"):
        file.batch(0)


def test_nulls_are_refused_at_any_depth() -> None:
    nested = pa.schema([pa.field("a", pa.list_(pa.struct([pa.field("b", pa.uint32())])))])
    for value in (None, [None], [{"b": None}]):
        batch = pa.record_batch([pa.array([value], nested.field("a").type)], schema=nested)
        data, head, ends = ipc_file([batch], nested)
        file = CheckedArrowFile(entry_of_any(data, 1, 1, head, ends), memoryview(data), nested)
        with pytest.raises(CorruptError, match="nulls"):
            file.batch(0)


def test_a_batch_with_another_number_of_rows_is_refused() -> None:
    data, head, ends = ipc_file([record_batch(0, 2)], SCHEMA)
    file = CheckedArrowFile(entry_of_any(data, 3, 3, head, ends), memoryview(data), SCHEMA)
    with pytest.raises(CorruptError, match="has 2 rows, expected 3"):
        file.batch(0)


def test_a_schema_message_in_place_of_a_batch_is_refused() -> None:
    data, head, _ = ipc_file([record_batch(0, 2)], SCHEMA)
    doubled = data[:head] + data[8:head]
    file = CheckedArrowFile(entry_of_any(doubled, 2, 2, head, [len(doubled)]), memoryview(doubled), SCHEMA)
    with pytest.raises(CorruptError, match=r"schema message|does not parse"):
        file.batch(0)


def test_damage_with_matching_digests_never_crashes_nor_gives_invalid_arrays() -> None:
    """A hostile writer hashes what it likes: parsing must hold by itself."""
    data, head, ends = ipc_file([record_batch(0, 40)], SCHEMA)
    random = np.random.default_rng(5)
    refused = 0
    for _ in range(1500):
        spoiled = bytearray(data)
        for place in random.integers(0, ends[-1], random.integers(1, 4)):
            spoiled[place] = random.integers(0, 256)
        entry = entry_of_any(bytes(spoiled), 40, 40, head, ends)
        try:
            batch = CheckedArrowFile(entry, memoryview(bytes(spoiled)), SCHEMA).batch(0)
        except CorruptError:
            refused += 1
            continue
        batch.validate(full=True)
        assert len(batch.to_pylist()) == 40
    assert refused > 100


def test_a_mapping_of_a_file_gives_the_same(tmp_path: Path) -> None:
    data, entry = file_of(11, 4)
    (tmp_path / "f").write_bytes(data)
    with open(tmp_path / "f", "rb") as opened:
        import mmap

        mapped = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    assert CheckedArrowFile(entry, mapped, SCHEMA).batch(2).column("number").to_pylist() == [8, 9, 10]
