"""First stage: sources are found, read, cut and tokenized into pieces; what cannot be used is counted and
bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m3build.chunking import Chunker
from m3build.config import RejectLimit
from m3build.corpus import SourceFile, SourceOptions
from m3build.pipeline.file_hashes import FileHashes
from m3build.pipeline.ledger import Ledger
from m3build.pipeline.pieces import Piece, PieceMaker, PlannedPiece
from m3build.pipeline.sources_digest import SourcesDigest
from m3build.pipeline.units import units_of
from m3build.progress import Progress
from m3build.records import Chunk, Reject
from m3build_formats.errors import InputError
from m3build_formats.shard_tables import DocumentRow

SHOWN = 3


class RejectGate:
    """Counts rejects, tells how many there are, and stops the build when there are too many; remembers the
    first few for the message."""

    def __init__(self, limit: RejectLimit, tell: Callable[[int], None]) -> None:
        self._limit = limit
        self._tell = tell
        self.first: list[Reject] = []
        self.count = 0

    def __call__(self, reject: Reject) -> None:
        """Take note of a reject. Raises InputError past a count given as ``--max-rejects N``."""
        if reject.kind != "reject":
            return
        self.count += 1
        self._tell(self.count)
        if len(self.first) < SHOWN:
            self.first.append(reject)
        if self._limit.count is not None and self.count > self._limit.count:
            raise InputError(f"more than {self._limit.count} rejects (--max-rejects): {self._shown()}")

    def at_end(self, records: int) -> None:
        """The input is read; ``records`` counts documents, empty ones and rejects. Raises InputError past a
        share given as ``P%``.
        """
        share = self._limit.share
        if share is not None and self.count > share * records:
            raise InputError(
                f"{self.count} of {records} records rejected, more than {share:.4g} of them "
                f"(--max-rejects {100 * share:g}%): {self._shown()}"
            )

    def _shown(self) -> str:
        return "; ".join(f"{r.source}, {r.where}: {r.reason}" for r in self.first) + (
            "; …" if self.count > len(self.first) else ""
        )


@dataclass(frozen=True, slots=True)
class ChunkedCorpus:
    """The corpus as finished pieces in canonical order, with what was counted; ``excluded`` documents by
    pattern. ``cut`` documents went through the chunker, those of the others were known. ``digest`` is of all
    source files as they were read, None where one changed meanwhile or a record was given
    up: then the same files may come to something else.
    """

    pieces: tuple[Piece, ...]
    counts: dict[str, int]
    found: tuple[Reject, ...]
    gate: RejectGate
    excluded: Counter[str]
    cut: int
    digest: str | None

    def documents(self) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        """All documents with their chunks, in canonical order."""
        for piece in self.pieces:
            yield from piece.rows()

    def rejects(self, ledger: Ledger) -> Iterator[Reject]:
        """All rejects: those met while looking for files, then those of the pieces, in order."""
        yield from self.found
        for piece in self.pieces:
            yield from piece.rejects(ledger)


def chunk_corpus(
    files: Sequence[SourceFile],
    found: Sequence[Reject],
    options: SourceOptions,
    chunker: Chunker,
    shaped_by: dict[str, Any],
    limit: RejectLimit,
    directory: Path,
    ledger: Ledger,
    hashes: FileHashes,
    workers: int,
    progress: Progress,
) -> ChunkedCorpus:
    """Make or find every piece of the corpus.

    ``found`` are the rejects of discovery, ``workers`` the processes to cut with. Raises InputError when
    rejects pass the limit or no document is left, ResourceError where workers cannot be begun.
    """
    gate = RejectGate(limit, progress.rejected)
    counts: Counter[str] = Counter()
    for reject in found:
        counts["unsupported_files" if reject.kind == "unsupported" else "rejects"] += 1
        gate(reject)
    excluded: Counter[str] = Counter()
    pieces: list[Piece] = []
    maker = PieceMaker(directory, ledger, hashes, chunker, options, shaped_by, gate, workers)
    planned: list[PlannedPiece] = []
    digest = SourcesDigest(found)
    with progress.stage("look", sum(f.bytes for f in files), "bytes") as stage:
        for unit in units_of(files, options):
            planned.append(maker.plan(unit))
            digest.add_all(unit, planned[-1].hashes)
            stage.advance(unit.bytes)
    with (
        progress.stage("chunk", sum(f.bytes for f in files), "bytes") as stage,
        closing(maker.make(planned)) as made,
    ):
        for each, piece in zip(planned, made, strict=True):
            pieces.append(piece)
            counts.update(piece.counts)
            excluded.update(piece.excluded)
            stage.advance(each.unit.bytes)
    for name in maker.changing[:SHOWN]:
        progress.note(f"{name} changed while it was read: compile again to be sure of what it holds")
    gate.at_end(counts["documents"] + counts["empty_documents"] + counts["rejects"])
    if not counts["documents"]:
        why = f"; the first reject: {gate.first[0].source}: {gate.first[0].reason}" if gate.first else ""
        raise InputError(
            f"nothing to compile: {len(files)} files, {counts['empty_documents']} empty documents, "
            f"{counts['rejects']} rejects, {excluded.total()} excluded, no text{why}"
        )
    return ChunkedCorpus(
        tuple(pieces),
        dict(counts),
        tuple(found),
        gate,
        excluded,
        maker.cut,
        None if maker.changing or maker.poisoned else digest.hexdigest(),
    )
