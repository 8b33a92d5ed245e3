"""Whether the rows of sound files keep the rules of SPEC.md: what a hash cannot tell, since a wrong writer
hashes its wrong rows too.

Works batch by batch; holds the ids, token counts and documents of one shard at a time. At most
`MOST_PER_FILE` problems are listed for a file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from m3build_formats.arrays_file import iterate_arrays
from m3build_formats.arrow_file import first_line
from m3build_formats.cold_rows import cold_rows
from m3build_formats.entries import FileEntry, ShardEntry
from m3build_formats.errors import M3Error
from m3build_formats.evaluation_file import read_evaluation
from m3build_formats.layout import DATA_DIRECTORY, UNUSED_SLOT
from m3build_formats.manifest import Manifest
from m3build_formats.mapped_file import MappedFile
from m3build_formats.rejects_file import read_rejects
from m3build_formats.shard import Shard
from m3build_formats.verify_chunks import Documents, check_chunks
from m3build_formats.verify_report import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PER_FILE: Final = 20


def check_bank_file(kind: str, entry: FileEntry, directory: int) -> Iterator[Problem]:
    """Problems in the contents of a codec, embedder, rejects or evaluation file."""

    def contents() -> Iterator[Problem]:
        file = MappedFile(entry, directory)
        if kind in ("codec", "embedder"):
            for _ in iterate_arrays(entry, file.data):
                pass
            yield from _check_footer(entry, file.data)
        elif kind == "rejects":
            for _ in read_rejects(entry, file.data):
                pass
        else:
            read_evaluation(entry, file.data)

    yield from _guarded(entry, contents)


def check_shard(
    manifest: Manifest, entry: ShardEntry, directory: int, on_cold: Callable[[int], None]
) -> Iterator[Problem]:
    """Problems in the rows of a shard's tables; ``on_cold`` is told of cold rows of its memories, a few at a
    time."""
    opened: list[Shard] = []

    def open_shard() -> Iterator[Problem]:
        opened.append(Shard(entry, directory, manifest.row_bytes, manifest.embedder["dim"]))
        yield from ()

    yield from _guarded(entry.chunks, open_shard)
    if not opened:
        return
    shard, documents, tokens = opened[0], Documents(), np.zeros(entry.rows, np.uint16)
    yield from _guarded(entry.documents_file, lambda: documents.read(shard))
    yield from _guarded(entry.chunks, lambda: check_chunks(manifest, shard, documents, tokens))
    memories = entry.memories
    if memories is not None:
        yield from _guarded(memories, lambda: _check_memories(manifest, shard, memories, tokens, on_cold))
    yield from _guarded(entry.embeddings, lambda: _check_embeddings(shard))
    yield from _guarded(entry.index, lambda: _check_index(shard))
    for kind, file in entry.files():
        if kind != "index":
            yield from _guarded(file, lambda file=file: _check_footer(file, MappedFile(file, directory).data))  # type: ignore[misc]


def _guarded(entry: FileEntry, check: Callable[[], Iterator[Problem]]) -> Iterator[Problem]:
    """The first problems of a check; what it raises is one more."""
    file = f"{DATA_DIRECTORY}/{entry.name}"
    try:
        found = list(islice(check(), MOST_PER_FILE + 1))
        yield from found[:MOST_PER_FILE]
        if len(found) > MOST_PER_FILE:
            yield Problem(
                file, None, "and more", f"only the first {MOST_PER_FILE} problems of this file are listed"
            )
    except M3Error as error:
        yield Problem(file, None, "the file parses as its kind", str(error).removeprefix(f"{entry.name}: "))


def _check_memories(
    manifest: Manifest,
    shard: Shard,
    entry: FileEntry,
    tokens_of_rows: NDArray[np.uint16],
    on_cold: Callable[[int], None],
) -> Iterator[Problem]:
    file = f"{DATA_DIRECTORY}/{entry.name}"
    slots, vector = manifest.memory["sparse_tokens"], manifest.codec["bytes_per_vector"]
    heads = [len(of_layer) for of_layer in manifest.memory["memory_heads"]]
    first = 0
    for block in shard.memory_batches():
        tokens = tokens_of_rows[first : first + len(block), None, None]
        positions = block[:, manifest.row_codes_bytes :].reshape(len(block), sum(heads), slots)
        unused = positions == UNUSED_SLOT
        on_cold(int(cold_rows(block, manifest.row_codes_bytes).sum()))
        ascending = unused[:, :, 1:] | (positions[:, :, 1:] > positions[:, :, :-1])
        bad = (
            (~unused & (positions >= tokens)).any((1, 2))
            | (~ascending).any((1, 2))
            | (unused[:, :, :-1] & ~unused[:, :, 1:]).any((1, 2))
        )
        for row in np.flatnonzero(bad).tolist():
            yield Problem(
                file,
                first + row,
                "kept positions ascend within the tokens",
                "then 255 for unused slots; these do not",
            )
        for row in np.flatnonzero(_unused_codes(block, unused, heads, slots, vector)).tolist():
            yield Problem(file, first + row, "unused slots are zero", "the codes of an unused slot are not")
        first += len(block)


def _unused_codes(
    block: NDArray[np.uint8], unused: NDArray[np.bool_], heads: list[int], slots: int, vector: int
) -> NDArray[np.bool_]:
    """Whether a row has codes that are not zero in a slot that is unused: (n,)."""
    found = np.zeros(len(block), np.bool_)
    start = head = 0
    for count in heads:
        size = 2 * count * slots * vector
        codes = block[:, start : start + size].reshape(len(block), 2, count, slots, vector)
        found |= (codes.any(4) & unused[:, None, head : head + count]).any((1, 2, 3))
        start, head = start + size, head + count
    return found


def _check_index(shard: Shard) -> Iterator[Problem]:
    shard.index_bytes()
    yield from ()


def _check_embeddings(shard: Shard) -> Iterator[Problem]:
    file, first = f"{DATA_DIRECTORY}/{shard.entry.embeddings.name}", 0
    for block in shard.embeddings():
        for row in np.flatnonzero(~np.isfinite(block).all(1)).tolist():
            yield Problem(file, first + row, "embeddings are finite", "holds an infinity or NaN")
        first += len(block)


def _check_footer(entry: FileEntry, data: memoryview) -> Iterator[Problem]:
    """Whether other Arrow readers, which use the footer, see the batches that the manifest names."""
    file, expected = f"{DATA_DIRECTORY}/{entry.name}", len(entry.batches.ends) if entry.batches else 0
    try:
        found = pa.ipc.open_file(pa.py_buffer(data)).num_record_batches
    except (pa.ArrowException, OSError) as error:
        yield Problem(file, None, "readable as plain Arrow", first_line(error))
        return
    if found != expected:
        yield Problem(
            file,
            None,
            "readable as plain Arrow",
            f"its footer lists {found} batches, the manifest {expected}",
        )
