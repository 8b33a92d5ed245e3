"""Writes memories that were made at first retrieval (:mod:`m3build.cold`) back into their bank, as a new
version.

Only shards with newly warm rows get another memories file; all else of the version stays, text and index
above all. Rows are found by the hash of their text, so that a version that was committed in between is built
upon, not undone. The codec is the bank's; the first memories of a bank that has none settle it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from m3build.bank import Bank
from m3build.codec.codec import Codec
from m3build.codec.encoder import TorchEncoder
from m3build.cold import Place, WarmMemory
from m3build.model import LoadedModel
from m3build.model.device import dtype_name
from m3build.pipeline.codec_stage import PreparedCodec, code_key
from m3build.pipeline.libraries import library_versions
from m3build.pipeline.merge_check import MADE_MEMORIES
from m3build.pipeline.warm_codec import train_on_memories
from m3build.pipeline.watch import Watch
from m3build.progress import Progress, Silent
from m3build_formats.bank import open_bank
from m3build_formats.cold_rows import empty_rows
from m3build_formats.commit import BankWriter
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.manifest import FileEntry, Manifest, ShardEntry
from m3build_formats.open_bank import BankFiles
from m3build_formats.shard_tables import write_memories

OPERATION: Final = "persist"
_BLOCK: Final = 256
# What shapes the keys and values of a reference, as manifests say it.
_MODEL: Final = ("fingerprint", "rope", "dtype", "reference_bos_ids")
_MEMORY: Final = ("memory_layers", "memory_heads", "selection", "sparse_tokens")

Rows = dict[int, dict[int, NDArray[np.uint8]]]
"""Memory rows by shard and row."""


@dataclass(frozen=True, slots=True)
class Persisted:
    """What became of memories: ``manifest`` is that of the version that is current now, a new one if any row
    was written. ``written`` counts rows that are warm now and were cold; ``known`` references whose memory
    the bank had by now, ``gone`` those whose text has left it.
    """

    manifest: Manifest
    written: int
    known: int
    gone: int
    notes: tuple[str, ...] = ()

    @property
    def version(self) -> int:
        """Number of the version that is current now."""
        return self.manifest.version


def persist(
    path: str | os.PathLike[str],
    bank: Bank,
    model: LoadedModel,
    warm: Mapping[Place, WarmMemory],
    *,
    wait_seconds: float = 10.0,
    progress: Progress | None = None,
) -> Persisted:
    """Write memories into the bank at ``path``, of which ``bank`` is an open version.

    ``warm`` has the memories by (shard, row) of that version, as :class:`m3build.cold.ColdMemories` made them
    with ``model``; a memory may be any triple of keys, values (N, S, d) and positions (N, S), tensors or
    arrays. A reference that stands in several shards becomes warm in all of them.

    Raises MismatchError where the bank's memories are of another model, number type or device class than
    these, or the version that is current by now is; BusyError where another process writes the bank for
    ``wait_seconds``; UsageError, CorruptError, ResourceError.
    """
    watch = Watch(progress or Silent())
    memories = {
        bank.files.shards[shard].chunk_id(row): _checked(model, memory)
        for (shard, row), memory in warm.items()
    }
    with BankWriter(path, wait_seconds=wait_seconds) as writer:
        base = writer.current()
        if base is None:
            raise UsageError(f"{os.fspath(path)}: the bank has no version yet; run m3build compile")
        _refuse_other_memories(bank.manifest, base)
        _refuse_other_model(base, model)
        with open_bank(path, version=base.version) as files:
            places, known, gone = _places(files, memories)
            if not places:
                return Persisted(base, 0, known, gone)
            chosen = [memories[key] for key in sorted(places)]
            codec, key = _codec_of(files, model, chosen, writer, watch)
            rows: Rows = {}
            for identity, row in zip(sorted(places), _encoded(codec, model, chosen), strict=True):
                for shard, at in places[identity]:
                    rows.setdefault(shard, {})[at] = row
            settled = key == base.code_key
            shards = tuple(
                _with_rows(files, number, entry, rows.get(number, {}), codec, settled, writer)
                for number, entry in enumerate(base.shards)
            )
        written = sum(map(len, rows.values()))
        cold = base.cold - written
        counts = {name: count for name, count in base.counts.items() if name != "cold"}
        manifest = writer.commit(
            replace(
                base.contents,
                operation=OPERATION,
                counts={**counts, **({"cold": cold} if cold else {})},
                model={**base.model, "device": model.device.type},
                codec=codec.facts,
                libraries=_libraries(base),
                code_key=key,
                row_codes_bytes=codec.codec.row_bytes,
                row_positions_bytes=codec.row_bytes - codec.codec.row_bytes,
                shards=shards,
                files=replace(base.files, codec=codec.file, eval=base.files.eval if settled else None),
            ),
            base,
        )
        return Persisted(manifest, written, known, gone, tuple(watch.notes))


def _checked(model: LoadedModel, memory: Sequence[Any]) -> WarmMemory:
    """A memory as tensors. Raises ValueError for one of another shape than the model's, or without a
    token."""
    keys, values, positions = (torch.as_tensor(part) for part in memory)
    slots = (len(model.shape.heads), model.shape.sparse_tokens)
    vectors = (*slots, model.shape.head_dim)
    if tuple(keys.shape) != vectors or tuple(values.shape) != vectors or tuple(positions.shape) != slots:
        raise ValueError(f"keys {tuple(keys.shape)}, values {tuple(values.shape)}: not {vectors}")
    if bool((positions == 255).all()):
        raise ValueError("a memory keeps at least one token")
    return WarmMemory(keys, values, positions)


def _refuse_other_memories(opened: Manifest, base: Manifest) -> None:
    for section, names in (("model", _MODEL), ("memory", _MEMORY)):
        mine, theirs = getattr(opened, section), getattr(base, section)
        for name in names:
            if mine.get(name) != theirs.get(name):
                raise MismatchError(
                    f"these memories belong to version {opened.version}; version {base.version}, which is "
                    f"current now, has another {section}.{name}: open the bank again"
                )


def _refuse_other_model(base: Manifest, model: LoadedModel) -> None:
    recorded, found = base.model.get("dtype"), dtype_name(model.dtype)
    if recorded != found:
        raise MismatchError(
            f"the bank's memories are of {recorded}, the model runs in {found}: its memories can be read, "
            f"but not be written back; load the model in {recorded}"
        )
    recorded = base.model.get("device")
    if recorded != model.device.type and base.cold < base.rows:
        raise MismatchError(
            f"the bank's memories were made on {recorded}, these on {model.device.type}, which gives other "
            "bits: they can be read, but not be written back beside them"
        )


def _places(
    files: BankFiles, memories: Mapping[bytes, WarmMemory]
) -> tuple[dict[bytes, list[Place]], int, int]:
    """The cold rows of each reference that has any; how many references have a memory already, and how many
    are no longer there."""
    found: dict[bytes, list[Place]] = {}
    known = gone = 0
    there = files.locate(memories)
    for key in memories:
        if key not in there:
            gone += 1
            continue
        places = [(place.shard, place.row) for place in files.find(key.hex())]
        cold = [place for place, is_cold in zip(places, files.cold(places), strict=True) if is_cold]
        known += not cold
        if cold:
            found[key] = cold
    return found, known, gone


def _codec_of(
    files: BankFiles, model: LoadedModel, memories: Sequence[WarmMemory], writer: BankWriter, watch: Watch
) -> tuple[PreparedCodec, str]:
    """The codec to write with, and the code key of what it writes."""
    base = files.manifest
    fingerprint = str(base.model["fingerprint"])
    if base.cold == base.rows and base.files.codec is None:
        codec = train_on_memories(base, model, memories, writer.data, watch)
        return codec, code_key(model, fingerprint, codec)
    codec = PreparedCodec(
        Codec.from_arrays(files.codec_arrays(), base.codec), base.files.codec, dict(base.codec)
    )
    key = code_key(model, fingerprint, codec)
    if key != base.code_key and base.cold < base.rows:
        raise MismatchError(
            "the memories that the bank holds were written in another way than these: they cannot stand side "
            "by side"
        )
    return codec, key


def _encoded(
    codec: PreparedCodec, model: LoadedModel, memories: Sequence[WarmMemory]
) -> Iterator[NDArray[np.uint8]]:
    """The memory row of each memory, in order."""
    quantizer = TorchEncoder(codec.codec, model.device)
    with torch.no_grad():
        for start in range(0, len(memories), _BLOCK):
            parts = zip(*memories[start : start + _BLOCK], strict=True)
            keys, values, positions = (torch.stack(part).to(model.device) for part in parts)
            codes = quantizer.encode(keys, values, positions)
            rows: NDArray[np.uint8] = torch.cat([codes, positions.flatten(1)], dim=1).cpu().numpy()
            yield from rows


def _with_rows(
    files: BankFiles,
    number: int,
    entry: ShardEntry,
    rows: Mapping[int, NDArray[np.uint8]],
    codec: PreparedCodec,
    settled: bool,
    writer: BankWriter,
) -> ShardEntry:
    """A shard with new memory rows; those that it has stay if the codec does."""
    stored = files.shards[number] if settled and entry.memories is not None else None
    if not rows:
        return entry if stored is not None else replace(entry, memories=None)

    def blocks() -> Iterator[NDArray[np.uint8]]:
        first = 0
        for block in stored.memory_batches() if stored is not None else _cold_blocks(entry.rows, codec):
            here = block.copy()
            for row in range(first, first + len(block)):
                if row in rows:
                    here[row - first] = rows[row]
            yield here
            first += len(block)

    memories: FileEntry = write_memories(writer, blocks(), codec.row_bytes)
    return replace(entry, memories=memories)


def _cold_blocks(rows: int, codec: PreparedCodec) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, rows, _BLOCK):
        yield empty_rows(min(_BLOCK, rows - start), codec.row_bytes, codec.codec.row_bytes)


def _libraries(base: Manifest) -> dict[str, Any]:
    """Library versions of the new version: of those that make memories all values, so that no one takes
    equal bytes for granted, and those of this process alone where there was no memory yet."""
    here = library_versions()
    found = dict(base.libraries)
    for name in MADE_MEMORIES:
        before = set() if base.cold == base.rows else set(str(base.libraries.get(name)).split(", "))
        found[name] = ", ".join(sorted({*before, here[name]}))
    return found
