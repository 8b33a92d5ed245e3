"""Compressed sources: every format round-trips; damage is one reject that keeps what came before."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.compression import DecompressedStream, open_path
from m3build.corpus.source import BadInput

COMPRESSIONS = ["gz", "bz2", "xz", "zst"]
MEBIBYTE = 1024 * 1024


def lines(count: int, first: int = 0) -> bytes:
    return b"".join(json.dumps({"text": f"text {n}"}).encode() + b"\n" for n in range(first, first + count))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@given(
    data=st.binary(max_size=5000),
    repeat=st.integers(1, 200),
    sizes=st.lists(st.integers(1, 70_000), min_size=1),
)
def test_decompressed_bytes_are_the_bytes_that_were_compressed(
    compress: Callable[[bytes, str], bytes], compression: str, data: bytes, repeat: int, sizes: list[int]
) -> None:
    data *= repeat
    stream = DecompressedStream(io.BytesIO(compress(data, compression)), compression)
    pieces: list[bytes] = []
    while True:
        piece = stream.read(sizes[len(pieces) % len(sizes)])
        if not piece:
            break
        pieces.append(piece)
    assert b"".join(pieces) == data


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_several_members_and_padding_read_as_one_stream(
    make: Any, read: Any, compress: Any, compression: str
) -> None:
    packed = compress(lines(3), compression) + compress(b"", compression) + compress(lines(2, 3), compression)
    found = read(make(f"a.jsonl.{compression}", packed + b"\0" * 8))
    assert found.texts == [f"text {n}" for n in range(5)]
    assert not found.rejects


def test_a_zstd_frame_without_its_size_and_a_skippable_frame_are_read(make: Any, read: Any) -> None:
    writer = zstandard.ZstdCompressor(write_content_size=False).compressobj()
    packed = writer.compress(lines(2)) + writer.flush()
    skippable = b"\x50\x2a\x4d\x18" + (5).to_bytes(4, "little") + b"hello"
    assert read(make("a.jsonl.zst", packed + skippable + packed)).texts == ["text 0", "text 1"] * 2


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_truncated_file_keeps_whole_records_and_is_one_reject(
    make: Any, read: Any, compress: Any, compression: str
) -> None:
    # Random digits, so that the file is long when compressed and bzip2 has several blocks.
    import random

    source = random.Random(0)
    data = b"".join(
        json.dumps({"text": f"{n} {source.randbytes(600).hex()}"}).encode() + b"\n" for n in range(1500)
    )
    packed = compress(data, compression)
    found = read(make(f"a.jsonl.{compression}", packed[: len(packed) * 3 // 4]))
    assert "truncated" in found.reason
    assert found.rejects[0].source == f"a.jsonl.{compression}"
    kept = len(found.documents)
    assert 300 < kept < 1300
    assert [text.split()[0] for text in found.texts] == [str(n) for n in range(kept)]
    offset = int(found.rejects[0].where.removeprefix("offset "))
    assert sum(map(len, data.splitlines(True)[:kept])) <= offset


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("cut", [0, 1, 5, -1])
def test_a_file_cut_anywhere_is_one_truncated_reject(
    make: Any, read: Any, compress: Any, compression: str, cut: int
) -> None:
    packed = compress(lines(3), compression)
    found = read(make(f"a.jsonl.{compression}", packed[:cut] if cut else b""))
    assert "truncated" in found.reason


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_truncated_one_document_file_gives_no_document(
    make: Any, read: Any, compress: Any, compression: str
) -> None:
    packed = compress(b"word " * 1000, compression)
    found = read(make(f"a.txt.{compression}", packed[: len(packed) // 2]))
    assert "truncated" in found.reason
    assert not found.documents


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_bytes_behind_the_last_member_are_one_reject_and_cost_no_record(
    make: Any, read: Any, compress: Any, compression: str
) -> None:
    found = read(make(f"a.jsonl.{compression}", compress(lines(3), compression) + b"what is this"))
    assert found.texts == ["text 0", "text 1", "text 2"]
    assert "trailing" in found.reason
    assert found.rejects[0].where == f"offset {len(lines(3))}"


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_flipped_byte_is_one_reject(make: Any, read: Any, compress: Any, compression: str) -> None:
    if compression == "zst":
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(lines(2000))
    else:
        packed = compress(lines(2000), compression)
    middle = len(packed) // 2
    damaged = packed[:middle] + bytes([packed[middle] ^ 0xFF]) + packed[middle + 1 :]
    found = read(make(f"a.jsonl.{compression}", damaged))
    assert any("damaged" in reject.reason or "truncated" in reject.reason for reject in found.rejects)
    assert found.texts[:10] == [f"text {n}" for n in range(10)] or len(found.texts) < 10


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_name_that_lies_about_compression_is_one_reject(make: Any, read: Any, compression: str) -> None:
    found = read(make(f"a.jsonl.{compression}", lines(3)))
    assert "damaged" in found.reason
    assert not found.documents


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_bomb_in_one_document_is_one_reject_in_bounded_memory(
    make: Any, read: Any, compression: str, tmp_path: Path
) -> None:
    path = tmp_path / f"bomb.txt.{compression}"
    write_zeros(path, compression, 256 * MEBIBYTE)
    assert path.stat().st_size < MEBIBYTE
    tracemalloc.start()
    found = read(path, max_document_bytes=MEBIBYTE)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "--max-document-bytes" in found.reason
    assert peak < 40 * MEBIBYTE


@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_bomb_in_a_record_file_is_given_up(make: Any, read: Any, compression: str, tmp_path: Path) -> None:
    path = tmp_path / f"bomb.jsonl.{compression}"
    write_zeros(path, compression, 64 * MEBIBYTE)
    found = read(path, max_document_bytes=100_000)
    assert ["--max-document-bytes" in found.rejects[0].reason, "not read" in found.rejects[1].reason] == [
        True,
        True,
    ]
    assert len(found.rejects) == 2


def write_zeros(path: Path, compression: str, size: int) -> None:
    block = b" " * MEBIBYTE
    with open(path, "wb") as raw:
        if compression == "gz":
            with gzip.GzipFile(fileobj=raw, mode="wb") as packed:
                for _ in range(size // len(block)):
                    packed.write(block)
        else:
            with zstandard.ZstdCompressor().stream_writer(raw) as packed:
                for _ in range(size // len(block)):
                    packed.write(block)


def test_an_xz_file_that_wants_more_memory_than_allowed_is_one_reject(
    make: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3build.corpus.compression._XZ_MEMORY_BYTES", 100_000)
    found = read(make("a.jsonl.xz", lzma.compress(lines(10), preset=9)))
    assert "emory" in found.reason


def test_closing_the_stream_closes_the_file(make: Any, compress: Any) -> None:
    raw = io.BytesIO(compress(b"text", "gz"))
    DecompressedStream(raw, "gz").close()
    assert raw.closed


def test_small_reads_give_the_same_bytes_as_one_large_read() -> None:
    data = bz2.compress(bytes(range(256)) * 4000)
    stream = DecompressedStream(io.BytesIO(data), "bz2")
    assert b"".join(iter(lambda: stream.read(7), b"")) == bytes(range(256)) * 4000


def test_data_before_the_damage_is_handed_over_first(make: Any) -> None:
    path = make("a.gz", gzip.compress(b"x" * 1000, mtime=0)[:-9])
    with open_path(str(path), "gz") as stream:
        got = b"".join(stream.read1(100) for _ in range(10))
        with pytest.raises(BadInput, match="truncated"):
            stream.read1(100)
    assert got == b"x" * 1000
