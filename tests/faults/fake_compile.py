"""A compile without a model, of the real one's shape: documents in, shards of neighbouring documents out,
equal texts of a shard one row, nothing written twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from sample_bank import bank_files, contents, memory_array, write_shard

from m3build_formats.commit import BankWriter
from m3build_formats.manifest import Manifest, ShardEntry
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard_tables import ChunkRow, DocumentRow, Occurrence

Documents = Mapping[str, tuple[str, ...]]
"""Document → the texts of its chunks, of at least three characters each."""

NAMES: Final = "abcdef"
"""Names that documents may have."""


def compile_bank(writer: BankWriter, found: Documents, base: Manifest | None) -> Manifest:
    """Commits a version that holds these documents."""
    shards = []
    for number, start in enumerate(range(0, len(NAMES), 2)):
        names = [name for name in NAMES[start : start + 2] if name in found]
        if names:
            shards.append(_shard(writer, number, names, found))
    # Shards as small as these stay several when banks are merged.
    made = replace(contents(shards, bank_files(writer)), chunker={"reference_tokens": 128, "shard_chunks": 2})
    return writer.commit(made, base)


def documents_of(opened: BankFiles) -> dict[str, tuple[str, ...]]:
    """The documents that a version holds, put together from its chunks."""
    pieces: dict[str, dict[int, str]] = {}
    for shard in opened.shards:
        for document in shard.document_rows():
            pieces[document.id] = {}
        for chunk in shard.chunks():
            for place in chunk.occurrences:
                pieces[place.document][place.start] = chunk.text
    return {name: tuple(texts[start] for start in sorted(texts)) for name, texts in pieces.items()}


def _shard(writer: BankWriter, number: int, names: list[str], found: Documents) -> ShardEntry:
    places: dict[str, list[Occurrence]] = {}
    rows = []
    for row, name in enumerate(names):
        start = 0
        for text in found[name]:
            places.setdefault(text, []).append(Occurrence(name, row, start, start + len(text)))
            start += len(text) + 1
        digest = hashlib.sha256("\n".join(found[name]).encode()).digest()
        rows.append(DocumentRow(name, f"{name}.txt", 0, "", "{}", digest, start, len(found[name])))
    chunks = [
        ChunkRow(
            hashlib.sha256(text.encode()).digest(), text, "", tuple(range(1, len(text) + 1)), tuple(where)
        )
        for text, where in places.items()
    ]
    return write_shard(writer, chunks, number, documents=rows, memories=memory_array(chunks, number))
