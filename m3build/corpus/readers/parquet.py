"""Parquet: ranges are runs of row groups, read in small batches through buffered column readers; positions
are row numbers.

Only the needed columns are read. The text column stays in its dictionary form where the file has one, so a
page that says "this long string, a million times" is not written out. A damaged row group is one reject,
and the next one is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, BinaryIO

from m3build.corpus.options import SourceOptions
from m3build.corpus.registry import Format
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile, SourceRange
from m3build.corpus.table import check_columns, first_line, open_table, rows
from m3build.records import Document, Reject

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SURENESS = 9
_MAGIC = b"PAR1"
_BUFFER_BYTES = 1024 * 1024
_BATCH_BYTES = 4 * 1024 * 1024
_MAX_BATCH_ROWS = 1024


def _open(handle: BinaryIO, options: SourceOptions) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(
            handle,
            read_dictionary=[options.text_field],
            buffer_size=_BUFFER_BYTES,
            pre_buffer=False,
            page_checksum_verification=True,
        )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadInput(WHOLE_FILE, f"not a readable Parquet file: {first_line(error)}") from error


def split(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """Runs of row groups of about ``range_bytes`` (as stored); one range for a compressed file."""
    if file.compression is not None:
        return [SourceRange(file)]
    with open_table(file) as handle, _open(handle, options) as table:
        metadata = table.metadata
        ranges: list[SourceRange] = []
        start = first = size = count = 0
        for group in range(metadata.num_row_groups):
            size += metadata.row_group(group).total_byte_size
            count += metadata.row_group(group).num_rows
            if size >= options.range_bytes or group + 1 == metadata.num_row_groups:
                ranges.append(SourceRange(file, start, group + 1, first))
                start, first, size = group + 1, count, 0
    return ranges if len(ranges) > 1 else [SourceRange(file)]


def read(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
    """The rows of the range's row groups."""
    import pyarrow as pa

    file = part.file
    with open_table(file) as handle, _open(handle, options) as table:
        columns = check_columns(table.schema_arrow, options)
        metadata = table.metadata
        end = metadata.num_row_groups if part.end is None else part.end
        first = part.first
        for group in range(part.start, end):
            row = first
            first += metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(
                    _batch_rows(table, group, columns), row_groups=[group], columns=columns, use_threads=False
                ):
                    yield from rows(batch, row, file, options)
                    row += batch.num_rows
            except (pa.ArrowException, OSError, ValueError) as error:
                yield Reject(
                    file.name, f"row group {group}, row {row}", f"damaged Parquet data: {first_line(error)}"
                )


def _batch_rows(table: pq.ParquetFile, group: int, columns: list[str]) -> int:
    """Rows that take about _BATCH_BYTES, going by the sizes in the footer."""
    metadata = table.metadata.row_group(group)
    size = sum(
        metadata.column(index).total_uncompressed_size
        for index in range(metadata.num_columns)
        if metadata.column(index).path_in_schema.split(".")[0] in columns
    )
    per_row = size // max(metadata.num_rows, 1)
    return int(max(1, min(_MAX_BATCH_ROWS, _BATCH_BYTES // max(per_row, 1))))


def sniff(head: bytes, text: str | None) -> int:
    """Parquet's magic bytes."""
    return SURENESS if head.startswith(_MAGIC) else 0


FORMAT = Format("parquet", (".parquet", ".pq"), read, split, sniff)
