"""Parquet: ranges are runs of row groups, read in small batches through buffered column readers; positions
are row numbers. Only the needed columns are read. A damaged row group is one reject, and the next one is
read.

How many rows a batch may have is a question of memory, since a page can say "this long string, a million
times":

- a row group of at most 32 MiB is read in dictionary form, in which no string is written out twice;
- in a larger one that form would collect every string, so it is read plainly, through a buffer, a few rows at
  a time.

(The sizes of single columns would be the better measure, but pyarrow lets exceptions of theirs abort the
process where a footer is damaged.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

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
_DICTIONARY_BYTES = 32 * 1024 * 1024
_BATCH_ROWS = 64
_BATCH_ROWS_OF_LARGE_GROUPS = 8


def _open(handle: BinaryIO, **settings: Any) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(handle, pre_buffer=False, page_checksum_verification=True, **settings)
        groups = [table.metadata.row_group(group) for group in range(table.metadata.num_row_groups)]
        if sum(group.num_rows for group in groups) != table.metadata.num_rows or any(
            g.num_rows < 0 for g in groups
        ):
            raise ValueError("the row counts in the footer contradict each other")
        return table
    except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
        raise BadInput(WHOLE_FILE, f"not a readable Parquet file: {first_line(error)}") from error


def split(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """Runs of row groups of about ``range_bytes`` (uncompressed); one range for a compressed file."""
    if file.compression is not None:
        return [SourceRange(file)]
    with open_table(file) as handle, _open(handle) as table:
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
    with open_table(file) as handle, _open(handle, buffer_size=_BUFFER_BYTES) as plain:
        columns = check_columns(plain.schema_arrow, options)
        metadata = plain.metadata
        by_dictionary = _open(handle, metadata=metadata, read_dictionary=[options.text_field])
        end = metadata.num_row_groups if part.end is None else part.end
        first = part.first
        for group in range(part.start, end):
            row = first
            first += metadata.row_group(group).num_rows
            table = by_dictionary if metadata.row_group(group).total_byte_size <= _DICTIONARY_BYTES else plain
            try:
                for batch in table.iter_batches(
                    _batch_rows(metadata.row_group(group)),
                    row_groups=[group],
                    columns=columns,
                    use_threads=False,
                ):
                    yield from rows(batch, row, file, options)
                    row += batch.num_rows
                if row != first:
                    raise ValueError(f"{row} rows up to here, where the footer says {first}")
            except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
                yield Reject(
                    file.name, f"row group {group}, row {row}", f"damaged Parquet data: {first_line(error)}"
                )


def _batch_rows(group: pq.RowGroupMetaData) -> int:
    """Rows that take about _BATCH_BYTES, going by the sizes in the footer, and few in any case."""
    most = _BATCH_ROWS if group.total_byte_size <= _DICTIONARY_BYTES else _BATCH_ROWS_OF_LARGE_GROUPS
    return int(max(1, min(most, _BATCH_BYTES * group.num_rows // max(group.total_byte_size, 1))))


def sniff(head: bytes, text: str | None) -> int:
    """Parquet's magic bytes."""
    return SURENESS if head.startswith(_MAGIC) else 0


FORMAT = Format("parquet", (".parquet", ".pq"), read, split, sniff)
