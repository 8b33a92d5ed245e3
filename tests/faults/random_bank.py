"""Valid banks of random shape: what a writer may make, `verify` must not fault, and reads must give back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from m3build_formats.arrays_file import write_arrays
from m3build_formats.bank import open_bank
from m3build_formats.canonical_json import canonical_json
from m3build_formats.commit import BankWriter
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.layout import ARRAY_DTYPES, FAISS_FOURCC, UNUSED_SLOT, reference_text
from m3build_formats.manifest import BankFileEntries, Manifest, ShardEntry, VersionContents
from m3build_formats.rejects_file import RejectRow, write_rejects
from m3build_formats.shard_tables import (
    ChunkRow,
    DocumentRow,
    Occurrence,
    write_chunks,
    write_documents,
    write_embeddings,
    write_index,
    write_memories,
)

_CHARACTERS: Final = 'abc é文字ไท🙂\u0301\u200d\n\t\0"\\{}'
_FEW_ROWS: Final = (0, 1, 1, 2, 3, 4, 5, 7, 11, 20)
_MANY_ROWS: Final = (511, 512, 513, 1030)
_LENGTH: Final = 10**6


@dataclass(frozen=True)
class Shape:
    """What all shards of a bank share. ``heads`` lists the key-value heads of each memory layer; ``memories``
    is False for a bank of text alone."""

    memories: bool
    heads: list[list[int]]
    slots: int
    vector: int
    dim: int
    tokens: int

    @property
    def codes(self) -> int:
        """Bytes of a row's codes."""
        return 2 * sum(map(len, self.heads)) * self.slots * self.vector

    @property
    def positions(self) -> int:
        """Bytes of a row's positions."""
        return sum(map(len, self.heads)) * self.slots


@dataclass(frozen=True)
class ShardRows:
    """The rows of one shard as they were written."""

    documents: list[DocumentRow]
    chunks: list[ChunkRow]
    memories: NDArray[np.uint8]
    embeddings: NDArray[np.float16]
    index: bytes


@dataclass(frozen=True)
class Written:
    """What a version was made from."""

    shards: list[ShardRows]
    arrays: dict[str, dict[str, NDArray[Any]]]
    rejects: list[RejectRow]
    evaluation: object


def make_random_bank(path: Path, random: Random) -> tuple[list[Manifest], Written]:
    """A bank of one to three versions; returns their manifests and what the last one was made from."""
    shape = _shape(random)
    with BankWriter(path) as writer:
        manifests: list[Manifest] = []
        written = Written([], {}, [], None)
        shards: list[tuple[ShardEntry, ShardRows]] = []
        for _ in range(random.choice((1, 1, 2, 3))):
            kept = [item for item in shards if random.random() < 0.6]
            many = random.random() < 0.02
            wanted = [random.choice(_MANY_ROWS if many else _FEW_ROWS) for _ in range(random.randrange(4))]
            fresh = [_rows(random, shape, rows) for rows in wanted]
            shards = kept + [(_write(writer, shape, rows), rows) for rows in fresh]
            written = _bank_wide(random, [rows for _, rows in shards])
            contents = _contents(shape, [entry for entry, _ in shards], _write_files(writer, written))
            manifests.append(writer.commit(contents, manifests[-1] if manifests else None))
    return manifests, written


def differences(path: Path, written: Written) -> list[str]:
    """Names of what the current version gives back otherwise than it was written."""
    with open_bank(path) as opened:
        found = {
            "rejects": list(opened.rejects()) == written.rejects,
            "evaluation": repr(opened.evaluation()) == repr(written.evaluation),
            "codec": _same(opened.codec_arrays(), written.arrays.get("codec", {})),
            "embedder": _same(opened.embedder_arrays(), written.arrays.get("embedder", {})),
            "shards": len(opened.shards) == len(written.shards),
        }
        for number, (shard, rows) in enumerate(zip(opened.shards, written.shards, strict=True)):
            found[f"chunks of shard {number}"] = list(shard.chunks()) == rows.chunks
            found[f"documents of shard {number}"] = list(shard.document_rows()) == rows.documents
            found[f"embeddings of shard {number}"] = _joined(shard.embeddings()) == rows.embeddings.tobytes()
            found[f"index of shard {number}"] = bytes(shard.index_bytes()) == rows.index
            if shard.has_memories:
                found[f"memories of shard {number}"] = (
                    _joined(shard.memory_batches()) == rows.memories.tobytes()
                )
    return [name for name, same in found.items() if not same]


