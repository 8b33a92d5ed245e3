"""Rejects and evaluation files: bombs, frames in odd numbers, JSON that is none."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping

import zstandard
from case import add, each
from forge import Forge

LINE = b'{"kind":"reject","reason":"r","source":"s","where":"w"}\n'
MAGIC = struct.pack("<I", 0xFD2FB528)


def _packed(data: bytes, **options: int) -> bytes:
    """One frame that does not declare its size."""
    compressor = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters.from_level(3, **options)
    ).compressobj()
    return compressor.compress(data) + compressor.flush()


def _zeros(blocks: int, window_log: int = 23) -> bytes:
    """A frame of blocks that each repeat one byte 2^17 times in 4 bytes: a bomb of factor 32,768."""
    frame = MAGIC + bytes([0x00, (window_log - 10) << 3])
    for number in range(blocks):
        header = (number == blocks - 1) | 1 << 1 | (1 << 17) << 3
        frame += header.to_bytes(3, "little") + b"\n"
    return frame


def _lines(count: int) -> bytes:
    """A frame of so many equal lines: a bomb of rows."""
    return _packed(LINE * count)


def _dictionary() -> bytes:
    words = zstandard.ZstdCompressionDict(LINE * 10)
    return zstandard.ZstdCompressor(dict_data=words).compress(LINE * 2)


REJECTS: Mapping[str, bytes] = {
    "nothing": b"",
    "no frame": LINE * 2,
    "gzip": gzip.compress(LINE * 2),
    "an old zstd": b"\x27\xb5\x2f\xfd" + bytes(20),
    "half a header": MAGIC + b"\x04",
    "half a frame": _packed(LINE * 1000)[:-20],
    "a wrong checksum": _packed(LINE * 2, write_checksum=1)[:-1] + b"\x99",
    "a window of 128 MB": _packed(LINE * 2, window_log=27),
    "a window of 2 TB": MAGIC + bytes([0x00, 31 << 3]) + bytes(9),
    "a declared size of 2^60": MAGIC + bytes([0xC0, 0x58]) + struct.pack("<Q", 1 << 60) + bytes(9),
    "a frame of one segment of 2^40": MAGIC + bytes([0xE0]) + struct.pack("<Q", 1 << 40) + bytes(9),
    "a bomb without lines": _zeros(4).replace(b"\n", b"x"),
    "a bomb of empty lines": _zeros(60_000),
    "a bomb of a million lines": _lines(1_000_000),
    "a dictionary": _dictionary(),
    "an unknown dictionary": MAGIC + bytes([0x23]) + struct.pack("<I", 7) + bytes([9]) + bytes(9),
    "a skippable frame first": struct.pack("<II", 0x184D2A50, 4) + b"1234" + _packed(LINE * 2),
    "a skippable frame of 4 GB": struct.pack("<II", 0x184D2A50, 2**32 - 1) + bytes(20),
    "two frames": _packed(LINE) + _packed(LINE),
    "a frame and garbage": _packed(LINE * 2) + b"garbage",
    "a frame and a skippable frame": _packed(LINE * 2) + struct.pack("<II", 0x184D2A50, 4) + b"1234",
    "fewer lines": _packed(LINE),
    "more lines": _packed(LINE * 3),
    "no line feed at the end": _packed(LINE + LINE[:-1]),
    "no JSON": _packed(LINE + b"{\n"),
    "a list": _packed(LINE + b"[]\n"),
    "a field too few": _packed(LINE + b'{"kind":"reject"}\n'),
    "a field too many": _packed(LINE + LINE.replace(b"{", b'{"a":"b",')),
    "a field that is a number": _packed(LINE + LINE.replace(b'"s"', b"1")),
    "a field twice": _packed(LINE + LINE.replace(b"{", b'{"where":"x",')),
    "a line that is not UTF-8": _packed(LINE + LINE.replace(b"s", b"\xff")),
    "a line that is nested": _packed(LINE + b"[" * 60_000 + b"\n"),
    "a line of 100,000 bytes": _packed(LINE + LINE.replace(b'"s"', b'"' + b"s" * 100_000 + b'"')),
    "a line of 66,000 bytes": _packed(LINE + LINE.replace(b'"s"', b'"' + b"s" * 66_000 + b'"')),
    "a carriage return": _packed(LINE + b"\r\n"),
}  # fmt: skip


@each(REJECTS, step="rejects", words="rejects")
def rejects_of(forge: Forge, data: bytes) -> None:
    """Two lines are expected."""
    forge.put(forge.manifest["files"]["rejects"], data)


def _rejects(forge: Forge, data: bytes, rows: int | None) -> None:
    forge.put(forge.manifest["files"]["rejects"], data)
    forge.manifest["files"]["rejects"]["rows"] = rows


add(
    "rejects without a number of lines",
    lambda forge: _rejects(forge, _lines(2), None),
    error="",
    verified=True,
)
add("rejects that are none", lambda forge: _rejects(forge, _packed(b""), 0), error="", verified=True)
add(
    "rejects with escapes",
    lambda forge: _rejects(forge, _packed(LINE.replace(b'"s"', rb'"\u001b[2J\u0000"')), 1),
    error="",
    verified=True,
)
add(
    "a bomb of rejects that says how many lines it has not",
    lambda forge: _rejects(forge, _lines(20_000), 1 << 40),
    step="rejects",
    words="expected",
)

EVALUATIONS: Mapping[str, bytes] = {
    "nothing": b"",
    "no JSON": b"loss: 1",
    "two values": b"{}{}",
    "NaN": b'{"loss":NaN}',
    "infinity": b'{"loss":1e999}',
    "an integer of 5,000 digits": b"1" * 5000,
    "a key twice": b'{"loss":1,"loss":2}',
    "lists in lists": b"[" * 1_000_000,
    "33 lists in lists": b"[" * 33 + b"]" * 33,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "a surrogate": b'"\\ud800"',
    "an open string": b'"' + b"x" * (1 << 20),
    "over the limit": b'"' + b"x" * (64 << 20) + b'"',
}


@each(EVALUATIONS, step="evaluation", words="eval")
def an_evaluation_of(forge: Forge, data: bytes) -> None:
    """JSON as this project defines it, or nothing."""
    forge.put(forge.manifest["files"]["eval"], data)


add(
    "an evaluation of many small lists",
    lambda forge: forge.put(forge.manifest["files"]["eval"], json.dumps([[]] * 50_000).encode()),
    error="",
    verified=True,
)
