"""Reads .gz, .bz2, .xz and .zst as streams, with memory bounded whatever the data claims to expand to.

The standard library's file objects are not used since each treats the ends differently: a cut-off zstd
frame reads as a clean end, gzip raises before it has handed over what it had, trailing bytes are an error
in one and ignored in the next. Here every format is one small decoder with the same three questions, and
one loop around them keeps what came before the damage:

- all data before a truncation or damage is handed over first, then BadInput says where (in decompressed
  bytes) and why, once;
- several members or frames in a row are read as one stream; zero bytes between and after them are padding;
- other bytes behind the last member are damage at that point.
"""

from __future__ import annotations

import bz2
import io
import lzma
import zlib
from typing import BinaryIO, Protocol

from m3build.corpus.source import BadInput, SourceFile

SUFFIXES = {".gz": "gz", ".bz2": "bz2", ".xz": "xz", ".zst": "zst"}
MAGIC = {b"\x1f\x8b\x08": "gz", b"BZh": "bz2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zst"}
NAMES = {"gz": "gzip", "bz2": "bzip2", "xz": "xz", "zst": "zstd"}

BUFFER_BYTES = 256 * 1024
_INPUT_BYTES = 64 * 1024
# zstandard has no limit on the output of one call. A block of 4 bytes can stand for 128 KiB, so 512 bytes
# of input make 16 MiB at most.
_ZSTD_INPUT_BYTES = 512
_XZ_MEMORY_BYTES = 512 * 1024 * 1024


class _Decoder(Protocol):
    """One member: ``step`` takes input and gives (output, input left over); ``done`` at the member's end,
    ``hungry`` if only input helps."""

    done: bool
    hungry: bool

    def step(self, data: bytes, limit: int) -> tuple[bytes, bytes]: ...


class _Gzip:
    def __init__(self) -> None:
        self._inner = zlib.decompressobj(wbits=31)
        self.done = False
        self.hungry = True

    def step(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        output = self._inner.decompress(data, limit)
        self.done = self._inner.eof
        return output, self._inner.unused_data if self.done else self._inner.unconsumed_tail


class _Buffering:
    """bzip2 and xz keep input of their own; ``hungry`` tells whether there is output to fetch without
    giving them more."""

    def __init__(self, inner: bz2.BZ2Decompressor | lzma.LZMADecompressor) -> None:
        self._inner = inner
        self.done = False
        self.hungry = True

    def step(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        output = self._inner.decompress(data, limit)
        self.done = self._inner.eof
        self.hungry = self._inner.needs_input
        return output, self._inner.unused_data if self.done else b""


class _Zstd:
    def __init__(self) -> None:
        import zstandard

        self._inner = zstandard.ZstdDecompressor().decompressobj()
        self.done = False
        self.hungry = True

    def step(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        import zstandard

        try:
            output = self._inner.decompress(data[:_ZSTD_INPUT_BYTES])
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        self.done = self._inner.eof
        rest = data[_ZSTD_INPUT_BYTES:]
        return output, self._inner.unused_data + rest if self.done else rest


def _decoder(compression: str) -> _Decoder:
    match compression:
        case "gz":
            return _Gzip()
        case "bz2":
            return _Buffering(bz2.BZ2Decompressor())
        case "xz":
            return _Buffering(lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES))
        case "zst":
            return _Zstd()
    raise ValueError(f"unknown compression {compression!r}")


class DecompressedStream(io.RawIOBase):
    """The decompressed bytes of ``raw``; closes it when closed. Wrap it in io.BufferedReader for lines and
    sizes."""

    def __init__(self, raw: BinaryIO, compression: str) -> None:
        super().__init__()
        self._raw = raw
        self._compression = compression
        self._decoder: _Decoder | None = None
        self._input = b""
        self._members = 0
        self._member_bytes = 0
        self._output = b""
        self._produced = 0
        self._ended = False

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._output and not self._ended:
            self._output = self._next(max(len(view), 1))
            self._produced += len(self._output)
        size = min(len(view), len(self._output))
        view[:size] = self._output[:size]
        self._output = self._output[size:]
        return size

    def _next(self, limit: int) -> bytes:
        if self._decoder is None and not self._begin_member():
            self._ended = True
            return b""
        decoder = self._decoder
        if decoder is None:
            return b""
        at_end = False
        if not self._input and decoder.hungry:
            self._input = self._raw.read(_INPUT_BYTES)
            at_end = not self._input
        try:
            output, self._input = decoder.step(self._input, limit)
        except (zlib.error, lzma.LZMAError, OSError, ValueError, EOFError) as error:
            name = NAMES[self._compression]
            if self._members and not self._member_bytes:
                raise self._bad(f"trailing bytes that are not {name} data") from error
            raise self._bad(f"damaged {name} data ({error})") from error
        self._member_bytes += len(output)
        if decoder.done:
            self._decoder = None
            self._members += 1
        elif at_end and not output:
            raise self._bad(
                f"truncated {NAMES[self._compression]} data; what comes before is kept where it makes records"
            )
        return output

    def _begin_member(self) -> bool:
        """Starts the next member; False at a clean end of the input."""
        while True:
            if not self._input:
                self._input = self._raw.read(_INPUT_BYTES)
            if not self._input:
                if self._members:
                    return False
                raise self._bad(f"truncated {NAMES[self._compression]} data: the file is empty")
            if self._members:
                self._input = self._input.lstrip(b"\0")
            if self._input:
                break
        self._decoder = _decoder(self._compression)
        self._member_bytes = 0
        return True

    def _bad(self, reason: str) -> BadInput:
        return BadInput(f"offset {self._produced}", reason)


def open_bytes(file: SourceFile) -> io.BufferedReader:
    """The decompressed bytes of a file. Raises OSError here, BadInput while reading."""
    return open_path(file.path, file.compression)


def open_path(path: str, compression: str | None) -> io.BufferedReader:
    """Like ``open_bytes``, for a path that is not yet a SourceFile."""
    raw = open(path, "rb", buffering=0 if compression else BUFFER_BYTES)  # noqa: SIM115
    if compression is None:
        return raw  # type: ignore[return-value]
    return io.BufferedReader(DecompressedStream(raw, compression), BUFFER_BYTES)