def _shape(random: Random) -> Shape:
    memories = random.random() < 0.8
    layers = random.randint(1, 3) if memories else random.randint(0, 1)
    return Shape(
        memories=memories,
        heads=[sorted(random.sample(range(6), random.randint(1, 4))) for _ in range(layers)],
        slots=random.choice((1, 2, 3, 8, 255)) if random.random() < 0.9 else random.randint(1, 255),
        vector=random.randint(1, 7),
        dim=random.choice((1, 2, 3, 8, 33)),
        tokens=random.choice((1, 5, 128, 255)),
    )


def _text(random: Random, most: int, least: int = 0) -> str:
    return "".join(random.choice(_CHARACTERS) for _ in range(random.randint(least, most)))


def _rows(random: Random, shape: Shape, rows: int) -> ShardRows:
    documents = [f"{number}/{_text(random, 5)}" for number in range(random.randint(1 if rows else 0, 4))]
    places: list[list[Occurrence]] = []
    start = 0
    for row, name in enumerate(documents):
        start = 0
        share = rows // len(documents) + (row < rows % len(documents))
        for _ in range(share):
            # Now and then an earlier chunk stands here too: a further occurrence, in order of the documents.
            if places and random.random() < 0.3:
                places[random.randrange(len(places))].append(Occurrence(name, row, start, start + 3))
                start += 3
            end = start + random.randint(1, 50)
            places.append([Occurrence(name, row, start, end)])
            start = end - random.randint(0, 1) if end - start > 1 else end
    chunks = [_chunk(random, shape, number, found) for number, found in enumerate(places)]
    counts = [sum(place.row == row for found in places for place in found) for row in range(len(documents))]
    return ShardRows(
        [_document(random, name, count) for name, count in zip(documents, counts, strict=True)],
        chunks,
        _memories(random, shape, chunks),
        np.random.default_rng(random.randrange(2**32))
        .standard_normal((len(chunks), shape.dim))
        .astype(np.float16),
        random.choice(list(FAISS_FOURCC)) + random.randbytes(random.randrange(200)),
    )


def _document(random: Random, name: str, chunks: int) -> DocumentRow:
    metadata = {
        _text(random, 3): random.choice((None, 1.5, "x", [1, {}])) for _ in range(random.randrange(3))
    }
    return DocumentRow(
        id=name,
        source=_text(random, 12),
        position=random.randrange(2**63),
        title=_text(random, 8),
        metadata=canonical_json(metadata),
        sha256=random.randbytes(32),
        characters=_LENGTH,
        chunks=chunks,
        part=random.randrange(3),
    )


def _chunk(random: Random, shape: Shape, number: int, places: list[Occurrence]) -> ChunkRow:
    title = _text(random, 6) if random.random() < 0.5 else ""
    text = f"{number} {_text(random, 30)}"
    reference = reference_text(title, text)
    tokens = random.randint(1, min(shape.tokens, 3 * len(reference)))
    ends = sorted(random.randint(0, len(reference)) for _ in range(tokens))
    return ChunkRow(hashlib.sha256(reference.encode()).digest(), text, title, tuple(ends), tuple(places))


def _memories(random: Random, shape: Shape, chunks: list[ChunkRow]) -> NDArray[np.uint8]:
    found = np.zeros((len(chunks), shape.codes + shape.positions), np.uint8)
    for row, chunk in zip(found, chunks, strict=True):
        positions, start, head = row[shape.codes :].reshape(-1, shape.slots), 0, 0
        positions[:] = UNUSED_SLOT
        for of_layer in shape.heads:
            size = 2 * len(of_layer) * shape.slots * shape.vector
            codes = row[start : start + size].reshape(2, len(of_layer), shape.slots, shape.vector)
            for number in range(len(of_layer)):
                # A row of which no head kept a token would have no memory yet.
                used = random.randint(0 if head else 1, min(shape.slots, chunk.tokens))
                positions[head, :used] = sorted(random.sample(range(chunk.tokens), used))
                drawn = random.randbytes(2 * used * shape.vector)
                codes[:, number, :used] = np.frombuffer(drawn, np.uint8).reshape(2, used, shape.vector)
                head += 1
            start += size
    return found


