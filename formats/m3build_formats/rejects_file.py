"""What could not be used of the sources: JSON lines {kind, reason, source, where} in one zstd frame.

A stranger's frame may declare any size and window; both are looked at before anything is decompressed
(python-zstandard ignores its own output limit where a frame declares its size), and text comes out in small
pieces, never all at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import zstandard

from m3build_formats.canonical_json import canonical_json, parse_json
from m3build_formats.data_directory import FileTarget, Sink, TableShape
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.layout import (
    MAX_REJECT_LINE_BYTES,
    MAX_REJECTS_TEXT_BYTES,
    MAX_ZSTD_WINDOW_BYTES,
    ZSTD_LEVEL,
)

_PIECE_BYTES = 1 << 16
_BLOCK_HEADER_BYTES = 3
_CHECKSUM_BYTES = 4
_REPEATED_BYTE = 1  # the kind of a block that holds one byte to be repeated
_MAX_FIELD_CHARACTERS = 4096
_FIELDS = ("kind", "reason", "source", "where")


@dataclass(frozen=True, slots=True)
class RejectRow:
    """A piece of input left out. ``kind`` is "reject" (bad input) or "unsupported" (a file of a kind that is
    not read)."""

    source: str
    where: str
    reason: str
    kind: str = "reject"


def write_rejects(target: FileTarget, rows: Iterable[RejectRow]) -> FileEntry:
    """Writes the rejects in the order given. A field longer than 4,096 characters is cut there, and a lone
    surrogate (from a file name that is not UTF-8) written as ``\\udcxx`` text: a reject must never fail for
    being odd."""

    def write(sink: Sink) -> TableShape:
        count, size = 0, 0
        parameters = zstandard.ZstdCompressionParameters.from_level(ZSTD_LEVEL, write_checksum=1)
        compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
        for row in rows:
            line = _line(row)
            size += len(line)
            if size > MAX_REJECTS_TEXT_BYTES:
                break
            sink.write(compressor.compress(line))
            count += 1
        sink.write(compressor.flush())
        return TableShape(count)

    return target.add_file("rejects", write)


def read_rejects(entry: FileEntry, data: memoryview) -> Iterator[RejectRow]:
    """The rejects in ``data``, the bytes of the file after its SHA-256 was checked; raises CorruptError at
    the first thing wrong."""
    count = 0
    for line in _lines(entry, data):
        try:
            value = parse_json(line)
        except ValueError as error:
            raise CorruptError(f"{entry.name}: line {count + 1}: {error}") from None
        if (
            not isinstance(value, dict)
            or set(value) != set(_FIELDS)
            or not all(isinstance(item, str) for item in value.values())
        ):
            raise CorruptError(
                f"{entry.name}: line {count + 1} is not an object of the strings {', '.join(_FIELDS)}"
            )
        count += 1
        if entry.rows is not None and count > entry.rows:
            raise CorruptError(f"{entry.name}: holds more than the expected {entry.rows} lines")
        yield RejectRow(**value)
    if entry.rows is not None and count != entry.rows:
        raise CorruptError(f"{entry.name}: holds {count} lines, expected {entry.rows}")


def _line(row: RejectRow) -> bytes:
    fields = {name: getattr(row, name)[:_MAX_FIELD_CHARACTERS] for name in _FIELDS}
    text = {name: value.encode("utf-8", "backslashreplace").decode() for name, value in fields.items()}
    return canonical_json(text).encode() + b"\n"


def _lines(entry: FileEntry, data: memoryview) -> Iterator[bytes]:
    rest, total = b"", 0
    for piece in _pieces(entry, data):
        total += len(piece)
        if total > MAX_REJECTS_TEXT_BYTES:
            raise CorruptError(f"{entry.name}: decompresses to more than {MAX_REJECTS_TEXT_BYTES} bytes")
        *whole, rest = (rest + piece).split(b"\n")
        if max(map(len, (*whole, rest))) > MAX_REJECT_LINE_BYTES:
            raise CorruptError(f"{entry.name}: has a line of more than {MAX_REJECT_LINE_BYTES} bytes")
        yield from whole
    if rest:
        raise CorruptError(f"{entry.name}: does not end with a line feed")


def _pieces(entry: FileEntry, data: memoryview) -> Iterator[bytes]:
    try:
        frame = zstandard.get_frame_parameters(data[:64])
        if frame.window_size > MAX_ZSTD_WINDOW_BYTES:
            raise CorruptError(f"{entry.name}: its zstd frame asks for a window of {frame.window_size} bytes")
        declared = frame.content_size
        if (
            declared not in (zstandard.CONTENTSIZE_UNKNOWN, zstandard.CONTENTSIZE_ERROR)
            and declared > MAX_REJECTS_TEXT_BYTES
        ):
            raise CorruptError(f"{entry.name}: its zstd frame declares {declared} bytes")
        if _frame_bytes(data, frame.has_checksum) != data.nbytes:
            raise CorruptError(f"{entry.name}: is not one whole zstd frame")
        decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_ZSTD_WINDOW_BYTES)
        with decompressor.stream_reader(data, read_across_frames=False) as reader:
            while piece := reader.read(_PIECE_BYTES):
                yield piece
    except zstandard.ZstdError as error:
        raise CorruptError(f"{entry.name}: does not decompress ({error})") from error


def _frame_bytes(data: memoryview, has_checksum: bool) -> int | None:
    """Bytes of the zstd frame that ``data`` begins with, from the headers of its blocks (RFC 8878, 3.1.1);
    None where it is cut off or is a frame without data. The decompressor stops in silence at the end of a
    frame, and at the end of half a frame too."""
    if bytes(data[: len(zstandard.FRAME_HEADER)]) != zstandard.FRAME_HEADER:
        return None
    place, last = zstandard.frame_header_size(data[:64]), False
    while not last:
        block = int.from_bytes(data[place : place + _BLOCK_HEADER_BYTES], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        place += _BLOCK_HEADER_BYTES + (1 if kind == _REPEATED_BYTE else size)
        if place > data.nbytes:
            return None
    return place + _CHECKSUM_BYTES * has_checksum
