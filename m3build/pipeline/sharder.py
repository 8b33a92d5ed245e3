"""Cuts the stream of documents into shards by content, and folds equal texts of a shard into one row.

Documents come in canonical order. A shard may close only where a document begins, once it has its minimum of
chunks: at the first document whose id hash falls below its chunk count over that minimum, so that boundaries
lie about one minimum apart whether documents are long or short; or anywhere at its maximum. Where a shard
ends thus depends on nearby documents alone, and an edit moves the boundaries only up to the next common one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from m3build.records import Chunk
from m3build_formats.shard_tables import DocumentRow

MAXIMUM_OVER_MINIMUM = 4


@dataclass(slots=True)
class Row:
    """One distinct reference of a shard and where it occurs: (row of the document in the shard, start, "
    "end)."""

    id: bytes
    chunk: Chunk
    occurrences: list[tuple[int, int, int]]


@dataclass(slots=True)
class Shard:
    """A shard's rows in order of first occurrence, and its documents: (document, chunks of it here, part)."""

    rows: dict[bytes, Row] = field(default_factory=dict)
    documents: list[tuple[DocumentRow, int, int]] = field(default_factory=list)
    occurrences: int = 0


def reference_id(text: str) -> bytes:
    """Identity of a reference: SHA-256 of the UTF-8 of its reference text, 32 bytes."""
    return hashlib.sha256(text.encode("utf-8")).digest()


def cut_shards(
    documents: Iterable[tuple[DocumentRow, list[Chunk]]],
    minimum: int,
    leave_out: Callable[[bytes, str], bool] | None = None,
) -> Iterator[Shard]:
    """Shards of ``minimum`` to ``MAXIMUM_OVER_MINIMUM * minimum`` rows (the last may be smaller).

    ``leave_out(id, reference text)`` may drop a chunk that is not yet in the shard (a near-duplicate); it is
    asked in canonical order.
    """
    maximum = minimum * MAXIMUM_OVER_MINIMUM
    shard = Shard()
    for document, chunks in documents:
        if len(shard.rows) >= minimum and is_boundary(document, minimum):
            yield shard
            shard = Shard()
        part = here = 0
        for chunk in chunks:
            text = chunk.reference_text
            key = reference_id(text)
            row = shard.rows.get(key)
            if row is None:
                if leave_out is not None and leave_out(key, text):
                    continue
                if len(shard.rows) >= maximum:
                    if here:
                        shard.documents.append((document, here, part))
                        part += 1
                    yield shard
                    shard, here = Shard(), 0
                row = shard.rows[key] = Row(key, chunk, [])
            row.occurrences.append((len(shard.documents), chunk.start, chunk.end))
            shard.occurrences += 1
            here += 1
        shard.documents.append((document, here, part))
    if shard.documents:
        yield shard


def is_boundary(document: DocumentRow, minimum: int) -> bool:
    """Whether a shard that has its minimum closes before this document."""
    hashed = int.from_bytes(hashlib.sha256(document.id.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return hashed * minimum < document.chunks << 64
