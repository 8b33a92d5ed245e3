"""Chunked pieces of the corpus: the work of reading, cutting and tokenizing, done once and kept on disk.

The corpus is taken in units of neighbouring ranges (``units``); one unit makes one piece under ``build/``,
keyed by the content of its files and by every option that shapes documents and chunks. Pieces stay when the
version is committed, so that the next build reads only units in which a file changed, and cuts only the
documents of them that it did not have. Pieces carry token ids, so no text is tokenized twice, and they are
written and read as streams of record batches: neither a large file nor a long document is held as a whole
more than once. They are hashed before they are used again, since what is wrong in one would go into the bank.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3build.chunking import Chunker
from m3build.corpus import SourceOptions
from m3build.pipeline.cut_units import CutJob, CutTask, CutUnit, cut_unit
from m3build.pipeline.file_hashes import FileHash, FileHashes
from m3build.pipeline.known_documents import KnownDocuments, list_documents
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.piece_files import PieceFiles, read_piece
from m3build.pipeline.reject_lines import read_rejects
from m3build.pipeline.units import Unit
from m3build.records import Chunk, Reject
from m3build.workers import WorkerPool
from m3build_formats.shard_tables import DocumentRow

PIECE_VERSION = 5
# Input that is worth the start of another process.
BYTES_A_WORKER = 1 << 21


@dataclass(frozen=True, slots=True)
class PlannedPiece:
    """A unit with the hashes of its files by path, those of them that had another size when their ranges were
    cut, the key of its piece, and that if it is there."""

    unit: Unit
    hashes: dict[str, FileHash]
    moved: frozenset[str]
    key: str
    found: Piece | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A finished unit: its files and what was counted on the way, with the documents left out by each pattern
    of ``--exclude``.
    """

    key: str
    files: PieceFiles
    counts: dict[str, int]
    excluded: dict[str, int]

    def rejects(self) -> Iterator[Reject]:
        """The rejects of the unit, in order."""
        return read_rejects(self.files.rejects)

    def rows(self) -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        """Its documents with their chunks, in order, a record batch at a time."""
        return read_piece(self.files)


