"""The readers that are fuzzed: each a function of bytes that raises only where a reader has a bug.

Digests are recomputed from the input, as an attacker would, so that it gets behind them. A typed error is an
answer; any other exception is a finding, and so is a crash, a hang or too much memory, which `run.py` sees.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from forge import JSON, Forge, seal
from good_bank import DIM, ROWS, build, make_codec, make_state
from source_targets import source_targets

from m3build.codec.codec import Codec
from m3build.embed import load_embedder
from m3build.index import IndexState, PartedIndex, build_part, open_part
from m3build_cli.info_text import describe_facts
from m3build_formats.arrays_file import read_arrays
from m3build_formats.arrow_file import batch_digest
from m3build_formats.canonical_json import parse_json
from m3build_formats.entries import Batches, FileEntry, ShardEntry
from m3build_formats.errors import M3Error
from m3build_formats.info import describe
from m3build_formats.layout import SUFFIXES
from m3build_formats.manifest import Manifest, parse_manifest
from m3build_formats.manifest_check import file_entry_problems
from m3build_formats.shard import Shard
from m3build_formats.verify_rows import check_shard

TABLES = ("chunks", "documents", "memories", "embeddings")
INDEXES = ("SQfp16", "Flat", "SQ8", "IVF4,Flat", "IVF4,SQfp16", "IVF4,SQ8", "IVF2,PQ4", "HNSW4")
SMALL_ROW_BYTES = 1 << 16
_HEADER = struct.Struct("<BIHB")


@dataclass(frozen=True)
class Target:
    """``run`` reads an input and says whether all of it was accepted; ``seeds`` makes inputs that are."""

    name: str
    run: Callable[[bytes], bool]
    seeds: Callable[[], list[bytes]]


@cache
def sound() -> Forge:
    """The sound bank taken apart."""
    with tempfile.TemporaryDirectory() as place:
        return Forge.of(build(Path(place) / "bank"))


def pack_table(kind: int, rows: int, each: int, parts: list[bytes]) -> bytes:
    """A table as one input: what its entry says and its parts (head, batches, rest) with their lengths."""
    lengths = struct.pack(f"<{len(parts)}I", *map(len, parts))
    return _HEADER.pack(kind, rows, each, len(parts)) + lengths + b"".join(parts)


def unpack_table(data: bytes, kinds: tuple[str, ...]) -> tuple[FileEntry, str, bytes] | None:
    """Entry, kind and file that an input means; None where no manifest could name such a file. Any bytes mean
    something: lengths beyond the end are cut."""
    if len(data) < _HEADER.size:
        return None
    number, rows, each, count = _HEADER.unpack_from(data)
    at = _HEADER.size + 4 * count
    if count < 2 or at > len(data):
        return None
    parts = []
    for length in struct.unpack_from(f"<{count}I", data, _HEADER.size):
        parts.append(data[at : at + length])
        at += len(parts[-1])
    head, batches, kind = parts[0], parts[1:-1], kinds[number % len(kinds)]
    ends = np.cumsum([len(head), *map(len, batches)])[1:].tolist()
    file = b"".join(parts)
    sha256 = hashlib.sha256(file).hexdigest()
    digests = tuple(map(batch_digest, batches))
    places = Batches(each, len(head), batch_digest(head), tuple(ends), digests)
    entry = FileEntry(f"{sha256}.{SUFFIXES[kind]}", sha256, len(file), rows, places)
    return None if file_entry_problems(entry.to_json(), kind) else (entry, kind, file)


def _table_input(number: int, entry: JSON, each: int | None = None) -> bytes:
    """A table of the sound bank, in batches of ``each`` rows if that is given."""
    forge, changed = sound().copy(), deepcopy(entry)
    if each is not None:
        forge.put_rows(changed, forge.table(changed).read(), each)
    table = forge.table(changed)
    return pack_table(number, table.rows, table.each, [table.head, *table.batches, table.tail])


def read_manifest(data: bytes) -> bool:
    """A manifest: everything that is done with one before a file is opened."""
    try:
        manifest = parse_manifest(seal(data), "versions/00000001.json")
    except M3Error as error:
        _look_at(error)
        return False
    facts = describe(manifest)
    json.dumps(facts, allow_nan=False)
    describe_facts("bank", facts)
    manifest.all_files()
    if parse_manifest(manifest.to_bytes(), "again") != manifest:
        raise AssertionError("a manifest does not come back as it was written")
    return True


def _manifest_seeds() -> list[bytes]:
    text = json.dumps(sound().manifest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    newer = {**sound().manifest, "features": ["later"], "format_version": 2}
    return [text.encode(), json.dumps(newer, separators=(",", ":")).encode()]


class _Workplace:
    """The files of a shard in a directory, and the manifest that they belong to."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name)
        forge = sound()
        for name, data in forge.files.items():
            (self.path / name).write_bytes(data)
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self.manifest = Manifest.from_json(forge.manifest)


