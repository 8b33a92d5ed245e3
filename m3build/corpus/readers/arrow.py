"""Arrow IPC files (which Feather version 2 is) and Arrow IPC streams; ranges are runs of record batches.

A record batch is the smallest thing that can be read. Where batches are large the file is memory-mapped, so
that an uncompressed one is paged in as its rows are passed (Polars writes a frame of any size as one batch);
else it is read, since a map of a file that somebody truncates meanwhile would kill the process. Structure is
validated in full before a value is touched: Arrow trusts its offsets. Feather version 1 is refused by name:
pyarrow is giving it up, and its reader crashes on damaged files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from m3build.corpus.options import SourceOptions
from m3build.corpus.registry import Format
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile, SourceRange
from m3build.corpus.table import check_columns, first_line, open_table, rows
from m3build.records import Document, Reject

if TYPE_CHECKING:
    import pyarrow as pa

SURENESS = 9
_FILE_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"
_CONTINUATION = b"\xff\xff\xff\xff"
_MAPPED_BATCH_BYTES = 64 * 1024 * 1024


@contextmanager
def _opened(file: SourceFile) -> Iterator[tuple[bytes, pa.NativeFile]]:
    """The first bytes of the file and the file."""
    import pyarrow as pa

    with open_table(file) as handle, pa.PythonFile(cast("Any", handle), mode="r") as native:
        magic = handle.read(len(_FILE_MAGIC))
        handle.seek(0)
        yield magic, native


def _batch_count(native: pa.NativeFile) -> int:
    import pyarrow as pa

    return int(pa.ipc.open_file(native).num_record_batches)


def split(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """Runs of record batches of about ``range_bytes``, taking them for equally large; one range for a
    stream or a compressed file."""
    import pyarrow as pa

    if file.compression is not None or file.bytes <= options.range_bytes:
        return [SourceRange(file)]
    try:
        with _opened(file) as (magic, native):
            if magic != _FILE_MAGIC:
                return [SourceRange(file)]
            count = _batch_count(native)
            step = max(1, options.range_bytes * count // file.bytes)
            if step >= count:
                return [SourceRange(file)]
            # No column is needed to count rows; Arrow wants one to be named.
            reader = pa.ipc.open_file(native, options=pa.ipc.IpcReadOptions(included_fields=[0]))
            ranges: list[SourceRange] = []
            first = 0
            for start in range(0, count, step):
                end = min(start + step, count)
                ranges.append(SourceRange(file, start, end, first))
                first += sum(reader.get_batch(index).num_rows for index in range(start, end))
            return ranges
    except (pa.ArrowException, ValueError, MemoryError):
        return [SourceRange(file)]


def read(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
    """The rows of the range's record batches."""
    import pyarrow as pa

    row = part.first
    try:
        with _opened(part.file) as (magic, native):
            for batch in _batches(magic, native, part, options):
                problem = _invalid(batch)
                if problem:
                    yield Reject(
                        part.file.name,
                        f"rows {row} to {row + batch.num_rows - 1}",
                        f"damaged Arrow data: {problem}",
                    )
                else:
                    yield from rows(batch, row, part.file, options)
                row += batch.num_rows
    except (pa.ArrowException, ValueError, MemoryError) as error:
        raise BadInput(
            f"row {row}" if row else WHOLE_FILE, f"not a readable Arrow file: {first_line(error)}"
        ) from error


def _batches(
    magic: bytes, native: pa.NativeFile, part: SourceRange, options: SourceOptions
) -> Iterator[pa.RecordBatch]:
    """The batches of a range, with the needed columns only."""
    import pyarrow as pa

    if magic.startswith(_FEATHER_1_MAGIC):
        raise BadInput(
            WHOLE_FILE, "Feather version 1 is not read; write it anew as version 2, with pyarrow or pandas"
        )
    if magic != _FILE_MAGIC:
        with pa.ipc.open_stream(native) as stream:
            columns = check_columns(stream.schema, options)
            for batch in stream:
                yield batch.select(columns)
            if native.read(1):
                raise ValueError("the stream ends before the file does")
        return
    file = part.file
    count = _batch_count(native)
    is_mapped = file.compression is None and file.bytes > count * _MAPPED_BATCH_BYTES
    source = pa.memory_map(file.path) if is_mapped else native
    schema = pa.ipc.open_file(source).schema
    columns = check_columns(schema, options)
    indices = [schema.get_field_index(name) for name in columns]
    reader = pa.ipc.open_file(source, options=pa.ipc.IpcReadOptions(included_fields=indices))
    for index in range(part.start, count if part.end is None else part.end):
        yield reader.get_batch(index)


def _invalid(batch: pa.RecordBatch) -> str:
    """What is wrong with the structure of a batch, or "". Strings are checked as bytes: one that is not
    UTF-8 is its row's fault only."""
    import pyarrow as pa

    as_bytes = {
        pa.string(): pa.binary(),
        pa.large_string(): pa.large_binary(),
        pa.string_view(): pa.binary_view(),
    }
    try:
        for column in batch.columns:
            other = as_bytes.get(column.type)
            (column if other is None else column.view(other)).validate(full=True)
    except (pa.ArrowException, ValueError, MemoryError) as error:
        return first_line(error)
    return ""


def sniff(head: bytes, text: str | None) -> int:
    """The magic bytes of either file format, or the length and type of a stream's first message."""
    if head.startswith((_FILE_MAGIC, _FEATHER_1_MAGIC)):
        return SURENESS
    return SURENESS if head.startswith(_CONTINUATION) and head[6:8] == b"\0\0" else 0


FORMAT = Format("arrow", (".arrow", ".feather", ".ipc", ".arrows"), read, split, sniff)
