"""Whether a bank is whole, judged apart from the code that is judged: every file hashed with hashlib, every
read called, and `verify` asked as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from m3build_formats.bank import list_versions, open_bank, read_manifest
from m3build_formats.errors import M3Error, UsageError
from m3build_formats.manifest import Manifest
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard import Shard
from m3build_formats.verify import verify


class TornError(AssertionError):
    """A bank is neither the old version nor the new one."""


def current_version(bank: Path) -> Manifest | None:
    """The manifest of the current version, None where the bank has none yet."""
    try:
        return read_manifest(bank) if list_versions(bank) else None
    except UsageError:
        return None


def whole_version(bank: Path) -> Manifest | None:
    """The current version after every byte of it was read and judged, None where the bank has no version.

    Raises TornError for bytes that are not those of the manifest, for a problem that `verify` sees in any
    version, and whatever the reads raise.
    """
    manifest = current_version(bank)
    return judge_version(bank, manifest, frozenset()) if manifest is not None else None


def judge_version(bank: Path, manifest: Manifest, damaged: frozenset[str]) -> Manifest:
    """The same for any version, where `verify` must name exactly the files in ``damaged``."""
    for entry in (entry for _, entry in manifest.all_files().values()):
        data = (bank / "data" / entry.name).read_bytes()
        if len(data) != entry.bytes or hashlib.sha256(data).hexdigest() != entry.sha256:
            raise TornError(f"{entry.name} of version {manifest.version} has other bytes")
    with open_bank(bank, manifest.version, f"sha256:{manifest.sha256}") as opened:
        for _, read in reads(opened):
            read()
    problems = verify(bank).problems
    if {problem.file for problem in problems} != damaged:
        raise TornError("verify says: " + ("; ".join(map(str, problems[:3])) or "all is well"))
    return manifest


def reads(opened: BankFiles) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every way to read from an open version: a name, and a function that gives a value which compares."""
    yield "manifest", lambda: opened.manifest.to_json()
    yield "rejects", lambda: list(opened.rejects())
    yield "evaluation", lambda: repr(opened.evaluation())
    yield "codec_arrays", lambda: _arrays(opened.codec_arrays())
    yield "embedder_arrays", lambda: _arrays(opened.embedder_arrays())
    for number, shard in enumerate(opened.shards):
        for name, read in _shard_reads(shard):
            yield f"shards[{number}].{name}", read
    yield "locate", lambda: sorted(opened.locate([bytes(32), *_ids(opened)]).items())
    yield "find", lambda: [opened.find(identity.hex()) for identity in _ids(opened)[:2]]


def _shard_reads(shard: Shard) -> Iterator[tuple[str, Callable[[], Any]]]:
    some = [row for row in (0, shard.rows - 1, shard.rows // 2) if 0 <= row < shard.rows]
    yield "chunk", lambda: [shard.chunk(row) for row in some]
    yield "chunks", lambda: list(shard.chunks())
    yield "chunk_id", lambda: [shard.chunk_id(row) for row in some]
    yield "chunk_ids", lambda: b"".join(block.tobytes() for block in shard.chunk_ids())
    yield "chunk_batches", lambda: [batch.to_pylist() for batch in shard.chunk_batches()]
    yield "document", lambda: [shard.document(row) for row in range(min(2, shard.documents))]
    yield "document_rows", lambda: list(shard.document_rows())
    yield "document_batches", lambda: [batch.to_pylist() for batch in shard.document_batches()]
    yield "embeddings", lambda: b"".join(block.tobytes() for block in shard.embeddings())
    yield "index_bytes", lambda: bytes(shard.index_bytes())
    if shard.has_memories:
        yield "memories", lambda: shard.memories(range(shard.rows)).tobytes()
        yield "memories of some rows", lambda: shard.memories(some).tobytes()
        yield "memory_batches", lambda: b"".join(block.tobytes() for block in shard.memory_batches())


def _ids(opened: BankFiles) -> list[bytes]:
    return [chunk.id for shard in opened.shards for chunk in shard.chunks()]


def _arrays(arrays: dict[str, Any]) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    return [(name, str(item.dtype), item.shape, item.tobytes()) for name, item in arrays.items()]


def answers(bank: Path) -> dict[str, Any]:
    """What each read of the current version gives: its value, or the expected error's class where it raises
    one. Any other exception passes through."""
    try:
        opened = open_bank(bank)
    except M3Error as error:
        return {"open_bank": type(error)}
    found: dict[str, Any] = {}
    with opened:
        for name, read in reads(opened):
            try:
                found[name] = read()
            except M3Error as error:
                found[name] = type(error)
    return found


def wrong_answers(found: dict[str, Any], good: dict[str, Any]) -> list[str]:
    """Names of the reads that gave something else than the good value without an expected error."""
    return [
        name
        for name, value in found.items()
        if not (isinstance(value, type) and issubclass(value, M3Error)) and value != good.get(name)
    ]
