"""Chunked pieces of the corpus: the work of reading, cutting and tokenizing, done once and kept on disk.

The corpus is taken in units of neighbouring ranges, about ``UNIT_BYTES`` of input each; one unit makes one
piece under ``build/``, keyed by the content of its files and by every option that shapes documents and
chunks. Pieces carry token ids, so no text is tokenized twice, and they are written and read as streams of
record batches: neither a large file nor a long document is held as a whole more than once.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from m3build.chunking import Chunker
from m3build.corpus import Exclusion, SourceFile, SourceOptions, SourceRange, read_range, split
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.records import Chunk, Document, Reject
from m3build_formats.canonical_json import canonical_json
from m3build_formats.layout import MAX_DOCUMENT_ID_BYTES, MAX_METADATA_BYTES, MAX_TITLE_BYTES
from m3build_formats.shard_tables import DocumentRow

UNIT_BYTES = 16 << 20
# A batch is closed by whichever comes first, so that neither many small documents nor a few huge ones pile
# up.
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 2 << 20
PIECE_VERSION = 2

_DOCUMENT_FIELDS: list[Any] = [
    ("id", pa.string()),
    ("source", pa.string()),
    ("position", pa.uint64()),
    ("title", pa.string()),
    ("metadata", pa.string()),
    ("sha256", pa.binary(32)),
    ("characters", pa.uint64()),
    ("chunks", pa.uint32()),
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
class Unit:
    """Neighbouring ranges that are read and cut together."""

    ranges: tuple[SourceRange, ...]
    bytes: int


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


def units_of(files: Iterable[SourceFile], options: SourceOptions) -> Iterator[Unit]:
    """Cut files into ranges and group these, in order, into units of about UNIT_BYTES of input as it lies on
    disk.
    """
    group: list[SourceRange] = []
    size = 0.0
    for file in files:
        ranges = split(file, options)
        for item in ranges:
            group.append(item)
            size += file.bytes / len(ranges)
            if size >= UNIT_BYTES:
                yield Unit(tuple(group), round(size))
                group, size = [], 0.0
    if group:
        yield Unit(tuple(group), round(size))


class ContentHashes:
    """SHA-256 of source files, each file read once per build."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def of(self, file: SourceFile) -> str:
        """Hex digest of the file's bytes; a file that cannot be read hashes as its error, for the reader will
        reject it.
        """
        if file.path not in self._known:
            try:
                with open(file.path, "rb") as stream:
                    self._known = {file.path: hashlib.file_digest(stream, "sha256").hexdigest()}
            except OSError as error:
                self._known = {file.path: f"unreadable {error.errno}"}
        return self._known[file.path]


def make_piece(
    unit: Unit,
    directory: Path,
    ledger: Ledger,
    hashes: ContentHashes,
    chunker: Chunker,
    options: SourceOptions,
    shaped_by: dict[str, Any],
    on_reject: Callable[[Reject], None],
) -> Piece:
    """Read and cut one unit, or find it finished. ``shaped_by`` names the tokenizer and chunk options.

    ``on_reject`` hears of each reject when it is met and may stop the build. Raises OSError when the disk
    does not take it.
    """
    key = piece_key(
        "chunks",
        {
            "version": PIECE_VERSION,
            "ranges": [
                [r.file.name, r.file.format, r.file.compression, r.start, r.end, hashes.of(r.file)]
                for r in unit.ranges
            ],
            "sources": asdict(options),
            **shaped_by,
        },
    )
    documents, chunks = directory / f"{key}.documents.arrow", directory / f"{key}.chunks.arrow"
    done = ledger.get(key)
    if done is not None and documents.exists() and chunks.exists():
        for reject in done["rejects"]:
            on_reject(Reject(**reject))
        return Piece(key, documents, chunks, done["counts"], done["excluded"])
    counts: Counter[str] = Counter()
    rejects: list[Reject] = []
    exclusion = Exclusion(options.exclude)
    found = _documents(unit, options, exclusion, counts, rejects, on_reject)
    with _Sink(documents, DOCUMENTS) as document_sink, _Sink(chunks, CHUNKS) as chunk_sink:
        for batch in _batches(chunker.cut_many(found)):
            document_sink.write(_document_batch(batch))
            chunk_sink.write(_chunk_batch([chunk for _, cut in batch for chunk in cut]))
    excluded = dict(exclusion.matched)
    ledger.put(key, {"counts": dict(counts), "excluded": excluded, "rejects": [asdict(r) for r in rejects]})
    return Piece(key, documents, chunks, dict(counts), excluded)


def read_piece(piece: Piece) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
    """The documents of a piece with their chunks, in order, a record batch at a time."""
    with pa.memory_map(str(piece.documents)) as left, pa.memory_map(str(piece.chunks)) as right:
        documents, chunks = pa.ipc.open_file(left), pa.ipc.open_file(right)
        for number in range(documents.num_record_batches):
            rows = documents.get_batch(number).to_pylist()
            cut: Any = chunks.get_batch(number)
            texts, titles = cut.column("text").to_pylist(), cut.column("title").to_pylist()
            starts, ends = cut.column("start").to_pylist(), cut.column("end").to_pylist()
            ids, id_ends = _list_parts(cut.column("token_ids"))
            token_ends, _ = _list_parts(cut.column("token_ends"))
            # A shard's rows wait in memory: as Python integers their tokens would take ten times as much.
            at = 0
            for row in rows:
                document = DocumentRow(**row)
                found = []
                for i in range(at, at + document.chunks):
                    lo, hi = id_ends[i], id_ends[i + 1]
                    found.append(
                        Chunk(
                            texts[i],
                            starts[i],
                            ends[i],
                            titles[i],
                            array("I", ids[lo:hi].tobytes()),
                            array("H", token_ends[lo:hi].tobytes()),
                        )
                    )
                at += document.chunks
                yield document, found


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


def _batches(
    cut: Iterable[tuple[Document, list[Chunk]]],
) -> Iterator[list[tuple[DocumentRow, list[Chunk]]]]:
    batch: list[tuple[DocumentRow, list[Chunk]]] = []
    characters = 0
    for document, chunks in cut:
        batch.append((_row(document, len(chunks)), chunks))
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


def _document_batch(batch: Sequence[tuple[DocumentRow, list[Chunk]]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([asdict(row) for row, _ in batch], schema=DOCUMENTS)


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


def _list_parts(column: Any) -> tuple[NDArray[np.unsignedinteger[Any]], list[int]]:
    """The values of a list column, and the bounds of each list in them."""
    return column.values.to_numpy(), column.offsets.to_pylist()


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
            os.replace(self._temporary, self._path)
        else:
            self._temporary.unlink(missing_ok=True)
