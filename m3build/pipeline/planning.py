"""``compile --plan``: what a build would cost, from the model's config, a sample of the corpus, and a few
real chunks encoded on this machine.

Nothing is written. A model directory that holds only a config is enough for sizes and FLOPs; then no time is
told, since nothing can be measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3build.chunking import Chunker, ChunkOptions
from m3build.codec.codec import Codec, array_shapes
from m3build.codec.presets import resolve_codec
from m3build.codec.rows import Scope, codebook_count
from m3build.codec.spec import CodecSpec
from m3build.config import CompileOptions, RunOptions, Settings, resolve
from m3build.corpus import Exclusion, SourceOptions, SourceRange, discover, read_range
from m3build.embed import make_embedder
from m3build.index import choose_spec, stored_bytes
from m3build.model import LoadedModel, MemoryShape, ShapeRequest, load_model, load_shape
from m3build.model.memory3_file import asked_codec
from m3build.model.source import find_model, weight_files
from m3build.pipeline.codec_stage import PreparedCodec
from m3build.pipeline.manifest_limit import manifest_problem
from m3build.pipeline.settings import shape_request, source_options
from m3build.pipeline.sharder import MAXIMUM_OVER_MINIMUM
from m3build.pipeline.units import units_of
from m3build.plan import (
    code_bytes,
    dense_bytes,
    memory_plan,
    model_shape,
    paper_write_flops,
    position_bytes,
    sparse_bytes,
    write_flops,
)
from m3build.progress import Progress, Silent
from m3build.records import Chunk, Document
from m3build_formats.bank import is_bank, list_versions, read_manifest
from m3build_formats.errors import InputError, UsageError

SAMPLE_BYTES = 8 << 20
TIMED_REFERENCES = 256
EMBEDDING_BYTES = 2
# Beside its text and token ends a row of the chunks table holds an id, offsets, counts and one occurrence.
ROW_BYTES = 80


@dataclass(frozen=True, slots=True)
class Plan:
    """What a build would cost. Bytes and FLOPs are for all ``references`` unless they say "each"; seconds are
    None where nothing was measured.
    """

    references: int
    counted: bool
    shards: tuple[int, int]
    model: str
    memory_layers: tuple[int, ...]
    codec: str
    dense_bytes_each: int
    sparse_bytes_each: int
    code_bytes_each: int
    position_bytes_each: int
    text_bytes: int | None
    embedding_bytes: int
    index_bytes: int
    paper_flops_each: float
    flops_each: float
    seconds: dict[str, float] | None
    text_only: bool
    notes: tuple[str, ...]

    @property
    def bank_bytes(self) -> int:
        """Bytes on disk that the parts add up to, text left out where the corpus was not read, and memories
        where they are left to be made at first retrieval."""
        memories = self.references * (self.code_bytes_each + self.position_bytes_each)
        if self.text_only:
            memories = 0
        return memories + (self.text_bytes or 0) + self.embedding_bytes + self.index_bytes

    def to_json(self) -> dict[str, Any]:
        """The plan as one JSON object."""
        return {**asdict(self), "bank_bytes": self.bank_bytes}


def plan_build(
    sources: Sequence[str],
    bank: Path | None,
    options: CompileOptions,
    run: RunOptions,
    references: float | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Plan a build of ``sources``, or of ``references`` references whatever their text.

    Raises UsageError without sources and without a number of references, and what ``compile`` raises for a
    model or option that cannot be used.
    """
    listener = progress or Silent()
    old = read_manifest(bank) if bank is not None and is_bank(bank) and list_versions(bank) else None
    settings = resolve(options, old.sources.get("settings") if old else None, run.rebuild, run.readmit)
    if not sources and references is None:
        raise UsageError("what to plan for? Name SOURCES, or a number with --references")
    if references is not None and not 1 <= references <= 1e15:
        raise UsageError(f"--references is a number from 1 to 1e15, not {references:g}")
    request = shape_request(settings)
    facts, shape = load_shape(settings.model, request, trust_remote_code=run.trust_remote_code)
    directory = find_model(settings.model, trust_remote_code=run.trust_remote_code, weights=False).directory
    model = _load_if_there(directory, settings, run, request)
    sampled = _sample(sources, settings, model, listener) if sources and model is not None else None
    if sampled is not None and references is None:
        count, counted = sampled.references, sampled.whole
    elif references is not None:
        count, counted = round(references), True
    else:
        raise UsageError(f"{settings.model} has no weights and no tokenizer here: plan with --references N")
    bos = len(model.reference_bos_ids) if model is not None else 0
    sizes = model_shape(facts)
    vectors = 2 * len(shape.heads) * shape.sparse_tokens
    scope: Scope = settings.codec_scope  # type: ignore[assignment]
    flops = write_flops(sizes, memory_plan(shape, bos), shape.memory_layers[-1])
    codec = resolve_codec(
        asked_codec(settings.codec, directory),
        shape.head_dim,
        training_vectors=int(min(count, 1 << 40) * vectors / codebook_count(scope, shape.heads)),
        forward_flops=flops,
        vectors=vectors,
    )
    memory = memory_plan(shape, bos, codec.spec.bytes_per_vector(shape.head_dim))
    seconds = None
    if model is not None and sampled is not None and sampled.chunks:
        stand_in = stand_in_codec(codec.spec, scope, shape)
        seconds = _seconds(model, stand_in, sampled, settings, run, count, listener)
    if seconds is not None and settings.text_only:
        seconds.pop("encode")
    embedder = make_embedder(settings.embedder)
    row_bytes = code_bytes(memory) + position_bytes(memory)
    problem = None if settings.text_only else manifest_problem(count, row_bytes)
    return Plan(
        references=count,
        counted=counted,
        shards=(
            -(-count // (MAXIMUM_OVER_MINIMUM * settings.shard_chunks)),
            -(-count // settings.shard_chunks),
        ),
        model=facts.name,
        memory_layers=shape.memory_layers,
        codec=str(codec.spec),
        dense_bytes_each=dense_bytes(sizes, shape.reference_tokens),
        sparse_bytes_each=sparse_bytes(sizes, memory),
        code_bytes_each=code_bytes(memory),
        position_bytes_each=position_bytes(memory),
        text_bytes=round(sampled.text_bytes * count / max(1, sampled.references)) if sampled else None,
        embedding_bytes=count * embedder.dim * EMBEDDING_BYTES,
        index_bytes=count * stored_bytes(choose_spec(settings.index, count), embedder.dim),
        paper_flops_each=paper_write_flops(sizes, memory),
        flops_each=write_flops(sizes, memory, shape.memory_layers[-1]),
        seconds=seconds,
        text_only=settings.text_only,
        notes=(*codec.warnings, *([problem] if problem else [])),
    )


@dataclass(frozen=True, slots=True)
class _Sampled:
    """What a sample of the corpus says of the whole: ``whole`` if the sample was everything."""

    references: int
    text_bytes: int
    chunk_seconds: float
    whole: bool
    chunks: tuple[Chunk, ...]


def _load_if_there(
    directory: Path, settings: Settings, run: RunOptions, request: ShapeRequest
) -> LoadedModel | None:
    if not weight_files(directory):
        return None
    return load_model(
        settings.model,
        request,
        device=run.device,
        dtype=settings.dtype,
        trust_remote_code=run.trust_remote_code,
    )


def _sample(sources: Sequence[str], settings: Settings, model: LoadedModel, progress: Progress) -> _Sampled:
    if "-" in sources:
        raise UsageError("--plan cannot look at standard input without using it up: plan with --references N")
    options = source_options(settings)
    exclusion = Exclusion(settings.exclude)
    files = [file for file in discover(sources, lambda reject: None) if not exclusion.takes_file(file.name)]
    units = list(units_of(files, options))
    total = sum(unit.bytes for unit in units)
    # Every n-th range, so that a corpus that changes along the way is seen all along.
    ranges = [item for unit in units for item in unit.ranges]
    step = max(1, round(total / SAMPLE_BYTES))
    chosen = ranges[::step]
    chunker = Chunker(model.tokenizer, ChunkOptions(model.shape.reference_tokens, settings.title))
    began = time.perf_counter()
    chunks: list[Chunk] = []
    count = text_bytes = 0
    with progress.stage("sample", None, "chunks") as stage:
        for document, found in chunker.cut_many(_documents(chosen, options)):
            count += len(found)
            text_bytes += sum(_row_bytes(document, chunk) for chunk in found)
            chunks.extend(found[:: max(1, len(found) // 4)] if len(chunks) < 8 * TIMED_REFERENCES else [])
            stage.advance(len(found))
    if not count:
        raise InputError(
            f"nothing to compile in the part of the sources that was looked at ({len(chosen)} ranges)"
        )
    share = len(ranges) / len(chosen)
    return _Sampled(
        round(count * share),
        round(text_bytes * share),
        (time.perf_counter() - began) * share,
        step == 1,
        tuple(chunks),
    )


def _documents(ranges: Sequence[SourceRange], options: SourceOptions) -> Iterator[Document]:
    exclusion = Exclusion(options.exclude)
    for item in ranges:
        for record in read_range(item, options):
            if isinstance(record, Document) and not exclusion.takes(record):
                yield record


def _row_bytes(document: Document, chunk: Chunk) -> int:
    return (
        len(chunk.text.encode())
        + len(chunk.title.encode())
        + 2 * len(chunk.token_ends)
        + len(document.id)
        + ROW_BYTES
    )


def stand_in_codec(spec: CodecSpec, scope: Scope, shape: MemoryShape) -> Codec:
    """A codec of the right size with random arrays: quantizing with it costs about what it will with a
    trained one.
    """
    draw = np.random.default_rng(0)
    shapes = array_shapes(spec, scope, shape.heads, shape.head_dim)
    arrays = {name: draw.standard_normal(size, np.float32) for name, size in shapes.items()}
    if "scale" in arrays:
        arrays["scale"] = np.ones(shapes["scale"], np.float32)
    return Codec(spec, scope, shape.heads, shape.head_dim, shape.sparse_tokens, arrays)


def _seconds(
    model: LoadedModel,
    codec: Codec,
    sampled: _Sampled,
    settings: Settings,
    run: RunOptions,
    count: int,
    progress: Progress,
) -> dict[str, float]:
    """Seconds by stage for ``count`` references, from encoding some of the sample on this machine."""
    step = max(1, len(sampled.chunks) // TIMED_REFERENCES)
    timed = sampled.chunks[::step][:TIMED_REFERENCES]
    tokens = [np.array(chunk.token_ids, np.uint32) for chunk in timed]
    with (
        PreparedCodec(codec, None, {}).row_encoder(model, run.batch_tokens) as rows,
        progress.stage("time", len(timed), "references") as stage,
    ):
        for _ in rows(tokens[:8]):
            pass
        began = time.perf_counter()
        for indices, _ in rows(tokens):
            stage.advance(len(indices))
        encode = (time.perf_counter() - began) / len(timed)
    embedder = make_embedder(settings.embedder)
    texts = [chunk.reference_text for chunk in timed]
    embedder.fit(texts)
    began = time.perf_counter()
    embedder.embed(texts)
    embed = (time.perf_counter() - began) / len(timed)
    return {
        "chunk": sampled.chunk_seconds * count / max(1, sampled.references),
        "encode": encode * count,
        "embed": embed * count,
    }