@cache
def _workplace() -> _Workplace:
    return _Workplace()


def read_table(data: bytes) -> bool:
    """A table of a shard: all rows, by batch, by row and out of order, and the rules that ``verify``
    checks."""
    found = unpack_table(data, TABLES)
    if found is None:
        return False
    entry, kind, file = found
    place = _workplace()
    (place.path / entry.name).write_bytes(file)
    try:
        return _read_shard(place, entry, kind)
    finally:
        if entry.name not in sound().files:
            (place.path / entry.name).unlink()


def _read_shard(place: _Workplace, entry: FileEntry, kind: str) -> bool:
    shard: ShardEntry = place.manifest.shards[0]
    field = "documents_file" if kind == "documents" else kind
    changed: Any = {field: entry}
    shard = replace(shard, **changed)
    rows = entry.rows or 0
    if kind == "documents":
        shard = replace(shard, documents=rows)
    elif rows != shard.rows:
        # A manifest with tables of unlike length is refused, so that the others must claim the same.
        shard = replace(shard, rows=rows)
        for name in {"chunks", "memories", "embeddings"} - {kind}:
            other: Any = {name: replace(getattr(shard, name), rows=rows)}
            shard = replace(shard, **other)
    accepted = True
    for problem in check_shard(place.manifest, shard, place.descriptor, lambda count: None):
        accepted = False
        if len(str(problem)) > 2000:
            raise AssertionError("a problem in too many words")
    try:
        opened = Shard(shard, place.descriptor, place.manifest.row_bytes, DIM)
        if kind == "chunks":
            list(opened.chunks())
            list(opened.chunk_ids())
            opened.chunk(max(rows - 1, 0)) if rows else None
        elif kind == "documents":
            list(opened.document_rows())
        elif kind == "memories":
            list(opened.memory_batches())
            opened.memories(np.arange(min(rows, 1 << 16))[::-1])
        else:
            for block in opened.embeddings():
                block.astype(np.float32).sum()
    except M3Error as error:
        _look_at(error)
        return False
    return accepted


def _table_seeds() -> list[bytes]:
    shard = sound().manifest["shards"][0]
    fields = ("chunks", "documents_file", "memories", "embeddings")
    return [
        _table_input(number, shard[field], each) for number, field in enumerate(fields) for each in (None, 16)
    ]


def _arrays_of(data: bytes, kind: str) -> dict[str, np.ndarray] | None:
    found = unpack_table(data, (kind,))
    if found is None:
        return None
    entry, _, file = found
    arrays = read_arrays(entry, memoryview(file))
    for array in arrays.values():
        array.nbytes  # noqa: B018
    return arrays


def read_codec(data: bytes) -> bool:
    """Facts and arrays of a codec, and what it decodes from any bytes."""
    (length,) = struct.unpack("<I", data[:4].ljust(4, b"\0"))
    try:
        facts = parse_json(data[4 : 4 + length])
    except ValueError:
        return False
    if not isinstance(facts, dict):
        return False
    try:
        arrays = _arrays_of(data[4 + length :], "codec")
        if arrays is None:
            return False
        codec = Codec.from_arrays(arrays, facts)
    except M3Error as error:
        _look_at(error)
        return False
    json.dumps(codec.facts(), allow_nan=False)
    if codec.row_bytes <= SMALL_ROW_BYTES and 8 * len(codec.heads) * codec.slots * codec.head_dim <= 1 << 22:
        codes = np.random.default_rng(0).integers(0, 256, (2, codec.row_bytes), dtype=np.uint8)
        positions = np.full((2, len(codec.heads), codec.slots), 255, np.uint8)
        positions[0] = 0
        with np.errstate(all="ignore"):
            keys, values = codec.decode_rows(codes, positions)
        if keys.shape != values.shape or keys[1].any():
            raise AssertionError("unused slots are decoded")
    return True


