"""``merge``: a new bank that holds the documents of several, and encodes nothing again.

Documents are read back from the banks' own shards in canonical order over all of them, and shards are cut
anew by the rule that a build has; so the shards, and all that is made of them, are those of one build of all
sources with the same codec. Memories are copied row by row. Embeddings and index are made anew from the text,
for both look at the corpus as a whole.

A merge that was stopped goes on where it was, as a build does: run the same command again.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import chain
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from m3build.chunking import NearDuplicates
from m3build.config import RunOptions, Settings
from m3build.corpus import Exclusion
from m3build.corpus.identity import HASH_DIGITS
from m3build.embed import make_embedder
from m3build.embed.lexical import NAME as LEXICAL
from m3build.pipeline.claims import Claims, Prefer
from m3build.pipeline.ledger import Ledger
from m3build.pipeline.libraries import library_versions
from m3build.pipeline.memory_stage import MemoryWriter
from m3build.pipeline.merge_check import (
    merged_counts,
    merged_libraries,
    merged_settings,
    refuse_other_facts,
    settings_of,
)
from m3build.pipeline.merge_result import MergeResult
from m3build.pipeline.merge_sources import BankMemories, MergeSources
from m3build.pipeline.places import Places
from m3build.pipeline.retrieval_stage import prepare_retrieval
from m3build.pipeline.shard_files import entries_of
from m3build.pipeline.shard_stage import ShardedCorpus, shard_corpus
from m3build.pipeline.vector_stage import VectorWriter, drawn_queries, index_recall
from m3build.pipeline.watch import Watch
from m3build.progress import Progress, Silent
from m3build.records import Chunk, Reject
from m3build_formats.bank import is_bank, list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import CorruptError, InputError, MismatchError, UsageError
from m3build_formats.manifest import BankFileEntries, FileEntry, VersionContents
from m3build_formats.rejects_file import write_rejects
from m3build_formats.shard_tables import DocumentRow


def merge_banks(
    banks: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prefer: Prefer | None = None,
    embedder_from: str | None = None,
    progress: Progress | None = None,
) -> MergeResult:
    """Make the bank ``out`` of the documents of all ``banks``.

    Raises UsageError (fewer than two banks, ``out`` holds something, a neural embedder is not at hand),
    MismatchError (banks that do not fit together), InputError (different documents under one id and no
    ``prefer``), CorruptError (naming the bank), BusyError, ResourceError.
    """
    names = [os.fspath(bank) for bank in banks]
    if len(names) < 2:
        raise UsageError("merging takes two banks or more; one is copied with cp -r")
    if prefer not in (None, "first", "last"):
        raise UsageError(f"prefer is first or last, not {prefer!r}")
    _refuse_place(os.fspath(out), names)
    watch = Watch(progress or Silent())
    with ExitStack() as stack:
        sources = stack.enter_context(MergeSources(names))
        manifests, first = sources.manifests, sources.manifests[0]
        refuse_other_facts(names, manifests)
        recorded, differing = merged_settings(manifests)
        settings = settings_of(recorded, first)
        _check_embedder(settings, embedder_from, sources)
        claims, excluded = _claims(sources, prefer, settings, watch, stack)
        # Whatever can be wrong with the banks as they fit together is found before anything is written.
        writer = stack.enter_context(BankWriter(out))
        build, data = writer.build_directory, writer.data
        ledger = Ledger(build / "ledger")
        sharded = _shard(sources, claims, settings, writer, watch, stack)
        rows = sum(shard.rows for shard in sharded.shards)
        if not rows:
            raise InputError("nothing to merge: the banks hold no chunk that none of them excludes")
        cold = any(manifest.cold for manifest in manifests)
        memories = MemoryWriter(
            first.row_bytes,
            first.row_codes_bytes,
            first.code_key,
            sharded.places,
            _stored(sources, build, watch, stack),
            data,
            build / "shards",
            ledger,
        )
        with watch.stage("copy", rows, "memories") as stage:
            # What has no memory in any bank stays so.
            encode = None if cold else _encode_nothing
            copied = [memories.write(shard, stage, encode) for shard in sharded.shards]
        run = RunOptions(embedder_from=embedder_from)
        retrieval = prepare_retrieval(settings, run, None, sharded, data, watch)
        vectors_writer = VectorWriter(
            retrieval.embedder, retrieval.state, {"embedder": retrieval.file.sha256}, {}, data, ledger, build
        )
        with watch.stage("embed", rows, "chunks") as stage:
            vectors = vectors_writer.write_all(sharded.shards, stage)
        rejects, dropped = _write_rejects(sources, settings, writer)
        shards_vectors = list(zip(sharded.shards, vectors, strict=True))
        contents = VersionContents(
            operation="merge",
            counts=merged_counts(manifests, sharded.counts, dropped, excluded, memories.counts["cold"]),
            sources={"settings": recorded, "banks": sources.summaries()},
            chunker=first.chunker,
            model=first.model,
            memory=first.memory,
            codec=first.codec,
            embedder=retrieval.embedder.facts(),
            index={
                **retrieval.state.facts(),
                "vectors": rows,
                "recall": index_recall(
                    retrieval.state,
                    drawn_queries(retrieval.embedder, sharded.places, sharded.shards, data.path),
                    shards_vectors,
                    data.path,
                ),
            },
            libraries=merged_libraries(manifests, library_versions()),
            code_key=first.code_key,
            row_codes_bytes=first.row_codes_bytes,
            row_positions_bytes=first.row_positions_bytes,
            shards=tuple(entries_of(sharded, copied, vectors)),
            files=BankFileEntries(
                codec=_copy_codec(sources, writer), embedder=retrieval.file, rejects=rejects, eval=None
            ),
        )
        manifest = writer.commit(contents, None)
        sharded.places.close()
        # Still under the lock: the next writer's scratch files must not be taken for this one's.
        shutil.rmtree(build, ignore_errors=True)
        if excluded:
            watch.note(f"{excluded:,} documents are left out that one of the banks excludes")
        if differing:
            watch.note(
                f"the banks were read with different {', '.join(differing)}: say which when you compile "
                f"sources into {os.fspath(out)}"
            )
        return MergeResult(
            bank=os.fspath(out),
            manifest=manifest,
            banks=tuple(sources.summaries()),
            shared=claims.shared,
            replaced=claims.replaced,
            copied=memories.counts["reused"],
            repeated=memories.counts["repeated"],
            stages=tuple(watch.stages),
            notes=tuple(watch.notes),
            seconds=watch.seconds,
        )


def _claims(
    sources: MergeSources, prefer: Prefer | None, settings: Settings, watch: Watch, stack: ExitStack
) -> tuple[Claims, int]:
    """Every document of every bank, entered but for those that any bank excludes; and how many these are."""
    exclusion, excluded = Exclusion(settings.exclude), 0
    # What was left out as nearly a duplicate depends on the rest of a bank.
    claims = stack.enter_context(Claims(sources.names, prefer, compare_chunks=not settings.near_duplicates))
    total = sum(manifest.counts["documents"] for manifest in sources.manifests)
    with watch.stage("compare", total, "documents") as stage:
        for number in range(len(sources.names)):
            for document, chunks in sources.documents_of(number):
                if _is_excluded(exclusion, document):
                    excluded += 1
                else:
                    claims.enter(number, document, chunks)
                stage.advance(1)
    return claims, excluded


def _shard(
    sources: MergeSources,
    claims: Claims,
    settings: Settings,
    writer: BankWriter,
    watch: Watch,
    stack: ExitStack,
) -> ShardedCorpus:
    """The documents of all banks in canonical order, cut into shards."""

    def documents() -> Iterator[tuple[DocumentRow, list[Chunk]]]:
        for number, document, chunks in sources.documents():
            if claims.takes(number, document):
                yield document, chunks

    build = writer.build_directory
    near = None
    if settings.near_duplicates:
        near = stack.enter_context(NearDuplicates(settings.near_duplicates, build))
    with watch.stage("shard", len(claims), "documents") as stage:
        sharded = shard_corpus(
            documents(),
            settings.shard_chunks,
            near.is_duplicate if near else None,
            _refuse_reject,
            writer.data,
            build / "shards",
            stage.advance,
        )
    stack.enter_context(closing(sharded.places))
    return sharded


def _stored(sources: MergeSources, build: Path, watch: Watch, stack: ExitStack) -> BankMemories:
    places = stack.enter_context(closing(Places(build / "old-places.sqlite")))
    with watch.stage("locate", sum(files.rows for files in sources.opened), "references") as stage:
        return sources.memories(places, stage)


def _copy_codec(sources: MergeSources, writer: BankWriter) -> FileEntry | None:
    """The codec file, byte for byte: codes and code key belong to it."""
    codec = sources.opened[0].whole_file("codec")
    if codec is not None:
        writer.add_file("codec", codec)
    return sources.manifests[0].files.codec


def _write_rejects(
    sources: MergeSources, settings: Settings, writer: BankWriter
) -> tuple[FileEntry | None, Counter[str]]:
    dropped: Counter[str] = Counter()
    rows = sources.rejects(Exclusion(settings.exclude), dropped)
    first = next(rows, None)
    return None if first is None else write_rejects(writer, chain([first], rows)), dropped


def _refuse_place(out: str, names: Sequence[str]) -> None:
    place = Path(out).resolve()
    for name in names:
        bank = Path(name).resolve()
        if place == bank or bank in place.parents:
            raise UsageError(f"{out} lies in {name}, which is to be merged: name another place with -o")
    if is_bank(out) and list_versions(out):
        raise UsageError(f"{out} holds a bank already: merge into a place that is new or empty")


def _check_embedder(settings: Settings, embedder_from: str | None, sources: MergeSources) -> None:
    name = sources.manifests[0].embedder["name"]
    if embedder_from is not None and (other := read_manifest(embedder_from).embedder["name"]) != name:
        raise MismatchError(f"the banks were embedded by {name}, {embedder_from} by {other}")
    if name == LEXICAL:
        return
    try:
        embedder = make_embedder(settings.embedder)
    except UsageError as error:
        raise UsageError(
            f"the banks were embedded by {name}, which a merge needs to embed their chunks anew: {error}"
        ) from error
    for bank, files in zip(sources.names, sources.opened, strict=True):
        if not embedder.fits(files.embedder_arrays()):
            raise MismatchError(f"{bank} was embedded by another {name} than the one at hand")


def _is_excluded(exclusion: Exclusion, document: DocumentRow) -> bool:
    """As a build would decide it: by the source, or by the id before equal records were numbered."""
    numbered = re.fullmatch(rf"(#[0-9a-f]{{{HASH_DIGITS}}}):\d+", document.id.removeprefix(document.source))
    given = document.source + numbered[1] if numbered else document.id
    return exclusion.takes_file(document.source) or exclusion.takes_file(given)


def _refuse_reject(reject: Reject) -> NoReturn:
    raise CorruptError(f"{reject.source}, {reject.where}: {reject.reason}")


def _encode_nothing(
    tokens: Sequence[NDArray[np.uint32]],
) -> Iterator[tuple[tuple[int, ...], NDArray[np.uint8]]]:
    raise CorruptError(f"{len(tokens)} chunks have no memory in any bank")
