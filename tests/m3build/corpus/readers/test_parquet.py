"""Parquet: row groups as ranges, and damaged or unfitting files."""

from __future__ import annotations

import datetime
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3build.corpus import SourceOptions, read_range, split
from m3build.corpus.source import SourceRange
from m3build.records import Document


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def test_rows_are_records_with_row_numbers(tmp_path: Path, read: Any) -> None:
    when = datetime.datetime(2024, 1, 2, 3, 4)
    table = pa.table({"text": ["a", "b"], "n": [1, 2], "when": [when, None], "x": [[1], []]})
    found = read(write(tmp_path / "a.parquet", table), id_field="n", keep_fields=("when", "x", "missing"))
    assert [(d.id, d.position, d.text) for d in found.documents] == [("1", 0, "a"), ("2", 1, "b")]
    assert found.documents[0].metadata == {"when": "2024-01-02T03:04:00", "x": [1]}
    assert found.documents[1].metadata == {"when": None, "x": []}


@pytest.mark.parametrize("group_rows", [1, 3, 100])
@pytest.mark.parametrize("range_bytes", [1, 200, 10**9])
def test_all_ranges_in_a_row_are_the_whole_file(
    tmp_path: Path, find: Any, group_rows: int, range_bytes: int
) -> None:
    table = pa.table({"text": [f"text {n % 5}" for n in range(50)]})
    (file,), _ = find(write(tmp_path / "a.parquet", table, row_group_size=group_rows))
    options = SourceOptions(range_bytes=range_bytes)
    ranges = split(file, options)
    found = [item for part in ranges for item in read_range(part, options)]
    assert found == list(read_range(SourceRange(file), options))
    assert [item.position for item in found if isinstance(item, Document)] == list(range(50))
    assert len(ranges) == 50 or (group_rows, range_bytes) != (1, 1)


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_parquet_file_is_read(
    tmp_path: Path, make: Any, read: Any, compress: Any, compression: str
) -> None:
    data = write(tmp_path / "x.parquet", pa.table({"text": ["a", "b"]})).read_bytes()
    assert read(make(f"a.parquet.{compression}", compress(data, compression))).texts == ["a", "b"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", "a"], pa.string()),
        pa.array(["a", "b", "a"], pa.large_string()),
        pa.array(["a", "b", "a"]).dictionary_encode(),
        pa.array([b"a", b"b", b"a"], pa.binary()),
    ],
    ids=str,
)
def test_every_kind_of_string_column_is_read(tmp_path: Path, read: Any, column: Any) -> None:
    assert read(write(tmp_path / "a.parquet", pa.table({"text": column}))).texts == ["a", "b", "a"]


def test_a_null_text_is_a_reject_with_its_row(tmp_path: Path, read: Any) -> None:
    found = read(write(tmp_path / "a.parquet", pa.table({"text": ["a", None, "c"]})))
    assert found.texts == ["a", "c"]
    assert found.rejects[0].where == "row 1"


def test_a_column_of_nulls_only_is_a_reject_for_each_row(tmp_path: Path, read: Any) -> None:
    assert len(read(write(tmp_path / "a.parquet", pa.table({"text": pa.nulls(2)}))).rejects) == 2


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"body": ["a"]}, "no text column 'text'; the columns are 'body'"),
        ({"text": [1]}, "int64"),
        ({"text": [["a"]]}, "list"),
    ],
)
def test_a_file_without_a_text_column_is_one_reject(
    tmp_path: Path, read: Any, table: Any, reason: str
) -> None:
    found = read(write(tmp_path / "a.parquet", pa.table(table)))
    assert reason in found.reason
    assert found.rejects[0].where == "file"


def test_a_missing_id_column_is_one_reject(tmp_path: Path, read: Any) -> None:
    assert "id column" in read(write(tmp_path / "a.parquet", pa.table({"text": ["a"]})), id_field="id").reason


def test_bytes_that_are_not_utf_8_cost_their_row(tmp_path: Path, read: Any) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": pa.array([b"a", b"\xff", b"c"], pa.binary())}))
    assert read(path).texts == ["a", "c"]
    assert read(path, encoding_errors="replace").texts == ["a", "�", "c"]
    assert read(path, encoding="latin-1").texts == ["a", "ÿ", "c"]


