"""Chunked pieces of the corpus: the work of reading, cutting and tokenizing, done once and kept on disk.

The corpus is taken in units of neighbouring ranges (``units``); one unit makes one piece under ``build/``,
keyed by the content of its files and by every option that shapes documents and chunks. Pieces stay when the
version is committed, so that the next build reads only units in which a file changed, and cuts only the
documents of them that it did not have. Pieces carry token ids, so no text is tokenized twice, and they are
written and read as streams of record batches: neither a large file nor a long document is held as a whole
more than once. They are hashed before they are used again, since what is wrong in one would go into the bank.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from m3build.chunking import Chunker
from m3build.corpus import Exclusion, SourceOptions, read_range
from m3build.pipeline.file_hashes import FileHash, FileHashes
from m3build.pipeline.known_documents import KnownDocuments, chunks_of, cut_key
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.units import Unit
from m3build.records import Chunk, Document, Reject
from m3build_formats.canonical_json import canonical_json
from m3build_formats.layout import MAX_DOCUMENT_ID_BYTES, MAX_METADATA_BYTES, MAX_TITLE_BYTES
from m3build_formats.shard_tables import DocumentRow

# A batch is closed by whichever comes first, so that neither many small documents nor a few huge ones pile
# up.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 2 << 20
PIECE_VERSION = 3

_DOCUMENT_FIELDS: list[Any] = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("position", pa.uint64()),
    ("title", pa.string()),
    ("metadata", pa.string()),
    ("sha256", pa.binary(32)),
    ("characters", pa.uint64()),
    ("chunks", pa.uint32()),
    ("cut", pa.binary(32)),
]
DOCUMENTS = pa.schema(_DOCUMENT_FIELDS)
_CHUNK_FIELDS: list[Any] = [
    ("text", pa.string()),
    ("title", pa.string()),
    ("start", pa.uint64()),
    ("end", pa.uint64()),
    ("token_ids", pa.list_(pa.uint32())),
    ("token_ends", pa.list_(pa.uint16())),
]
CHUNKS = pa.schema(_CHUNK_FIELDS)


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """A unit with the hashes of its files by path, and the key of its piece."""

    unit: Unit
    hashes: dict[str, FileHash]
    key: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished unit: two Arrow files and what was counted on the way, with the documents left out by each
    pattern of ``--exclude``. Its rejects stay on disk, in the ledger under ``key``.
    """

    key: str
    documents: Path
    chunks: Path
    counts: dict[str, int]
    excluded: dict[str, int]

    def rejects(self, ledger: Ledger) -> list[Reject]:
        """The rejects of the unit, in order."""
        return [Reject(**r) for r in (ledger.get(self.key) or {}).get("rejects", [])]


