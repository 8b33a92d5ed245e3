"""``compile``: makes a bank equal to its sources, one stage after the other.

Everything that is finished on the way is either a data file named by its content or an entry in the ledger
under ``build/``, so that a build that is stopped goes on where it was. The version is committed last; until
then the bank is what it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from m3build.chunking import Chunker, ChunkOptions, NearDuplicates
from m3build.config import (
    CompileOptions,
    RunOptions,
    Settings,
    parse_drift_limit,
    parse_reject_limit,
    resolve,
)
from m3build.corpus import Exclusion, SourceFile, discover, spool_standard_input
from m3build.model import LoadedModel, load_model
from m3build.pipeline.codec_stage import check_codec, code_key, codec_is_open, prepare_codec
from m3build.pipeline.corpus_stage import ChunkedCorpus, CorpusReading
from m3build.pipeline.drift import measure_drift
from m3build.pipeline.file_hashes import FileHashes
from m3build.pipeline.freed_memory import give_back_freed_memory
from m3build.pipeline.ledger import Ledger
from m3build.pipeline.libraries import library_versions
from m3build.pipeline.manifest_limit import manifest_problem
from m3build.pipeline.memory_stage import MemoryWriter
from m3build.pipeline.notes import codec_note, exclusion_notes
from m3build.pipeline.pieces import keep_pieces
from m3build.pipeline.result import CompileResult
from m3build.pipeline.retrieval_stage import check_retrieval, prepare_retrieval
from m3build.pipeline.settings import shape_request, source_options
from m3build.pipeline.shard_files import embed_shards, encode_shards, entries_of, memories_to_copy
from m3build.pipeline.shard_stage import ShardedCorpus, shard_corpus
from m3build.pipeline.unchanged import RECORD, is_asked_to_build, nothing_to_do, take_down
from m3build.pipeline.vector_stage import drawn_queries, index_recall
from m3build.pipeline.version_facts import chunk_shape, cold_counts, counts_of, is_same, memory_facts
from m3build.pipeline.watch import Watch
from m3build.progress import Progress, Silent
from m3build.records import Reject
from m3build.workers import default_workers
from m3build_formats.bank import is_bank, list_versions, read_manifest
from m3build_formats.commit import BankWriter
from m3build_formats.errors import (
    CorruptError,
    InputError,
    M3Error,
    MismatchError,
    ResourceError,
    UsageError,
)
from m3build_formats.manifest import BankFileEntries, FileEntry, Manifest, VersionContents
from m3build_formats.rejects_file import RejectRow, write_rejects

STANDARD_INPUT = "-"


def compile_bank(
    sources: Sequence[str],
    bank: str | os.PathLike[str],
    options: CompileOptions,
    run: RunOptions,
    progress: Progress | None = None,
    standard_input: BinaryIO | None = None,
) -> CompileResult:
    """Compile ``sources`` into ``bank``.

    Raises InputError (nothing to compile, too many rejects), MismatchError (options or model differ from the
    bank's), UsageError, ResourceError, BusyError, CorruptError; OSError and MemoryError where the machine
    fails outside the bank's files.
    """
    watch = Watch(progress or Silent())
    limit = parse_reject_limit(run.max_rejects)
    workers = run.workers if run.workers is not None else default_workers()
    if workers < 1:
        raise UsageError(f"{workers} workers: there must be at least one")
    drift_limit = parse_drift_limit(run.drift)
    old = _current(bank)
    recorded = old.sources.get("settings") if old else None
    settings = resolve(options, recorded, run.rebuild, run.readmit)
    # The version whose codec and embedder this build keeps.
    kept = None if run.rebuild or run.retrain else old
    # Whatever can be wrong with sources, model and options is found before the bank's directory is touched.
    files, found = _find([source for source in sources if source != STANDARD_INPUT])
    exclusion = Exclusion(settings.exclude)
    files = [file for file in files if not exclusion.takes_file(file.name)]
    found = [reject for reject in found if not exclusion.takes_file(reject.source)]
    if old is not None and STANDARD_INPUT not in sources and not is_asked_to_build(run):
        unchanged = nothing_to_do(old, settings, options, run, files, found, bank, watch)
        if unchanged is not None:
            return unchanged
    model = _load(settings, run)
    model_facts = model.record()
    if old is not None and not run.rebuild:
        _refuse_other_model(old, model_facts, settings.model)
    check_codec(settings, run, model)
    check_retrieval(settings, run)
    with BankWriter(bank) as writer, ExitStack() as stack:
        build = writer.build_directory
        ledger = Ledger(build / "ledger")
        hashes = stack.enter_context(FileHashes(build / "hashes.sqlite", run.rehash))
        if STANDARD_INPUT in sources:
            files = _with_standard_input(files, standard_input, build)
        near = None
        if settings.near_duplicates:
            near = stack.enter_context(NearDuplicates(settings.near_duplicates, build))
        chunker = Chunker(model.tokenizer, ChunkOptions(model.shape.reference_tokens, settings.title))
        reading = CorpusReading(
            files,
            found,
            source_options(settings),
            chunker,
            chunk_shape(model, chunker),
            limit,
            build / "pieces",
            ledger,
            hashes,
            workers,
            exclusion.matched.total(),
            watch,
        )
        try:
            corpus, sharded, counts = _taken_in(reading, near, settings, run, old, writer, stack)
        except InputError:
            _take_back(writer)
            raise
        of_chunker, first_rejects = chunker.describe(), tuple(reading.gate.first)
        # With a copy of the tokenizer, which nothing after this needs.
        del chunker, reading
        codec = prepare_codec(
            settings,
            run,
            kept,
            model,
            model_facts["fingerprint"],
            sharded,
            writer.data,
            ledger,
            watch,
        )
        # One that is taken over is looked at before the long work of encoding. One that is made now would
        # only lie beside the model until then.
        retrieval = None
        if kept is not None or run.embedder_from is not None:
            retrieval = prepare_retrieval(settings, run, kept, sharded, writer.data, watch)
        if kept is not None and retrieval is not None:
            if not codec_is_open(kept):
                _refuse_other_file("--codec-from", run.codec_from, kept.files.codec, codec.file)
            _refuse_other_file("--embedder-from", run.embedder_from, kept.files.embedder, retrieval.file)
        matched = exclusion.matched + corpus.excluded
        for note in exclusion_notes(options.exclude or (), recorded, matched, kept):
            watch.note(note)
        if (of_codec := codec_note(kept, settings)) is not None:
            watch.note(of_codec)
        key = code_key(model, model_facts["fingerprint"], codec)
        encoder = None
        if not settings.text_only:
            if (problem := manifest_problem(counts["chunks"], codec.row_bytes)) is not None:
                raise ResourceError(problem)
            encoder = partial(codec.row_encoder, model, run.batch_tokens)
        # Whoever builds anew with text only wants to be rid of the memories.
        stored = None if settings.text_only and run.rebuild else old
        copied = memories_to_copy(stored, key, encoder is not None, writer, ledger, stack)
        memories = MemoryWriter(
            codec.row_bytes,
            codec.codec.row_bytes,
            key,
            sharded.places,
            copied,
            writer.data,
            build / "shards",
            ledger,
        )
        written = encode_shards(sharded, memories, encoder, watch)
        drift = None
        if encoder is not None and kept is not None and retrieval is not None:
            drift = measure_drift(
                kept,
                drift_limit,
                run.batch_tokens,
                model,
                codec,
                retrieval,
                copied,
                key,
                sharded,
                writer.data,
                watch,
            )
        of_memory = memory_facts(model)
        # Nothing after this needs them: embedder and index take their place.
        del model, encoder
        give_back_freed_memory()
        if retrieval is None:
            retrieval = prepare_retrieval(settings, run, None, sharded, writer.data, watch)
        vectors = embed_shards(sharded, retrieval, old, writer, ledger, workers, watch)
        of_embedder, embedder_file, state = retrieval.embedder.facts(), retrieval.file, retrieval.state
        queries = drawn_queries(retrieval.embedder, sharded.places, sharded.shards, writer.data.path)
        # A part of the index is the largest thing that a build reads whole; the embedder is the next.
        del retrieval
        contents = VersionContents(
            operation="compile",
            counts={**counts, "excluded": matched.total(), **cold_counts(memories)},
            sources={"settings": settings.to_json(), "files": len(files)},
            chunker={
                **of_chunker,
                "near_duplicates": settings.near_duplicates,
                "shard_chunks": settings.shard_chunks,
            },
            model=model_facts,
            memory=of_memory,
            codec=codec.facts,
            embedder=of_embedder,
            index={
                **state.facts(),
                "vectors": counts["chunks"],
                "recall": index_recall(
                    state, queries, list(zip(sharded.shards, vectors, strict=True)), writer.data.path
                ),
            },
            libraries=library_versions(),
            code_key=key,
            row_codes_bytes=codec.codec.row_bytes,
            row_positions_bytes=codec.row_bytes - codec.codec.row_bytes,
            shards=tuple(entries_of(sharded, written, vectors)),
            files=BankFileEntries(
                codec=codec.file,
                embedder=embedder_file,
                rejects=_write_rejects(corpus, sharded, writer),
                eval=None,
            ),
        )
        # An evaluation stays with what it describes. One that is damaged cannot be made anew, and goes.
        changed = old is None or not (is_same(old, contents) and _sound(old.files.eval, writer))
        manifest = writer.commit(contents, old) if changed or old is None else old
        # Files of the version there was that this build found missing or damaged, and wrote.
        repaired = sorted(writer.data.written & set(old.all_files())) if old is not None else []
        if repaired and not changed:
            writer.data.sync()
        sharded.places.close()
        # Still under the lock: the next writer's scratch files must not be taken for this one's.
        _tidy(build, corpus, ledger)
        if corpus.digest is not None and STANDARD_INPUT not in sources:
            take_down(manifest, settings, run, corpus.digest, matched, build, hashes)
            hashes.forget_others()
    return CompileResult(
        bank=os.fspath(bank),
        manifest=manifest,
        changed=changed,
        repaired=tuple(repaired),
        cut=corpus.cut,
        encoded=memories.counts["encoded"],
        reused=memories.counts["reused"],
        repeated=memories.counts["repeated"],
        stages=tuple(watch.stages),
        rejects=first_rejects,
        notes=tuple(watch.notes),
        seconds=watch.seconds,
        drift=drift,
    )


def _taken_in(
    reading: CorpusReading,
    near: NearDuplicates | None,
    settings: Settings,
    run: RunOptions,
    old: Manifest | None,
    writer: BankWriter,
    stack: ExitStack,
) -> tuple[ChunkedCorpus, ShardedCorpus, dict[str, int]]:
    """Read and shard the corpus, whose places are closed with ``stack``. Raises InputError where it is not
    one to make a version of."""
    with closing(reading.documents()) as documents:
        sharded = shard_corpus(
            documents,
            settings.shard_chunks,
            near.is_duplicate if near else None,
            reading.gate,
            writer.data,
            writer.build_directory / "shards",
        )
    stack.enter_context(closing(sharded.places))
    corpus = reading.finished()
    counts = counts_of(corpus, sharded)
    # Ids that were given twice show only when all ranges are brought together.
    reading.gate.at_end(counts["documents"] + counts["empty_documents"] + counts["rejects"])
    if not counts["chunks"]:
        raise InputError("nothing to compile: the documents hold no text that the tokenizer has tokens for")
    if old is not None and not run.allow_shrink and 2 * counts["documents"] < old.counts["documents"]:
        raise InputError(
            f"the sources hold {counts['documents']:,} documents, the bank {old.counts['documents']:,}: "
            "if over half of them are really gone, say --allow-shrink"
        )
    return corpus, sharded, counts


def _take_back(writer: BankWriter) -> None:
    """Remove the files of a corpus that was refused, but for those that a version names: one that could not
    be read may name any."""
    try:
        manifests = [read_manifest(writer.path, version) for version in list_versions(writer.path)]
    except M3Error:
        return
    writer.data.take_back({name for manifest in manifests for name in manifest.all_files()})


def _current(bank: str | os.PathLike[str]) -> Manifest | None:
    if not (is_bank(bank) and list_versions(bank)):
        return None
    try:
        return read_manifest(bank)
    except CorruptError as error:
        raise CorruptError(
            f"{error}. What this version held is unknown: restore the file from a copy of the bank, or go "
            "over it with m3build rollback to a version before it; then compile again"
        ) from error


def _find(sources: Sequence[str]) -> tuple[list[SourceFile], list[Reject]]:
    found: list[Reject] = []
    return (discover(sources, found.append) if sources else []), found


def _with_standard_input(files: list[SourceFile], stream: BinaryIO | None, build: Path) -> list[SourceFile]:
    if stream is None:
        raise UsageError("- reads standard input, which is closed or was not given")
    return sorted([*files, spool_standard_input(stream, build)], key=lambda file: file.name)


def _tidy(build: Path, corpus: ChunkedCorpus, ledger: Ledger) -> None:
    """Leave of the scratch directory what the next build can use."""
    keep_pieces(corpus.pieces, build / "pieces", ledger)
    for path in build.iterdir():
        if path.is_dir():
            if path.name not in ("pieces", "ledger"):
                shutil.rmtree(path, ignore_errors=True)
        elif not path.name.startswith(("hashes.sqlite", RECORD)):
            path.unlink(missing_ok=True)


def _load(settings: Settings, run: RunOptions) -> LoadedModel:
    return load_model(
        settings.model,
        shape_request(settings),
        device=run.device,
        dtype=settings.dtype,
        trust_remote_code=run.trust_remote_code,
    )


def _refuse_other_model(old: Manifest, facts: dict[str, Any], name: str) -> None:
    for key, what in (
        ("fingerprint", "another model"),
        ("rope", "other RoPE settings"),
        ("reference_bos_ids", "another reference BOS"),
        ("dtype", "another dtype"),
    ):
        if old.model.get(key) != facts[key]:
            raise MismatchError(
                f"the bank was built with {what} ({old.model['name']}, {key} {str(old.model.get(key))[:40]}; "
                f"{name} has {str(facts[key])[:40]}). Name the same model, or build anew with --rebuild"
            )


def _refuse_other_file(option: str, given: str | None, old: FileEntry | None, new: FileEntry | None) -> None:
    if given is not None and (old.sha256 if old else None) != (new.sha256 if new else None):
        raise MismatchError(
            f"{option} {given} differs from what the bank was built with: leave it out, or build anew "
            f"with --rebuild"
        )


def _write_rejects(corpus: ChunkedCorpus, sharded: ShardedCorpus, writer: BankWriter) -> FileEntry | None:
    def rows() -> Iterator[RejectRow]:
        for reject in chain(corpus.rejects(), sharded.rejects()):
            yield RejectRow(reject.source, reject.where, reject.reason, reject.kind)

    if next(rows(), None) is None:
        return None
    return write_rejects(writer, rows())


def _sound(file: FileEntry | None, writer: BankWriter) -> bool:
    return file is None or writer.data.is_sound(file)