def test_a_value_over_the_limit_costs_its_row(tmp_path: Path, read: Any) -> None:
    found = read(
        write(tmp_path / "a.parquet", pa.table({"text": ["a", "x" * 200, "c"]})), max_document_bytes=100
    )
    assert found.texts == ["a", "c"]
    assert "--max-document-bytes" in found.reason


def test_a_long_string_said_a_thousand_times_is_not_written_out(tmp_path: Path, find: Any) -> None:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array(["x" * 1_000_000]))
    (file,), _ = find(
        write(tmp_path / "a.parquet", pa.table({"text": column}), dictionary_pagesize_limit=2**30)
    )
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    count = 0
    for item in read_range(SourceRange(file), SourceOptions()):
        assert isinstance(item, Document)
        count += 1
        peak = max(peak, pa.total_allocated_bytes() - before)
    python_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 300
    assert peak < 50_000_000
    assert python_peak < 20_000_000


def test_a_large_file_is_read_in_small_batches(tmp_path: Path, find: Any) -> None:
    import random

    source = random.Random(0)
    table = pa.table(
        {"text": [source.randbytes(5_000).hex() for _ in range(4000)], "other": ["y" * 1000] * 4000}
    )
    (file,), _ = find(write(tmp_path / "a.parquet", table, row_group_size=4000))
    del table
    before = pa.total_allocated_bytes()
    peak = 0
    for _ in read_range(SourceRange(file), SourceOptions()):
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 25_000_000  # of 40 MB in one row group; Arrow writes pages of 10 MB here


@pytest.mark.parametrize("size", [0, 3, 100, -1])
def test_a_truncated_file_is_one_reject(tmp_path: Path, make: Any, read: Any, size: int) -> None:
    data = write(tmp_path / "x.parquet", pa.table({"text": ["a"] * 100})).read_bytes()
    found = read(make("a.parquet", data[:size]))
    assert "not a readable Parquet file" in found.reason
    assert str(tmp_path) not in found.reason


def test_a_damaged_row_group_is_one_reject_and_the_next_is_read(tmp_path: Path, make: Any, read: Any) -> None:
    table = pa.table({"text": [f"some text {n}" for n in range(300)]})
    path = write(
        tmp_path / "x.parquet",
        table,
        row_group_size=100,
        write_page_checksum=True,
        compression="none",
        use_dictionary=False,
    )
    data = bytearray(path.read_bytes())
    data[data.index(b"some text 150")] ^= 1
    found = read(make("a.parquet", bytes(data)))
    assert found.texts == [f"some text {n}" for n in range(300) if not 100 <= n < 200]
    assert found.rejects[0].where == "row group 1, row 100"


def test_a_parquet_bomb_that_is_compressed_again_is_one_reject(
    tmp_path: Path, make: Any, read: Any, compress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3build.corpus.table.UNPACKED_BYTES", 100_000)
    found = read(make("a.parquet.zst", compress(b"PAR1" + b"\0" * 3_000_000, "zst")))
    assert "decompresses to more than" in found.reason


@pytest.mark.parametrize(
    "options", [{}, {"write_page_checksum": True}, {"compression": "none", "use_dictionary": False}]
)
def test_no_flipped_byte_breaks_the_reader_or_loses_rows_in_silence(
    tmp_path: Path, make: Any, find: Any, options: dict[str, Any]
) -> None:
    table = pa.table({"text": [f"word {n}" for n in range(30)]})
    data = write(tmp_path / "x", table, row_group_size=10, **options).read_bytes()
    for offset in range(0, len(data), 2):
        flipped = data[:offset] + bytes([data[offset] ^ 0x81]) + data[offset + 1 :]
        (file,), _ = find(make("a.parquet", flipped))
        (part,) = split(file, SourceOptions())
        found = list(read_range(part, SourceOptions()))
        documents = sum(isinstance(item, Document) for item in found)
        assert documents == 30 or documents < len(found), offset


def test_row_counts_that_contradict_each_other_are_a_reject(
    tmp_path: Path, read: Any, monkeypatch: Any
) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a", "b"]}))
    inner = pq.ParquetFile.iter_batches

    def short(self: Any, *arguments: Any, **named: Any) -> Any:
        return (batch.slice(0, 1) for batch in inner(self, *arguments, **named))

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", short)
    found = read(path)
    assert found.texts == ["a"]
    assert "footer" in found.reason