class PieceMaker:
    """Makes the pieces of one corpus, or finds them finished by an earlier build.

    ``shaped_by`` names tokenizer and chunk options; ``on_reject`` hears of each reject when it is met and may
    stop the build. A context manager. ``cut`` counts the documents that went through the chunker,
    ``changing`` names the files that changed between being hashed and being read.
    """

    def __init__(
        self,
        directory: Path,
        ledger: Ledger,
        hashes: FileHashes,
        chunker: Chunker,
        options: SourceOptions,
        shaped_by: dict[str, Any],
        on_reject: Callable[[Reject], None],
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._hashes = hashes
        self._chunker = chunker
        self._options = options
        self._shaped_by = shaped_by
        self._shape = piece_key("shape", {"version": PIECE_VERSION, **shaped_by})
        self._on_reject = on_reject
        self._known: KnownDocuments | None = None
        self._last: dict[str, FileHash] = {}
        self.cut = 0
        self.changing: list[str] = []
        directory.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._known is not None:
            self._known.__exit__(kind, error, trace)

    def plan(self, unit: Unit) -> PlannedPiece:
        """Hash the files of a unit."""
        # The ranges of a large file come one after the other: it is hashed once.
        hashed: dict[str, FileHash] = {}
        for path in (item.file.path for item in unit.ranges):
            hashed[path] = hashed.get(path) or self._last.get(path) or self._hashes.of(path)
            self._last = {path: hashed[path]}
        return PlannedPiece(unit, hashed, self._key(unit, {p: h.sha256 for p, h in hashed.items()}))

    def make(self, planned: PlannedPiece, all_planned: Sequence[PlannedPiece]) -> Piece:
        """The piece of a unit. ``all_planned`` are all of this build: pieces that none of them has are looked
        through for documents. Raises OSError when the disk does not take it."""
        found = self._finished(planned.key)
        if found is not None:
            for reject in found.rejects(self._ledger):
                self._on_reject(reject)
            return found
        if self._known is None:
            self._known = KnownDocuments(self._others({other.key for other in all_planned}))
        piece = self._cut(planned, self._known)
        if changed := [path for path, hashed in planned.hashes.items() if not hashed.still_holds(path)]:
            names = {item.file.path: item.file.name for item in planned.unit.ranges}
            self.changing += [names[path] for path in changed]
            # What was read is not what the key says: no other build may take it for that.
            return self._disown(piece)
        return piece

    def _key(self, unit: Unit, hashes: dict[str, str]) -> str:
        return piece_key(
            "chunks",
            {
                "version": PIECE_VERSION,
                "ranges": [
                    [
                        r.file.name,
                        r.file.format,
                        r.file.compression,
                        r.file.named,
                        r.start,
                        r.end,
                        hashes[r.file.path],
                    ]
                    for r in unit.ranges
                ],
                "sources": asdict(self._options),
                **self._shaped_by,
            },
        )

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self._directory / f"{key}.documents.arrow", self._directory / f"{key}.chunks.arrow"

    def _finished(self, key: str) -> Piece | None:
        done = self._ledger.get(key)
        if done is None or not self._is_sound(key, done):
            return None
        return Piece(key, *self._paths(key), done["counts"], done["excluded"])

    def _is_sound(self, key: str, done: dict[str, Any]) -> bool:
        try:
            return bool([_digest(path) for path in self._paths(key)] == done["files"])
        except OSError:
            return False

    def _others(self, planned: set[str]) -> Iterator[tuple[Path, Path]]:
        """The finished pieces of the same shape that no unit of this build has."""
        for key, done in self._ledger.entries():
            if key not in planned and done.get("shape") == self._shape and self._is_sound(key, done):
                yield self._paths(key)

    def _cut(self, planned: PlannedPiece, known: KnownDocuments) -> Piece:
        documents, chunks = self._paths(planned.key)
        counts: Counter[str] = Counter()
        rejects: list[Reject] = []
        exclusion = Exclusion(self._options.exclude)
        found = _documents(planned.unit, self._options, exclusion, counts, rejects, self._on_reject)
        before = known.found
        with _Sink(documents, DOCUMENTS) as document_sink, _Sink(chunks, CHUNKS) as chunk_sink:
            for batch in _batches(known.cut_many(found, self._chunker)):
                document_sink.write(_document_batch(batch))
                chunk_sink.write(_chunk_batch([chunk for _, _, cut in batch for chunk in cut]))
        self.cut += counts["documents"] - (known.found - before)
        self._ledger.put(
            planned.key,
            {
                "shape": self._shape,
                "files": [_digest(documents), _digest(chunks)],
                "counts": dict(counts),
                "excluded": dict(exclusion.matched),
                "rejects": [asdict(r) for r in rejects],
            },
        )
        return Piece(planned.key, documents, chunks, dict(counts), dict(exclusion.matched))

    def _disown(self, piece: Piece) -> Piece:
        value = self._ledger.get(piece.key) or {}
        key = piece_key("changing", {"key": piece.key})
        paths = self._paths(key)
        for old, new in zip((piece.documents, piece.chunks), paths, strict=True):
            os.replace(old, new)
        self._ledger.put(key, {**value, "shape": None})
        self._ledger.drop(piece.key)
        return Piece(key, *paths, piece.counts, piece.excluded)


def keep_pieces(pieces: Iterable[Piece], directory: Path, ledger: Ledger) -> None:
    """Delete all pieces in ``directory`` but these, and all else that the ledger knows."""
    kept = {piece.key for piece in pieces}
    ledger.keep_only(kept)
    for path in directory.iterdir():
        if path.name.partition(".")[0] not in kept:
            path.unlink(missing_ok=True)


def read_piece(piece: Piece) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """The documents of a piece with their chunks, in order, a record batch at a time."""
    with pa.memory_map(str(piece.documents)) as left, pa.memory_map(str(piece.chunks)) as right:
        documents, chunks = pa.ipc.open_file(left), pa.ipc.open_file(right)
        for number in range(documents.num_record_batches):
            rows: Any = documents.get_batch(number)
            cut: Any = chunks.get_batch(number)
            found = chunks_of(cut, 0, cut.num_rows)
            at = 0
            for row in rows.drop_columns(["cut"]).to_pylist():
                document = DocumentRow(**row)
                yield document, found[at : at + document.chunks]
                at += document.chunks


def _documents(
    unit: Unit,
    options: SourceOptions,
    exclusion: Exclusion,
    counts: Counter[str],
    rejects: list[Reject],
    on_reject: Callable[[Reject], None],
) -> Iterator[Document]:
    for item in unit.ranges:
        for record in read_range(item, options):
            if isinstance(record, Document) and exclusion.takes(record):
                continue
            if isinstance(record, Document) and (bad := _unstorable(record)):
                record = bad
            if isinstance(record, Reject):
                counts["unsupported_files" if record.kind == "unsupported" else "rejects"] += 1
                rejects.append(record)
                on_reject(record)
            elif not record.text or record.text.isspace():
                counts["empty_documents"] += 1
            else:
                counts["documents"] += 1
                counts["characters"] += len(record.text)
                yield record


def _unstorable(document: Document) -> Reject | None:
    """A reject for a document whose id, title or metadata a bank cannot hold."""
    where = f"position {document.position}"
    try:
        metadata = canonical_json(dict(document.metadata))
    except ValueError as error:
        return Reject(document.source, where, f"a kept field cannot be stored: {error}")
    for name, value, limit in (
        ("id", document.id, MAX_DOCUMENT_ID_BYTES),
        ("title", document.title, MAX_TITLE_BYTES),
        ("metadata", metadata, MAX_METADATA_BYTES),
    ):
        if len(value.encode()) > limit:
            return Reject(document.source, where, f"its {name} has more than {limit} bytes")
    return None


_Row = tuple[DocumentRow, bytes, list[Chunk]]


def _batches(cut: Iterable[tuple[Document, list[Chunk]]]) -> Iterator[list[_Row]]:
    batch: list[_Row] = []
    characters = 0
    for document, chunks in cut:
        batch.append((_row(document, len(chunks)), cut_key(document), chunks))
        characters += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _row(document: Document, chunks: int) -> DocumentRow:
    return DocumentRow(
        id=document.id,
        source=document.source,
        position=document.position,
        title=document.title,
        metadata=canonical_json(dict(document.metadata)),
        sha256=hashlib.sha256(document.text.encode("utf-8")).digest(),
        characters=len(document.text),
        chunks=chunks,
    )


def _document_batch(batch: Sequence[_Row]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(
        [{**asdict(row), "cut": key} for row, key, _ in batch], schema=DOCUMENTS
    )


def _chunk_batch(chunks: Sequence[Chunk]) -> pa.RecordBatch:
    bounds = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum([len(c.token_ids) for c in chunks], out=bounds[1:])
    offsets: Any = pa.array(bounds)
    ids: Any = _joined([c.token_ids for c in chunks], np.uint32)
    ends: Any = _joined([c.token_ends for c in chunks], np.uint16)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([c.text for c in chunks], pa.string()),
            pa.array([c.title for c in chunks], pa.string()),
            pa.array([c.start for c in chunks], pa.uint64()),
            pa.array([c.end for c in chunks], pa.uint64()),
            pa.ListArray.from_arrays(offsets, pa.array(ids)),
            pa.ListArray.from_arrays(offsets, pa.array(ends)),
        ],
        schema=CHUNKS,
    )


def _joined(parts: Sequence[Sequence[int]], dtype: type[np.unsignedinteger[Any]]) -> NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *(np.asarray(part, dtype) for part in parts)])


def _digest(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Sink:
    """An Arrow file that appears under its name only when it is whole."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._temporary = path.with_suffix(".tmp")
        self._stream = pa.OSFile(str(self._temporary), "wb")
        self._writer = pa.ipc.new_file(self._stream, schema)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        self._stream.close()
        if kind is None:
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)
