"""One unit of the corpus read, cut, tokenized and written as a piece: in the build's own process, or in a
worker.

A worker that dies or stalls leaves nothing that counts. Its unit is read once more, carefully: record by
record, each announced before it is touched. A record at which a worker ended twice is rejected; one at which
reading ended cannot be stepped over, and takes the rest of its file or range with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from m3build.chunking import Chunker, ChunkOptions
from m3build.corpus import Exclusion, SourceOptions, SourceRange, read_range
from m3build.corpus.source import WHOLE_FILE
from m3build.pipeline.known_documents import KnownDocuments
from m3build.pipeline.piece_files import PieceFiles, write_piece
from m3build.pipeline.reject_lines import RejectSink
from m3build.pipeline.units import Unit
from m3build.records import Document, Reject
from m3build.workers import Death, Tell
from m3build_formats.canonical_json import canonical_json
from m3build_formats.errors import ResourceError
from m3build_formats.layout import MAX_DOCUMENT_ID_BYTES, MAX_METADATA_BYTES, MAX_TITLE_BYTES

TRIES: Final = 2

Place = tuple[Literal["read", "cut"], int, int]
"""What is done next: reading, or cutting, record n of range r of a unit, both from 0."""


@dataclass(frozen=True, slots=True)
class CutTask:
    """A unit and the files that its piece becomes. ``deaths`` are those of workers on it: what each was
    at, where it is known, and how it ended."""

    unit: Unit
    files: PieceFiles
    deaths: tuple[tuple[Place | None, str], ...] = ()

    @property
    def is_careful(self) -> bool:
        """Whether records are announced one by one, so that it is known which of them ends a worker."""
        return bool(self.deaths)

    @property
    def poison(self) -> dict[Place, str]:
        """What is not tried any more, and why. A death in the first, fast try counts against whatever ends
        the first careful one."""
        unknown = sum(at is None for at, _ in self.deaths)
        found: dict[Place, str] = {}
        counts: Counter[Place] = Counter()
        for at, how in self.deaths:
            if at is not None:
                counts[at] += 1 + unknown
                unknown = 0
                if counts[at] >= TRIES:
                    found[at] = how
        return found

    def after(self, death: Death) -> CutTask:
        """The task to go on with after a worker ended. Raises ResourceError where several ended before they
        came to any record."""
        at: Any = death.at if self.is_careful else None
        deaths = (*self.deaths, (at, death.how))
        if sum(place is None for place, _ in deaths) > TRIES:
            name = self.unit.ranges[0].file.name
            raise ResourceError(
                f"workers end before they have read anything of {name}; the last {death.how}. Look for what "
                "ends them (memory, most often), or try --workers 1"
            )
        return replace(self, deaths=deaths)


@dataclass(frozen=True, slots=True)
class CutUnit:
    """What was found in a unit: digests of its files, counts, excluded documents by pattern, how many
    documents went through the chunker, and whether a record was given up."""

    digests: list[str | None]
    counts: dict[str, int]
    excluded: dict[str, int]
    cut: int
    is_poisoned: bool


def cut_unit(
    task: CutTask,
    options: SourceOptions,
    chunker: Chunker,
    known: KnownDocuments,
    on_reject: Callable[[Reject], None],
    tell: Tell,
) -> CutUnit:
    """Make the piece of a unit. Raises OSError when the disk does not take it, and what ``on_reject``
    raises."""
    counts: Counter[str] = Counter()
    exclusion = Exclusion(options.exclude)

    def documents() -> Iterator[Document]:
        for record in _records(task, options, exclusion, tell):
            if isinstance(record, Document) and (bad := _unstorable(record)):
                record = bad
            if isinstance(record, Reject):
                counts["unsupported_files" if record.kind == "unsupported" else "rejects"] += 1
                rejects.write(record)
                on_reject(record)
            elif not record.text or record.text.isspace():
                counts["empty_documents"] += 1
            else:
                counts["documents"] += 1
                counts["characters"] += len(record.text)
                yield record

    before = known.found
    with RejectSink(task.files.rejects) as rejects:
        write_piece(task.files, known.cut_many(documents(), chunker, one_by_one=task.is_careful))
    return CutUnit(
        task.files.digests(),
        dict(counts),
        dict(exclusion.matched),
        counts["documents"] - (known.found - before),
        bool(task.poison),
    )


@dataclass(frozen=True, slots=True)
class CutJob:
    """Cutting units in a worker. ``tokenizer`` is the JSON of a ``tokenizers.Tokenizer``, ``known`` the
    file that lists known documents."""

    tokenizer: str
    chunk_options: ChunkOptions
    source_options: SourceOptions
    known: Path

    @contextmanager
    def begin(self) -> Iterator[Callable[[CutTask, Tell], CutUnit]]:
        """In the worker: neither torch nor transformers are needed."""
        from tokenizers import Tokenizer

        chunker = Chunker(Tokenizer.from_str(self.tokenizer), self.chunk_options)
        with KnownDocuments(self.known) as known:
            yield lambda task, tell: cut_unit(task, self.source_options, chunker, known, lambda _: None, tell)


def _records(
    task: CutTask, options: SourceOptions, exclusion: Exclusion, tell: Tell
) -> Iterator[Document | Reject]:
    """The records of a unit but excluded documents, and rejects in place of those that are given up."""
    careful, poison = task.is_careful, task.poison
    for number, item in enumerate(task.unit.ranges):
        records = read_range(item, options)
        count = 0
        while True:
            reading: Place = ("read", number, count)
            if reading in poison:
                yield _given_up(item, count, poison[reading])
                break
            tell(reading if careful else None)
            record = next(records, None)
            if record is None:
                break
            cutting: Place = ("cut", number, count)
            count += 1
            if isinstance(record, Document) and exclusion.takes(record):
                continue
            if careful and isinstance(record, Document):
                if cutting in poison:
                    yield Reject(record.source, f"position {record.position}", _reason(poison[cutting]))
                    continue
                tell(cutting)
            yield record


def _given_up(item: SourceRange, count: int, how: str) -> Reject:
    if not count and item.is_whole:
        return Reject(item.file.name, WHOLE_FILE, _reason(how))
    begin = f", from {item.start} on" if item.start else ""
    return Reject(
        item.file.name, f"after {count} records{begin}", f"{_reason(how)}; the rest of the range is not read"
    )


def _reason(how: str) -> str:
    return f"two workers ended at it, the last one {how}"


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
