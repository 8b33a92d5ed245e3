"""Arrow IPC files whose bytes depend on their rows alone, and reads that check before they parse.

Writing: rows come in any grouping and go out in batches of a fixed number of rows, from buffers of exactly
the right size. (Arrow writes a sliced array together with up to 63 bytes of its neighbour as padding; so no
slice is ever handed to it.) No compression, no dictionaries, metadata version 5.

Reading: the footer is never used. The digest of the head is checked, then the schema parsed; the digest of a
batch's message is checked, then the batch parsed, validated and kept out of trouble: no compressed buffers (a
bomb), no nulls. Each batch is checked once per opened file. Reads are zero-copy out of a memory map.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Final

import pyarrow as pa

from m3build_formats.data_directory import Sink, TableShape
from m3build_formats.entries import Batches, FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.layout import ARROW_FILE_START, BATCH_DIGEST_BYTES

_KEPT_BATCHES: Final = 16


def write_table(sink: Sink, schema: Any, batches: Iterable[Any], rows_per_batch: int) -> TableShape:
    """Writes record batches of ``rows_per_batch`` rows each (the last may have fewer, none may be empty) as
    one Arrow IPC file.

    The batches must be freshly built, not sliced. Returns rows and the place and digest of every batch.
    """
    pipe = _Pipe()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V5, use_threads=False)
    head, ends, digests = b"", [], []
    rows, position, full = 0, 0, True
    writer = pa.ipc.new_file(pipe, schema, options=options)
    for batch in batches:
        if not full or not 0 < batch.num_rows <= rows_per_batch:
            raise ValueError(f"a batch of {batch.num_rows} rows where {rows_per_batch} are the rule")
        full = batch.num_rows == rows_per_batch
        rows += batch.num_rows
        writer.write_batch(batch)
        data = pipe.drain()
        if not head:
            # Arrow writes the head together with the first batch.
            head, data = _split_head(data)
            sink.write(head)
            position = len(head)
        sink.write(data)
        position += len(data)
        ends.append(position)
        digests.append(batch_digest(data))
    writer.close()
    rest = pipe.drain()
    if not head:
        head, rest = _split_head(rest)
        sink.write(head)
    sink.write(rest)
    return TableShape(
        rows, Batches(rows_per_batch, len(head), batch_digest(head), tuple(ends), tuple(digests))
    )


def exact_buffer(data: Any) -> Any:
    """An Arrow buffer over the memory of ``data`` (bytes or a contiguous array), of exactly its size and
    without a copy."""
    return pa.py_buffer(data)


def batch_digest(data: bytes | memoryview) -> str:
    """First 128 bits of the SHA-256, in hex."""
    return hashlib.sha256(data).digest()[:BATCH_DIGEST_BYTES].hex()


class CheckedArrowFile:
    """An Arrow file of a bank as mapped memory, with the checks of its manifest entry in front of every
    parse.

    ``data`` is the whole file, ``schema`` the schema it must have. Thread-safe. Raises CorruptError, which
    names ``entry.name`` and the batch.
    """

    def __init__(self, entry: FileEntry, data: memoryview, schema: Any) -> None:
        if entry.batches is None or entry.rows is None:
            raise CorruptError(f"{entry.name}: its manifest entry has no rows or batches")
        if data.nbytes != entry.bytes:
            raise CorruptError(f"{entry.name}: has {data.nbytes} bytes, expected {entry.bytes}")
        self.entry = entry
        self.rows: int = entry.rows
        self.schema = schema
        self._batches: Batches = entry.batches
        self._data = data
        self._checked = bytearray(len(entry.batches.ends))
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._check_head()

    @property
    def batch_count(self) -> int:
        return len(self._checked)

    @property
    def rows_per_batch(self) -> int:
        return self._batches.rows

    def rows_of(self, batch: int) -> int:
        """Rows that a batch has."""
        return min(self._batches.rows, self.rows - batch * self._batches.rows)

    def place(self, row: int) -> tuple[int, int]:
        """Batch of a row and its number in it; raises IndexError."""
        if not 0 <= row < self.rows:
            raise IndexError(f"row {row} of {self.entry.name}, which has {self.rows}")
        return divmod(row, self._batches.rows)

    def batch(self, number: int) -> Any:
        """The record batch ``number``, its digest checked before its first parse. The last few stay
        parsed."""
        with self._lock:
            found = self._kept.get(number)
            if found is not None:
                self._kept.move_to_end(number)
                return found
        found = self._parse(number)
        with self._lock:
            self._kept[number] = found
            if len(self._kept) > _KEPT_BATCHES:
                self._kept.popitem(last=False)
        return found

    def batches(self) -> Iterator[Any]:
        """All record batches in order; keeps none."""
        for number in range(self.batch_count):
            yield self._parse(number)

    def _parse(self, number: int) -> Any:
        start, end = self._batches.span(number)
        data = self._data[start:end]
        first = not self._checked[number]
        if first and batch_digest(data) != self._batches.digests[number]:
            raise self._corrupt(number, "its bytes do not have the digest in the manifest")
        try:
            message = pa.ipc.read_message(pa.py_buffer(data))
            if message.type != "record batch":
                raise self._corrupt(number, f"is a {message.type} message, not a record batch")
            if first and _is_compressed(memoryview(message.metadata)):
                raise self._corrupt(number, "is compressed, which format 1 does not allow")
            batch = pa.ipc.read_record_batch(message, self.schema)
            if first:
                batch.validate(full=True)
        except (pa.ArrowException, OSError, EOFError, struct.error, OverflowError, MemoryError) as error:
            raise self._corrupt(number, f"does not parse as Arrow ({first_line(error)})") from error
        if first:
            if batch.num_rows != self.rows_of(number):
                raise self._corrupt(number, f"has {batch.num_rows} rows, expected {self.rows_of(number)}")
            if any(_has_nulls(column) for column in batch.columns):
                raise self._corrupt(number, "holds nulls, which format 1 does not allow")
            self._checked[number] = 1
        return batch

    def _check_head(self) -> None:
        name, size = self.entry.name, self._batches.head_bytes
        head = self._data[:size]
        if batch_digest(head) != self._batches.head_digest:
            raise CorruptError(
                f"{name}: its first {size} bytes (the schema) do not have the digest in the manifest"
            )
        if bytes(head[: len(ARROW_FILE_START)]) != ARROW_FILE_START:
            raise CorruptError(f"{name}: is not an Arrow file")
        try:
            schema = pa.ipc.read_schema(pa.py_buffer(head[len(ARROW_FILE_START) :]))
        except (pa.ArrowException, OSError, EOFError, OverflowError, MemoryError) as error:
            raise CorruptError(f"{name}: its schema does not parse ({first_line(error)})") from error
        if not schema.equals(self.schema, check_metadata=True):
            raise CorruptError(f"{name}: has other columns than format 1 gives it")

    def _corrupt(self, number: int, message: str) -> CorruptError:
        first = number * self._batches.rows
        last = first + self.rows_of(number) - 1
        return CorruptError(f"{self.entry.name}: record batch {number} (rows {first} to {last}) {message}")


def first_line(error: Exception) -> str:
    """An error of Arrow in a few words: the start of its first line, made printable, or its class."""
    line = (str(error).splitlines() or [type(error).__name__])[0][:120]
    return line if line.isprintable() else repr(line)


class _Pipe(io.RawIOBase):
    """The file that Arrow's writer sees; what it wrote is taken out batch by batch."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._position = 0

    def write(self, data: Any) -> int:
        part = bytes(memoryview(data))
        self._parts.append(part)
        self._position += len(part)
        return len(part)

    def tell(self) -> int:
        return self._position

    def writable(self) -> bool:
        return True

    def drain(self) -> bytes:
        data = b"".join(self._parts)
        self._parts.clear()
        return data


