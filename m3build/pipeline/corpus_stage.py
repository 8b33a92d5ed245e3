"""First stage: sources are read, cut and tokenized into pieces; what cannot be used is counted and
bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
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
    excluded: Counter[str]
    cut: int
    digest: str | None

    def rejects(self) -> Iterator[Reject]:
        """All rejects: those met while looking for files, then those of the pieces, in order."""
        yield from self.found
        for piece in self.pieces:
            yield from piece.rejects()


class CorpusReading:
    """Every piece of the corpus, made or found while its documents are asked for: whoever takes them works
    while workers cut what follows.

    ``found`` are the rejects of discovery, ``workers`` the processes to cut with, ``excluded_files`` how many
    files are not among ``files`` since they are excluded. Raises InputError when ``found`` alone pass the
    limit.
    """

    def __init__(
        self,
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
        excluded_files: int,
        progress: Progress,
    ) -> None:
        self._files, self._found, self._options = files, found, options
        self._progress = progress
        self._excluded_files = excluded_files
        self.gate = RejectGate(limit, progress.rejected)
        self._counts: Counter[str] = Counter()
        for reject in found:
            self._counts["unsupported_files" if reject.kind == "unsupported" else "rejects"] += 1
            self.gate(reject)
        self._excluded: Counter[str] = Counter()
        self._pieces: list[Piece] = []
        self._maker = PieceMaker(directory, ledger, hashes, chunker, options, shaped_by, self.gate, workers)
        self._digest = SourcesDigest(found)

    def documents(self) -> Generator[tuple[DocumentRow, list[Chunk]]]:
        """All documents with their chunks, in canonical order; to be taken once, to the end.

        Raises InputError when rejects pass the limit or no document is left, ResourceError where workers
        cannot be begun.
        """
        size = sum(file.bytes for file in self._files)
        planned: list[PlannedPiece] = []
        with self._progress.stage("look", size, "bytes") as stage:
            for unit in units_of(self._files, self._options):
                planned.append(self._maker.plan(unit))
                self._digest.add_all(unit, planned[-1].hashes)
                stage.advance(unit.bytes)
        with (
            self._progress.stage("chunk", size, "bytes") as stage,
            closing(self._maker.make(planned)) as made,
        ):
            for each, piece in zip(planned, made, strict=True):
                self._pieces.append(piece)
                self._counts.update(piece.counts)
                self._excluded.update(piece.excluded)
                yield from piece.rows()
                stage.advance(each.unit.bytes)
        self._check()

    def _check(self) -> None:
        for name in self._maker.changing[:SHOWN]:
            self._progress.note(
                f"{name} changed while it was read: compile again to be sure of what it holds"
            )
        counts, gate = self._counts, self.gate
        gate.at_end(counts["documents"] + counts["empty_documents"] + counts["rejects"])
        if not counts["documents"]:
            why = f"; the first reject: {gate.first[0].source}: {gate.first[0].reason}" if gate.first else ""
            raise InputError(
                f"nothing to compile: {len(self._files)} files, {counts['empty_documents']} empty documents, "
                f"{counts['rejects']} rejects, {self._excluded_files + self._excluded.total()} excluded, "
                f"no text{why}"
            )

    def finished(self) -> ChunkedCorpus:
        """What was read, once all documents were taken."""
        maker = self._maker
        return ChunkedCorpus(
            tuple(self._pieces),
            dict(self._counts),
            tuple(self._found),
            self._excluded,
            maker.cut,
            None if maker.changing or maker.poisoned else self._digest.hexdigest(),
        )
