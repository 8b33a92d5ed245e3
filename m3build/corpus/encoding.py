"""From bytes to text: byte order marks first, then the encoding asked for; what cannot be decoded costs its
record only.

Readers of records decode leniently with the error handler MARK, which puts a lone surrogate where bytes
made no sense; a lone surrogate can stand in no valid text, so the record that holds one is found by trying
to encode it, and only that record is lost.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator

from m3build.corpus.options import SourceOptions
from m3build.corpus.source import BadInput

# UTF-32 before UTF-16: the little-endian mark of the first begins with that of the second.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
LONGEST_MARK = 4
HEAD_BYTES = 64 * 1024
TEXT_CHUNK_BYTES = 64 * 1024
MARK = "m3build.mark"

_TEXT_CONTROLS = b"\t\n\v\f\r\b\x1b\x1a"
_CONTROLS = bytes(byte for byte in (*range(32), 127) if byte not in _TEXT_CONTROLS)
_BINARY_SHARE = 0.02
_ASCII = "".join(map(chr, range(128)))


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", max(error.end, error.start + 1)


codecs.register_error(MARK, _mark_undecodable)


def marked_encoding(head: bytes) -> str | None:
    """The encoding that a byte order mark at the start of ``head`` names, or None."""
    return next((name for mark, name in BYTE_ORDER_MARKS if head.startswith(mark)), None)


def encoding_of(head: bytes, options: SourceOptions) -> str:
    """The encoding of a file that begins with ``head``: that of its byte order mark, else the one asked for.

    UTF-16 and UTF-32 without a mark are taken for little-endian on every machine.
    """
    marked = marked_encoding(head)
    if marked is not None:
        return marked
    name = codecs.lookup(options.encoding).name
    return f"{name}-le" if name in ("utf-16", "utf-32") else options.encoding


def is_newline_safe(encoding: str) -> bool:
    """Whether ASCII is written as itself, so that lines can be found before decoding."""
    try:
        return _ASCII.encode(encoding) == _ASCII.encode()
    except UnicodeError:
        return False


def decode_document(data: bytes, options: SourceOptions) -> str:
    """Decodes a file that is one document and makes its line ends "\\n" (spans refer to the result). Raises
    BadInput with the byte offset."""
    encoding = encoding_of(data, options)
    try:
        text = data.decode(encoding, options.encoding_errors)
    except UnicodeDecodeError as error:
        raise BadInput(f"offset {error.start}", undecodable(encoding, error)) from error
    return unify_newlines(replace_surrogates(text) if has_surrogates(text) else text)


def unify_newlines(text: str) -> str:
    """``\\r\\n`` and ``\\r`` become ``\\n``."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def undecodable(encoding: str, error: UnicodeDecodeError) -> str:
    """Reason of a reject for bytes that are not in the encoding."""
    return f"not {encoding} ({error.reason}); give --encoding or --encoding-errors replace"


def has_surrogates(text: str) -> bool:
    """Whether ``text`` holds a lone surrogate, which no encoding can write."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def replace_surrogates(text: str) -> str:
    """Every lone surrogate becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def looks_binary(head: bytes) -> bool:
    """Whether the first bytes of a file are no text: a zero byte without a UTF-16 or UTF-32 mark, or many
    control characters."""
    if marked_encoding(head):
        return False
    if b"\0" in head:
        return True
    controls = len(head) - len(head.translate(None, _CONTROLS))
    return controls > _BINARY_SHARE * len(head)


def iterate_text(stream: io.BufferedReader, options: SourceOptions) -> Iterator[str]:
    """Decodes a stream piece by piece; undecodable bytes are MARKed (strict) or replaced."""
    decoder = codecs.getincrementaldecoder(encoding_of(stream.peek(LONGEST_MARK), options))(_lenient(options))
    # read1, not read: what was decompressed before damage arrives here before the damage is raised.
    while chunk := stream.read1(TEXT_CHUNK_BYTES):
        text = decoder.decode(chunk)
        if text:
            yield text
    if tail := decoder.decode(b"", final=True):
        yield tail


def open_text(stream: io.BufferedReader, options: SourceOptions) -> io.TextIOWrapper:
    """A text file over a stream, line ends as they are; undecodable bytes are MARKed (strict) or replaced."""
    encoding = encoding_of(stream.peek(LONGEST_MARK), options)
    return io.TextIOWrapper(stream, encoding=encoding, errors=_lenient(options), newline="")


def _lenient(options: SourceOptions) -> str:
    return MARK if options.encoding_errors == "strict" else "replace"
