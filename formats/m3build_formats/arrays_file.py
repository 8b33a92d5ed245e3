"""Named numpy arrays in one Arrow file: codebooks (``.codec.arrow``) and what an embedder learnt
(``.embedder.arrow``).

One array is one row and one record batch: its name, its dtype (from a fixed list), its shape, and its values
as little-endian bytes in C order. So one array can be read without the others, and is checked before it is
parsed like any other batch. Rows are sorted by name: the file depends on the arrays alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa

from m3build_formats.arrow_file import CheckedArrowFile, exact_buffer, write_table
from m3build_formats.data_directory import FileTarget
from m3build_formats.entries import FileEntry
from m3build_formats.errors import CorruptError
from m3build_formats.layout import ARRAY_DTYPES, ARRAY_ROWS_PER_BATCH, MAX_ARRAY_DIMENSIONS, MAX_ARRAYS

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS_SCHEMA: Final = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.field("item", pa.int64(), nullable=False)), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)


def write_arrays(target: FileTarget, kind: str, arrays: Mapping[str, NDArray[Any]]) -> FileEntry:
    """Writes ``arrays`` as a file of ``kind`` "codec" or "embedder". dtypes are those of
    `layout.ARRAY_DTYPES`; raises ValueError for others."""
    for name, array in arrays.items():
        if array.dtype.name not in ARRAY_DTYPES or array.ndim > MAX_ARRAY_DIMENSIONS or not name:
            raise ValueError(
                f"array {name!r} of {array.dtype} with {array.ndim} dimensions has no place in format 1"
            )
    if len(arrays) > MAX_ARRAYS:
        raise ValueError(f"{len(arrays)} arrays, format 1 allows {MAX_ARRAYS}")
    batches = (_batch(name, arrays[name]) for name in sorted(arrays))
    return target.add_file(kind, lambda sink: write_table(sink, ARRAYS_SCHEMA, batches, ARRAY_ROWS_PER_BATCH))


def read_arrays(entry: FileEntry, data: memoryview) -> dict[str, NDArray[Any]]:
    """All arrays of the mapped file ``data``, read-only and without a copy; raises CorruptError."""
    return dict(iterate_arrays(entry, data))


def iterate_arrays(entry: FileEntry, data: memoryview) -> Iterator[tuple[str, NDArray[Any]]]:
    """Name and array of each row in turn; raises CorruptError."""
    if (entry.rows or 0) > MAX_ARRAYS:
        raise CorruptError(f"{entry.name}: holds {entry.rows} arrays, format 1 allows {MAX_ARRAYS}")
    previous = ""
    for batch in CheckedArrowFile(entry, data, ARRAYS_SCHEMA).batches():
        for row in range(batch.num_rows):
            name = batch.column("name")[row].as_py()
            if name <= previous:
                raise CorruptError(
                    f"{entry.name}: array {name[:80]!r} is not in order of names, or twice there"
                )
            previous = name
            yield name, _array(entry, name, batch, row)


def _batch(name: str, array: NDArray[Any]) -> Any:
    data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1)
    offsets = exact_buffer(np.array([0, data.nbytes], np.int64))
    shape = pa.array([list(array.shape)], ARRAYS_SCHEMA.field("shape").type)
    return pa.record_batch(
        [
            pa.array([name], pa.string()),
            pa.array([array.dtype.name], pa.string()),
            shape,
            pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, exact_buffer(data)]),
        ],
        schema=ARRAYS_SCHEMA,
    )


def _array(entry: FileEntry, name: str, batch: Any, row: int) -> NDArray[Any]:
    dtype, shape = batch.column("dtype")[row].as_py(), batch.column("shape")[row].as_py()
    if dtype not in ARRAY_DTYPES:
        raise CorruptError(
            f"{entry.name}: array {name[:80]!r} has the dtype {dtype[:40]!r}, which format 1 does not know"
        )
    kind = np.dtype(dtype).newbyteorder("<")
    values = batch.column("data")[row].as_buffer()
    if (
        len(shape) > MAX_ARRAY_DIMENSIONS
        or min(shape, default=0) < 0
        or math.prod(shape) * kind.itemsize != values.size
    ):
        raise CorruptError(
            f"{entry.name}: array {name[:80]!r} has {values.size} bytes, not those of its shape {shape[:9]}"
        )
    try:
        array = np.frombuffer(values, kind).reshape(shape)
    except ValueError as error:
        # numpy bounds even the shape of an array without elements.
        raise CorruptError(
            f"{entry.name}: array {name[:80]!r} has an impossible shape {shape[:9]}"
        ) from error
    array.flags.writeable = False
    return array
