"""Banks made of given documents, for tests of what differs between versions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sample_bank import bank_files, contents, write_shard

from m3build_formats.bank import manifest_name
from m3build_formats.canonical_json import canonical_json
from m3build_formats.commit import BankWriter
from m3build_formats.data_directory import FileTarget
from m3build_formats.manifest import Manifest, ShardEntry
from m3build_formats.shard_tables import ChunkRow, DocumentRow, Occurrence


@dataclass(frozen=True)
class Doc:
    """A document, or from ``part`` 1 on the rest of one: its id, the texts of its chunks here, and what its
    whole text is (by default these chunks)."""

    id: str
    chunks: tuple[str, ...]
    title: str = ""
    metadata: str = "{}"
    part: int = 0
    text: str | None = None

    @property
    def sha256(self) -> bytes:
        whole = "\n".join(self.chunks) if self.text is None else self.text
        return hashlib.sha256(whole.encode()).digest()


def chunk_id(text: str) -> bytes:
    """The id of a chunk without a title."""
    return hashlib.sha256(text.encode()).digest()


def corpus_shard(target: FileTarget, documents: Sequence[Doc]) -> ShardEntry:
    """One shard of these documents, equal texts as one row."""
    places: dict[str, list[Occurrence]] = {}
    rows = []
    for row, document in enumerate(documents):
        for number, text in enumerate(document.chunks):
            start = 1000 * number
            places.setdefault(text, []).append(Occurrence(document.id, row, start, start + len(text)))
        rows.append(
            DocumentRow(
                document.id,
                "corpus.jsonl",
                row,
                document.title,
                document.metadata,
                document.sha256,
                10**6,
                len(document.chunks),
                document.part,
            )
        )
    # At least as many tokens as a head has slots: the last ones of a short text are empty.
    chunks = [
        ChunkRow(chunk_id(text), text, "", (*range(1, len(text) + 1), len(text), len(text)), tuple(found))
        for text, found in places.items()
    ]
    return write_shard(target, chunks, documents=rows)


def commit_corpus(path: Path, shards: Sequence[Sequence[Doc]], operation: str = "compile") -> Manifest:
    """A new version of the bank at ``path`` (made where it is missing) with these shards."""
    with BankWriter(path) as writer:
        made = contents([corpus_shard(writer, shard) for shard in shards], bank_files(writer), operation)
        documents = sum(document.part == 0 for shard in shards for document in shard)
        counts = {**made.counts, "documents": documents}
        return writer.commit(replace(made, counts=counts), writer.current())


def put_newer_manifest(bank: Path, version: int) -> None:
    """A version of format 2, made of the first one's manifest."""
    value = json.loads((bank / "versions" / manifest_name(1)).read_bytes())
    del value["sha256"]
    body = canonical_json({**value, "format_version": 2, "version": version})
    digest = hashlib.sha256(body.encode()).hexdigest()
    place = bank / "versions" / manifest_name(version)
    place.write_bytes(f'{body[:-1]},"sha256":"{digest}"}}\n'.encode())
