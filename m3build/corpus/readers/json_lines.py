"""JSON lines: one object a line. The fast path of the compiler, and the one text format that can be cut
into byte ranges.

- A record is a line up to a line feed; blank lines are skipped. Its position is the offset of its first
  byte in the decompressed file (in a file that is UTF-16, UTF-32 or the like: in its UTF-8 form). A range
  owns the records whose first byte lies in it, so cutting needs no look at the file.
- The parser is the standard library's: it is fast enough, keeps integers of any size, where faster ones make
  floats of them, and a line that it cannot take is one reject. NaN and Infinity, which Python and pandas
  write, are read as null.
- A line over ``max_document_bytes`` is skipped to its end without being held. In a compressed file that
  skip has an end, so that a bomb of some kilobytes cannot keep a build busy for hours.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import BinaryIO

from m3build.corpus.compression import open_bytes
from m3build.corpus.encoding import LONGEST_MARK, encoding_of, is_newline_safe, iterate_text, undecodable
from m3build.corpus.options import SourceOptions
from m3build.corpus.record import document_of_record
from m3build.corpus.registry import Format
from m3build.corpus.source import BadInput, SourceFile, SourceRange
from m3build.records import Document, Reject

SURENESS = 3
_SKIP_BYTES = 1024 * 1024
_UTF8_MARK = b"\xef\xbb\xbf"
# How many times max_document_bytes a compressed line may go on before the rest of the file is given up.
SKIP_LIMIT = 64


def _null(_: str) -> None:
    return None


_decode = json.JSONDecoder(parse_constant=_null).decode


def parse_object(line: str) -> dict[str, object] | str:
    """The object that ``line`` holds, or the reason why it holds none."""
    try:
        value = _decode(line)
    except json.JSONDecodeError as error:
        return f"broken JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        return "broken JSON: nested too deeply"
    except ValueError as error:  # an integer of more digits than Python converts
        return f"broken JSON: {str(error).split(';')[0]}"
    return value if isinstance(value, dict) else "not a JSON object"


def split(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """Byte ranges of ``range_bytes``, or one range for a compressed file or an encoding in which lines
    cannot be found unread."""
    if file.compression is not None or file.bytes <= options.range_bytes:
        return [SourceRange(file)]
    with open_bytes(file) as stream:
        encoding = encoding_of(stream.read(LONGEST_MARK), options)
    if encoding != "utf-8-sig" and not is_newline_safe(encoding):
        return [SourceRange(file)]
    cuts = range(0, file.bytes, options.range_bytes)
    return [SourceRange(file, start, min(start + options.range_bytes, file.bytes)) for start in cuts]


def read(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
    """The records whose first byte lies in the range."""
    file = part.file
    with open_bytes(file) as opened:
        stream: BinaryIO = opened
        encoding = encoding_of(opened.peek(LONGEST_MARK), options)
        if encoding == "utf-8-sig":
            encoding = "utf-8"
        elif not is_newline_safe(encoding):
            stream, encoding = io.BufferedReader(_AsUtf8(opened, options)), "utf-8"
        position = 0
        if part.start:
            position = part.start - 1
            opened.seek(position)
            position += _skip_line(opened, part.end, position, None)
        yield from _records(stream, part, position, encoding, options)


def _records(
    stream: BinaryIO, part: SourceRange, position: int, encoding: str, options: SourceOptions
) -> Iterator[Document | Reject]:
    file, end, limit = part.file, part.end, options.max_document_bytes
    skip_limit = None if file.compression is None else SKIP_LIMIT * limit
    line_number = 0
    while end is None or position < end:
        line = stream.readline(limit + 1)
        if not line:
            return
        line_number += 1
        start = position
        position += len(line)
        if line.isspace() and len(line) <= limit:
            # 200 compressed bytes may hold millions of empty lines: they are not worth a parser's error each.
            continue
        where = f"offset {start}" if part.start else f"line {line_number}, offset {start}"
        if len(line) > limit and not line.endswith(b"\n"):
            yield Reject(
                file.name, where, f"a record of more than {limit:,} bytes; raise --max-document-bytes"
            )
            position += _skip_line(stream, end, position, skip_limit)
            continue
        if start == 0:
            line = line.removeprefix(_UTF8_MARK)
        try:
            text = line.decode(encoding, options.encoding_errors)
        except UnicodeDecodeError as error:
            yield Reject(file.name, where, undecodable(encoding, error))
            continue
        fields = parse_object(text)
        if not isinstance(fields, str):
            yield document_of_record(fields, file, start, where, options)
        elif text.strip():
            yield Reject(file.name, where, fields)


def _skip_line(stream: BinaryIO, end: int | None, position: int, limit: int | None) -> int:
    """Reads to the end of the line, or to ``end`` if that comes first, holding little; gives the bytes
    passed.

    A line over several ranges is read once in all. Raises BadInput past ``limit``.
    """
    passed = 0
    while end is None or position + passed < end:
        size = _SKIP_BYTES if end is None else min(_SKIP_BYTES, end - position - passed)
        piece = stream.readline(size)
        passed += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
        if limit is not None and passed > limit:
            raise BadInput(f"offset {position}", f"no line end for {limit:,} bytes; the rest is not read")
    return passed


class _AsUtf8(io.RawIOBase):
    """A stream recoded to UTF-8. Undecodable bytes become bytes that are no UTF-8 either, so that they cost
    their record alone."""

    def __init__(self, stream: io.BufferedReader, options: SourceOptions) -> None:
        super().__init__()
        self._texts = iterate_text(stream, options)
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        if not self._held:
            self._held = next(self._texts, "").encode("utf-8", "surrogatepass")
        size = min(len(view), len(self._held))
        view[:size] = self._held[:size]
        self._held = self._held[size:]
        return size


def sniff(head: bytes, text: str | None) -> int:
    """Text whose first line is a JSON object, or begins one and is longer than what was looked at."""
    if text is None or not text.lstrip("\ufeff").lstrip().startswith("{"):
        return 0
    first, newline, _ = text.lstrip("\ufeff").lstrip().partition("\n")
    if not newline:
        return SURENESS if first.startswith(('{"', '{ "', "{}")) else 0
    return SURENESS if isinstance(parse_object(first), dict) else 0


FORMAT = Format("jsonl", (".jsonl", ".ndjson", ".jsonlines", ".json"), read, split, sniff)