def _codec_seeds() -> list[bytes]:
    seeds = []
    for spec in (
        "PQ2x8",
        "SQ8",
        "none",
        "OPQ2_4,Residual2x3,PQ4x5",
        "PCA2,SQ6",
        "RR4,SQ4",
        "Residual2x2,SQfp16",
    ):
        codec, forge = make_codec(spec), sound().copy()
        forge.put_arrays("codec", dict(sorted(codec.to_arrays().items())))
        facts = json.dumps(codec.facts()).encode()
        table = _packed_arrays(forge, "codec")
        seeds.append(struct.pack("<I", len(facts)) + facts + table)
    return seeds


def _packed_arrays(forge: Forge, kind: str) -> bytes:
    table = forge.table(forge.manifest["files"][kind])
    return pack_table(0, table.rows, table.each, [table.head, *table.batches, table.tail])


def read_embedder(data: bytes) -> bool:
    """Arrays of an embedder and of what the parts of an index share, and a search with them in no parts."""
    try:
        arrays = _arrays_of(data, "embedder")
        if arrays is None:
            return False
        state = IndexState.from_arrays(arrays)
        embedder = load_embedder(arrays)
    except M3Error as error:
        _look_at(error)
        return False
    json.dumps([embedder.facts(), state.facts()], allow_nan=False)
    queries = embedder.embed_queries(["a query", ""])
    if not np.isfinite(queries).all() or not np.isfinite(embedder.rerank("a query", ["query", ""])).all():
        raise AssertionError("a query's vector is not finite")
    if state.dim == embedder.dim:
        PartedIndex(state, []).search(queries, 3)
    return True


def _embedder_seeds() -> list[bytes]:
    seeds = []
    for spec in ("SQfp16", "SQ8", "IVF4,SQ8"):
        forge = sound().copy()
        arrays = forge.arrays("embedder")
        forge.put_arrays("embedder", dict(sorted({**arrays, **make_state(spec).to_arrays()}.items())))
        seeds.append(_packed_arrays(forge, "embedder"))
    return seeds


@cache
def _states() -> tuple[IndexState, ...]:
    return tuple(map(make_state, INDEXES))


@cache
def _queries() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((3, DIM)).astype(np.float32)


def read_index(data: bytes) -> bool:
    """A part of an index, and searches for few and for all of its rows."""
    if len(data) < 3:
        return False
    number, rows = struct.unpack_from("<BH", data)
    state = _states()[number % len(INDEXES)]
    # FAISS reads it in place, so that it must not move or go.
    file = np.frombuffer(data[3:], np.uint8)
    try:
        for probes in {min(1, state.spec.lists), state.spec.lists}:
            probing = replace(state, probes=probes)
            part = open_part(probing, file, rows)
            index = PartedIndex(probing, [lambda part=part: part])  # type: ignore[misc]
            for k in (1, rows + 1):
                found = index.search(_queries(), k)
                if not ((found.rows >= -1) & (found.rows < max(rows, 1))).all():
                    raise AssertionError("a row that is none")
    except M3Error as error:
        _look_at(error)
        return False
    return True


def _index_seeds() -> list[bytes]:
    random = np.random.default_rng(2)
    seeds = []
    for number, state in enumerate(_states()):
        for rows in (0, ROWS[0]):
            vectors = random.standard_normal((rows, DIM)).astype(np.float16)
            seeds.append(struct.pack("<BH", number, rows) + bytes(build_part(state, [vectors])))
    return seeds


def _look_at(error: M3Error) -> None:
    if len(str(error)) > 2000:
        raise AssertionError("a message in too many words") from error


TARGETS = {
    target.name: target
    for target in (
        Target("manifest", read_manifest, _manifest_seeds),
        Target("tables", read_table, _table_seeds),
        Target("codec", read_codec, _codec_seeds),
        Target("embedder", read_embedder, _embedder_seeds),
        Target("index", read_index, _index_seeds),
        *(Target(name, *found) for name, found in source_targets().items()),
    )
}