def _split_head(data: bytes) -> tuple[bytes, bytes]:
    """Magic and schema message, and what follows. The message is 0xFFFFFFFF, its length as int32, and that
    many bytes (Arrow columnar format, "Encapsulated message format"); a schema message has no body."""
    start = len(ARROW_FILE_START)
    marker, length = struct.unpack_from("<Ii", data, start)
    if data[:start] != ARROW_FILE_START or marker != 0xFFFFFFFF or length <= 0:
        raise RuntimeError("pyarrow wrote a file head of an unknown form")
    end = start + 8 + length
    return data[:end], data[end:]


def _is_compressed(metadata: memoryview) -> bool:
    """Whether a RecordBatch message's metadata (a FlatBuffers table Message) names a body compression: field
    3 of its header table. pyarrow has verified the structure by the time this runs, and does not tell."""

    def field(table: int, slot: int) -> int:
        vtable = table - struct.unpack_from("<i", metadata, table)[0]
        if vtable < 0 or 4 + 2 * slot + 2 > struct.unpack_from("<H", metadata, vtable)[0]:
            return 0
        offset: int = struct.unpack_from("<H", metadata, vtable + 4 + 2 * slot)[0]
        return table + offset if offset else 0

    # Message: version, header_type, header, bodyLength; RecordBatch: length, nodes, buffers, compression.
    message = struct.unpack_from("<I", metadata, 0)[0]
    place = field(message, 2)
    if not place:
        return False
    header = place + struct.unpack_from("<I", metadata, place)[0]
    return field(header, 3) != 0


def _has_nulls(column: Any) -> bool:
    if column.null_count:
        return True
    if pa.types.is_list(column.type) or pa.types.is_fixed_size_list(column.type):
        return _has_nulls(column.flatten())
    if pa.types.is_struct(column.type):
        return any(_has_nulls(column.field(number)) for number in range(column.type.num_fields))
    return False
