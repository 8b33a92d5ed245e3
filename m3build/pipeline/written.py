"""Reads back data files that this build has written or found in the bank's current version, a few rows at a
time.

Inside a build there is no manifest yet whose digests could be checked; the files were hashed as they were
written, or are checked by the caller before anything is reused.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from m3build.records import reference_text
from m3build_formats.cold_rows import cold_rows
from m3build_formats.manifest import FileEntry


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A data file, read by calls: what a mapping has touched counts as memory of the process until it is
    closed, and a build goes through whole files."""
    with pa.OSFile(str(path), "rb") as source:
        yield pa.ipc.open_file(source)


def reference_texts(data: Path, entry: FileEntry) -> Iterator[list[str]]:
    """The reference texts of a chunks file, in row order, a record batch at a time."""
    with _opened(data / entry.name) as file:
        for number in range(file.num_record_batches):
            batch: Any = file.get_batch(number)
            titles, texts = batch.column("title").to_pylist(), batch.column("text").to_pylist()
            yield [reference_text(title, text) for title, text in zip(titles, texts, strict=True)]


def reference_ids(data: Path, entry: FileEntry) -> Iterator[bytes]:
    """The ids of the references of a chunks file, 32 bytes each, in row order."""
    with _opened(data / entry.name) as file:
        for number in range(file.num_record_batches):
            column: Any = file.get_batch(number).column("id")
            yield from column.to_pylist()


def texts_of_rows(data: Path, entry: FileEntry, rows: Sequence[int]) -> list[str]:
    """The reference texts of single rows of a chunks file."""
    with _opened(data / entry.name) as file:
        each = entry.batches.rows if entry.batches else 1
        found = [""] * len(rows)
        wanted = np.asarray(rows, np.int64)
        for number in np.unique(wanted // each):
            batch: Any = file.get_batch(int(number))
            places = np.flatnonzero(wanted // each == number)
            here = batch.select(["title", "text"]).take(pa.array(wanted[places] % each))
            titles, texts = here.column("title").to_pylist(), here.column("text").to_pylist()
            for place, title, text in zip(places.tolist(), titles, texts, strict=True):
                found[place] = reference_text(title, text)
        return found


def memory_rows(data: Path, entry: FileEntry, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Single rows of a memories file, uint8 (len(rows), row bytes)."""
    # Mapped, since of a batch of a megabyte a row or two may be wanted.
    with pa.memory_map(str(data / entry.name)) as source:
        file = pa.ipc.open_file(source)
        each = entry.batches.rows if entry.batches else 1
        kind: Any = file.schema.field(0).type
        width: int = kind.byte_width
        found = np.empty((len(rows), width), np.uint8)
        for number in np.unique(rows // each):
            column: Any = file.get_batch(int(number)).column(0)
            whole = np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, width)
            here = rows // each == number
            found[here] = whole[rows[here] % each]
        return found


def cold_mask(data: Path, entry: FileEntry, codes_bytes: int) -> NDArray[np.bool_]:
    """Which rows of a memories file are cold: bool (rows,)."""
    found = [np.empty(0, np.bool_)]
    with _opened(data / entry.name) as file:
        kind: Any = file.schema.field(0).type
        for number in range(file.num_record_batches):
            column: Any = file.get_batch(number).column(0)
            found.append(
                cold_rows(
                    np.frombuffer(column.buffers()[1], np.uint8).reshape(-1, kind.byte_width), codes_bytes
                )
            )
    return np.concatenate(found)


def embedding_blocks(data: Path, entry: FileEntry) -> Iterator[NDArray[np.float16]]:
    """The vectors of an embeddings file in row order, float16 (n, dim), a record batch at a time."""
    with _opened(data / entry.name) as file:
        kind: Any = file.schema.field(0).type
        dim: int = kind.list_size
        for number in range(file.num_record_batches):
            column: Any = file.get_batch(number).column(0)
            yield column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
