from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from m3build_formats.data_directory import DataDirectory
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.rejects_file import RejectRow, read_rejects, write_rejects

LINE = b'{"kind":"reject","reason":"r","source":"s","where":"w"}\n'


def entry_for(data: bytes, rows: int | None = None) -> FileEntry:
    return FileEntry("x.rejects.jsonl.zst", "0" * 64, len(data), rows)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.builds(RejectRow, source=st.text(), where=st.text(), reason=st.text(), kind=st.text()))
)
def test_rejects_come_back_as_they_were(tmp_path: Path, rows: list[RejectRow]) -> None:
    with DataDirectory(tmp_path) as data:
        entry = write_rejects(data, rows)
        assert entry == write_rejects(data, iter(rows))
    assert list(read_rejects(entry, memoryview((tmp_path / entry.name).read_bytes()))) == rows
    assert entry.rows == len(rows)


def test_an_odd_reject_is_written_all_the_same(tmp_path: Path) -> None:
    with DataDirectory(tmp_path) as data:
        entry = write_rejects(data, [RejectRow("bad\udcff.txt", "line 1", "x" * 10_000)])
    (found,) = read_rejects(entry, memoryview((tmp_path / entry.name).read_bytes()))
    assert found.source == "bad\\udcff.txt"
    assert len(found.reason) == 4096


@pytest.mark.parametrize(
    "text",
    [
        b"{}\n",
        b"[]\n",
        b"nonsense\n",
        LINE[:-1],
        LINE.replace(b'"r"', b"1"),
        LINE.replace(b"}", b',"more":""}'),
        LINE + b"\n",
        b"\xff\n",
        b"[" * 50_000 + b"\n",
        b"x" * 100_000 + b"\n",
    ],
    ids=lambda text: text[:25].decode("latin-1"),
)
def test_lines_that_are_no_rejects_are_corrupt(text: bytes) -> None:
    data = zstandard.compress(text)
    with pytest.raises(CorruptError):
        list(read_rejects(entry_for(data), memoryview(data)))


def test_another_number_of_lines_is_corrupt() -> None:
    data = zstandard.compress(LINE * 3)
    assert len(list(read_rejects(entry_for(data, 3), memoryview(data)))) == 3
    with pytest.raises(CorruptError, match="holds 3 lines, expected 4"):
        list(read_rejects(entry_for(data, 4), memoryview(data)))


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\x28\xb5\x2f\xfd", zstandard.compress(LINE * 1000)[:-9]], ids=len
)
def test_a_broken_frame_is_corrupt(data: bytes) -> None:
    with pytest.raises(CorruptError):
        list(read_rejects(entry_for(data, 1000), memoryview(data)))


def test_a_frame_that_declares_an_absurd_size_is_refused_before_decompression() -> None:
    bomb = bytearray(zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1 << 20)))
    declared = zstandard.get_frame_parameters(bytes(bomb)).content_size
    where = bytes(bomb).index(declared.to_bytes(4, "little"))
    bomb[where : where + 4] = (0xFFFFFFF0).to_bytes(4, "little")
    with pytest.raises(CorruptError, match=r"declares|window"):
        list(read_rejects(entry_for(bytes(bomb)), memoryview(bytes(bomb))))


def test_a_decompression_bomb_costs_no_memory() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=22)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    bomb = b"".join(compressor.compress(bytes(1 << 20)) for _ in range(64)) + compressor.flush()
    tracemalloc.start()
    with pytest.raises(CorruptError, match="line of more than"):
        list(read_rejects(entry_for(bomb), memoryview(bomb)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(LINE) + compressor.flush()
    with pytest.raises(CorruptError, match="window"):
        list(read_rejects(entry_for(data), memoryview(data)))
