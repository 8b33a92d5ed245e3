"""The rows and schemas of a shard's four tables.

Row types are plain dataclasses, so that the compiler and the readers share them. No column and no nested
value may be null.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class DocumentRow:
    """A document of a shard. ``metadata`` is a canonical JSON object, ``sha256`` the 32 raw bytes of the
    digest of the text's UTF-8, ``chunks`` the number of occurrences of chunks within this shard, ``part`` 0
    where the document starts in this shard, else how many shards held it before."""

    id: str
    source: str
    position: int
    title: str
    metadata: str
    sha256: bytes
    characters: int
    chunks: int
    part: int = 0


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Where a chunk's text stands: document id, the document's row in the shard's documents table, and the
    span in characters of the document's text."""

    document: str
    row: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """A distinct chunk of a shard. ``id`` is the raw SHA-256 of the UTF-8 of the reference text (title, line
    feed, text; or text alone); ``token_ends`` counts characters of the reference text, one entry for each of
    ``tokens`` tokens."""

    id: bytes
    text: str
    title: str
    token_ends: Sequence[int]
    occurrences: Sequence[Occurrence]

    @property
    def tokens(self) -> int:
        """Tokens of the reference, without the reference BOS."""
        return len(self.token_ends)


def _column(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=False)


def _list_of(kind: Any, size: int = -1) -> Any:
    return pa.list_(_column("item", kind), size)


OCCURRENCE: Final = pa.struct(
    [
        _column("document", pa.string()),
        _column("row", pa.uint32()),
        _column("start", pa.uint64()),
        _column("end", pa.uint64()),
    ]
)
DOCUMENTS_SCHEMA: Final = pa.schema(
    [
        _column("id", pa.string()),
        _column("source", pa.string()),
        _column("position", pa.uint64()),
        _column("title", pa.string()),
        _column("metadata", pa.string()),
        _column("sha256", pa.binary(32)),
        _column("characters", pa.uint64()),
        _column("chunks", pa.uint32()),
        _column("part", pa.uint32()),
    ]
)
CHUNKS_SCHEMA: Final = pa.schema(
    [
        _column("id", pa.binary(32)),
        _column("text", pa.string()),
        _column("title", pa.string()),
        _column("tokens", pa.uint16()),
        _column("token_ends", _list_of(pa.uint16())),
        _column("occurrences", _list_of(OCCURRENCE)),
    ]
)


def memories_schema(row_bytes: int) -> Any:
    """Schema of a memories table whose rows are ``row_bytes`` wide."""
    return pa.schema([_column("memory", pa.binary(row_bytes))])


def embeddings_schema(dim: int) -> Any:
    """Schema of an embeddings table of ``dim`` float16 values a row."""
    return pa.schema([_column("embedding", _list_of(pa.float16(), dim))])