class PieceMaker:
    """Makes the pieces of one corpus, or finds them finished by an earlier build.

    ``shaped_by`` names tokenizer and chunk options; ``on_reject`` hears of each reject and may stop the
    build; ``workers`` is how many processes cut at most. ``cut`` counts the documents that went through the
    chunker, ``changing`` names the files that changed between being hashed and being read, ``poisoned`` tells
    that records were given up, since workers ended at them.
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
        workers: int = 1,
    ) -> None:
        self._directory = directory
        self._ledger = ledger
        self._hashes = hashes
        self._chunker = chunker
        self._options = options
        self._shaped_by = shaped_by
        self._shape = piece_key("shape", {"version": PIECE_VERSION, **shaped_by})
        self._on_reject = on_reject
        self._workers = workers
        self._last: dict[str, FileHash] = {}
        self.cut = 0
        self.changing: list[str] = []
        self.poisoned = False
        directory.mkdir(parents=True, exist_ok=True)

    def plan(self, unit: Unit) -> PlannedPiece:
        """Hash the files of a unit, and look whether its piece is there."""
        # The ranges of a large file come one after the other: it is hashed once.
        hashed: dict[str, FileHash] = {}
        for path in (item.file.path for item in unit.ranges):
            hashed[path] = hashed.get(path) or self._last.get(path) or self._hashes.of(path)
            self._last = {path: hashed[path]}
        key = self._key(unit, {p: h.sha256 for p, h in hashed.items()})
        sizes = {item.file.path: item.file.bytes for item in unit.ranges}
        moved = frozenset(p for p, h in hashed.items() if h.stamp and h.stamp.bytes != sizes[p])
        return PlannedPiece(unit, hashed, moved, key, self._finished(key))

    def make(self, planned: Sequence[PlannedPiece]) -> Generator[Piece]:
        """The pieces of all units, in order. Pieces that no unit has are looked through for documents. Raises
        OSError when the disk does not take them, ResourceError where workers cannot be begun."""
        missing = [each for each in planned if each.found is None]
        with ExitStack() as stack:
            made: Iterator[CutUnit] = iter(())
            if missing:
                listed = self._directory / "known.sqlite"
                stack.callback(listed.unlink, missing_ok=True)
                list_documents(listed, self._others({each.key for each in planned}))
                made = stack.enter_context(closing(self._cut_all(missing, listed)))
            for each in planned:
                if each.found is None:
                    yield self._keep(each, next(made))
                    continue
                for reject in each.found.rejects():
                    self._on_reject(reject)
                yield each.found

    def _cut_all(self, missing: Sequence[PlannedPiece], listed: Path) -> Generator[CutUnit]:
        """What is found in units, in order; ``listed`` are the known documents."""
        tasks = [CutTask(each.unit, self._files(each.key)) for each in missing]
        size = sum(each.unit.bytes for each in missing)
        workers = min(self._workers, len(tasks), size // BYTES_A_WORKER)
        if workers <= 1:
            with KnownDocuments(listed) as known:
                for task in tasks:
                    yield cut_unit(task, self._options, self._chunker, known, self._on_reject, _unheard)
            return
        job = CutJob(self._chunker.tokenizer_json(), self._chunker.options, self._options, listed)
        with WorkerPool[CutTask, CutUnit](job, workers, self._directory, CutTask.after) as pool:
            for task, found in zip(tasks, pool.results(tasks), strict=True):
                for reject in read_rejects(task.files.rejects):
                    self._on_reject(reject)
                yield found

    def _keep(self, planned: PlannedPiece, found: CutUnit) -> Piece:
        self.cut += found.cut
        changed = sorted(planned.moved | {p for p, h in planned.hashes.items() if not h.still_holds(p)})
        names = {item.file.path: item.file.name for item in planned.unit.ranges}
        self.changing += [names[path] for path in changed]
        self.poisoned |= found.is_poisoned
        key, files = planned.key, self._files(planned.key)
        if changed or found.is_poisoned:
            # It is not what the key says: no other build may take it for that.
            key = piece_key("only here", {"key": planned.key})
            files.move_to(self._files(key))
            files = self._files(key)
        entry = {
            "shape": self._shape if key == planned.key else None,
            "files": found.digests,
            "counts": found.counts,
            "excluded": found.excluded,
        }
        self._ledger.put(key, entry)
        return Piece(key, files, found.counts, found.excluded)

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

    def _files(self, key: str) -> PieceFiles:
        return PieceFiles.of(self._directory, key)

    def _finished(self, key: str) -> Piece | None:
        done = self._ledger.get(key)
        if done is None or not self._is_sound(key, done):
            return None
        return Piece(key, self._files(key), done["counts"], done["excluded"])

    def _is_sound(self, key: str, done: dict[str, Any]) -> bool:
        try:
            return bool(self._files(key).digests() == done["files"])
        except OSError:
            return False

    def _others(self, planned: set[str]) -> Iterator[tuple[Path, Path]]:
        """The finished pieces of the same shape that no unit of this build has."""
        for key, done in self._ledger.entries():
            if key not in planned and done.get("shape") == self._shape and self._is_sound(key, done):
                files = self._files(key)
                yield files.documents, files.chunks


def _unheard(at: object = None) -> None:
    """Nobody watches over a unit that is cut in the build's own process."""


def keep_pieces(pieces: Iterable[Piece], directory: Path, ledger: Ledger) -> None:
    """Delete all pieces in ``directory`` but these, and all else that the ledger knows."""
    kept = {piece.key for piece in pieces}
    ledger.keep_only(kept)
    for path in directory.iterdir():
        if path.name.partition(".")[0] not in kept or path.suffix == ".tmp":
            path.unlink(missing_ok=True)
