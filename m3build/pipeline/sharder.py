"""Cuts the stream of documents into shards by content, and folds equal texts of a shard into one row.

Documents come in canonical order. A shard may close only where a document begins, once it has its minimum of
chunks: at the first document whose id hash falls below its chunk count over that minimum, so that boundaries
lie about one minimum apart whether documents are long or short; or anywhere at its maximum. Where texts come
again and again, so that few of them make rows, every eighth occurrence or document counts as a row does: it
takes memory too. Where a shard ends thus depends on nearby documents alone, and an edit moves the boundaries
only up to the next common one.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from m3build.pipeline.chunk_spool import ChunkSpool
from m3build.records import Chunk
from m3build_formats.shard_tables import DocumentRow

MAXIMUM_OVER_MINIMUM = 4
# Occurrences and documents that count as one row.
MENTIONS_A_ROW = 8


class Shard:
    """The distinct references of a shard in order of first occurrence: their ids with their rows, and their
    ``chunks``; and its documents: (document, chunks of it here, part). To be closed.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self.rows: dict[bytes, int] = {}
        self.chunks = ChunkSpool(scratch)
        self.documents: list[tuple[DocumentRow, int, int]] = []
        # Row, row of the document, start and end of one occurrence after the other.
        self._occurrences = array("Q")

    @property
    def occurrences(self) -> int:
        """How many there are of all references."""
        return len(self._occurrences) // 4

    @property
    def mentions(self) -> int:
        """Occurrences and documents together."""
        return self.occurrences + len(self.documents)

    def add(self, key: bytes, chunk: Chunk) -> None:
        """Add a reference that is not there yet."""
        self.rows[key] = len(self.rows)
        self.chunks.append(chunk)

    def occurs(self, key: bytes, chunk: Chunk) -> None:
        """Note that a reference that is there occurs as this chunk of the document to be added next."""
        self._occurrences.extend((self.rows[key], len(self.documents), chunk.start, chunk.end))

    def occurrences_by_row(self) -> Iterator[list[tuple[int, int, int]]]:
        """Where each reference occurs, in order: (row of the document in the shard, start, end)."""
        table = np.frombuffer(self._occurrences, np.uint64).reshape(-1, 4)
        table = table[np.argsort(table[:, 0], kind="stable")]
        at = 0
        for count in np.bincount(table[:, 0].astype(np.int64)).tolist():
            yield [(document, start, end) for _, document, start, end in table[at : at + count].tolist()]
            at += count

    def close(self) -> None:
        """Forget the chunks, which may wait on disk."""
        self.chunks.close()


def reference_id(text: str) -> bytes:
    """Identity of a reference: SHA-256 of the UTF-8 of its reference text, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def cut_shards(
    documents: Iterable[tuple[DocumentRow, list[Chunk]]],
    minimum: int,
    leave_out: Callable[[bytes, str], bool] | None = None,
    scratch: Path | None = None,
) -> Iterator[Shard]:
    """Shards of ``minimum`` to ``MAXIMUM_OVER_MINIMUM * minimum`` rows, to be closed by whoever takes them.
    The last may be smaller, and so may one with ``MENTIONS_A_ROW`` times as many occurrences and documents.
    Chunks wait in ``scratch``.

    ``leave_out(id, reference text)`` may drop a chunk that is not yet in the shard (a near-duplicate); it is
    asked in canonical order.
    """
    maximum = minimum * MAXIMUM_OVER_MINIMUM
    most_mentions = maximum * MENTIONS_A_ROW
    shard = Shard(scratch)
    for document, chunks in documents:
        size = max(len(shard.rows), shard.mentions // MENTIONS_A_ROW)
        if shard.mentions >= most_mentions or (size >= minimum and is_boundary(document, minimum)):
            yield shard
            shard = Shard(scratch)
        part = here = 0
        for chunk in chunks:
            text = chunk.reference_text
            key = reference_id(text)
            is_new = key not in shard.rows
            if is_new and leave_out is not None and leave_out(key, text):
                continue
            if (is_new and len(shard.rows) >= maximum) or shard.mentions >= most_mentions:
                if here:
                    shard.documents.append((document, here, part))
                    part += 1
                yield shard
                shard, here, is_new = Shard(scratch), 0, True
            if is_new:
                shard.add(key, chunk)
            shard.occurs(key, chunk)
            here += 1
        shard.documents.append((document, here, part))
    if shard.documents:
        yield shard


def is_boundary(document: DocumentRow, minimum: int) -> bool:
    """Whether a shard that has its minimum closes before this document."""
    hashed = int.from_bytes(hashlib.sha256(document.id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return hashed * minimum < document.chunks << 64