def _bank_wide(random: Random, shards: list[ShardRows]) -> Written:
    arrays = {}
    for kind in ("codec", "embedder"):
        if random.random() < 0.7:
            arrays[kind] = {_text(random, 4, 1): _array(random) for _ in range(random.randrange(4))}
    rejects = [
        RejectRow(
            _text(random, 9), _text(random, 4), _text(random, 40), random.choice(("reject", "unsupported"))
        )
        for _ in range(random.randrange(20))
    ]
    evaluation = [_text(random, 5), random.random(), None] if random.random() < 0.5 else None
    return Written(shards, arrays, rejects if random.random() < 0.7 else [], evaluation)


def _array(random: Random) -> NDArray[Any]:
    shape = tuple(random.randrange(4) for _ in range(random.randrange(4)))
    dtype = np.dtype(random.choice(ARRAY_DTYPES))
    size = int(np.prod(shape, dtype=int)) * dtype.itemsize
    return np.frombuffer(random.randbytes(size), dtype).reshape(shape)


def _write(writer: BankWriter, shape: Shape, rows: ShardRows) -> ShardEntry:
    # Producers hand over rows in any grouping; the file does not depend on it.
    cut = len(rows.chunks) // 3
    return ShardEntry(
        rows=len(rows.chunks),
        documents=len(rows.documents),
        chunks=write_chunks(writer, rows.chunks),
        documents_file=write_documents(writer, rows.documents),
        memories=write_memories(
            writer, [rows.memories[:cut], rows.memories[cut:]], shape.codes + shape.positions
        )
        if shape.memories
        else None,
        embeddings=write_embeddings(writer, [rows.embeddings[:cut], rows.embeddings[cut:]], shape.dim),
        index=write_index(writer, rows.index),
    )


def _write_files(writer: BankWriter, written: Written) -> BankFileEntries:
    arrays = {kind: write_arrays(writer, kind, found) for kind, found in written.arrays.items()}
    return BankFileEntries(
        codec=arrays.get("codec"),
        embedder=arrays.get("embedder"),
        rejects=write_rejects(writer, written.rejects) if written.rejects else None,
        eval=write_evaluation(writer, written.evaluation) if written.evaluation is not None else None,
    )


def _contents(shape: Shape, shards: list[ShardEntry], files: BankFileEntries) -> VersionContents:
    rows = sum(shard.rows for shard in shards)
    names = "documents tokens characters duplicates near_duplicates empty_documents rejects unsupported_files"
    return VersionContents(
        operation="compile",
        counts={"chunks": rows, **dict.fromkeys(names.split(), 0)},
        sources={},
        chunker={},
        model={"name": "random", "fingerprint": "f00d", "kv_heads": 6, "head_dim": 4},
        memory={
            "memory_layers": list(range(len(shape.heads))),
            "memory_heads": shape.heads,
            "sparse_tokens": shape.slots,
            "reference_tokens": shape.tokens,
        },
        codec={
            "spec": "none",
            "bytes_per_vector": shape.vector,
            "compression": 1,
            "key_error": None,
            "value_error": None,
        },
        embedder={"name": "random", "dim": shape.dim},
        index={"type": "Flat", "metric": "inner_product", "vectors": rows},
        libraries={},
        code_key="0123456789abcdef",
        row_codes_bytes=shape.codes,
        row_positions_bytes=shape.positions,
        shards=tuple(shards),
        files=files,
    )


def _joined(blocks: Iterable[NDArray[Any]]) -> bytes:
    return b"".join(block.tobytes() for block in blocks)


def _same(found: dict[str, NDArray[Any]], written: dict[str, NDArray[Any]]) -> bool:
    return {name: (item.dtype.str, item.shape, item.tobytes()) for name, item in found.items()} == {
        name: (item.dtype.str, item.shape, item.tobytes()) for name, item in written.items()
    }
