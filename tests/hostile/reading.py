"""Everything that reads a bank, one step after another: what each gave, or how it failed.

A step is a name and a function of the bank's path. Its outcome is the SHA-256 of all it read, so that "reads
as if nothing were wrong" can be told from "reads something else", or the class and words of its error.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m3build.bank import Bank, open_bank
from m3build.codec.codec import Codec
from m3build_cli.main import cli
from m3build_formats.bank import list_versions, read_manifest
from m3build_formats.errors import CorruptError, M3Error
from m3build_formats.info import describe
from m3build_formats.open_bank import BankFiles
from m3build_formats.verify import verify

QUERIES = ["chunk 3 of shard 1", "naïve 文字"]
LONGEST_MESSAGE = 1000
"""Characters: an error is for people to read, however long the name or value that it is about."""


@dataclass(frozen=True)
class Outcome:
    """``error`` is the class of the error that ended the step, "" without one; ``typed`` whether it is one of
    `m3build_formats.errors`; ``text`` its message, or the digest of what was read."""

    error: str
    typed: bool
    text: str


def read_everything(path: Path, commands: bool = True) -> dict[str, dict[str, Any]]:
    """The outcome of each step as JSON, by name in the order of `STEPS`. Steps that need the bank open are
    left out where it cannot be opened, and most commands unless ``commands``."""
    outcomes: dict[str, Outcome] = {}
    for name, step in STEPS.items():
        outcomes[name] = _outcome(lambda step=step: step(path))  # type: ignore[misc]
    opened: list[Bank] = []
    outcomes["open"] = _outcome(lambda: opened.append(open_bank(path)) or b"open")  # type: ignore[func-returns-value]
    if opened:
        with opened[0] as bank:
            for name, of_bank in OPEN_STEPS.items():
                outcomes[name] = _outcome(lambda of_bank=of_bank: of_bank(bank))  # type: ignore[misc]
        for name, arguments in COMMANDS.items():
            if commands or arguments == ("info",):
                outcomes[name] = _outcome(lambda arguments=arguments: _run(path, *arguments))  # type: ignore[misc]
    return {name: asdict(outcome) for name, outcome in outcomes.items()}


def _outcome(step: Callable[[], object]) -> Outcome:
    digest = hashlib.sha256()
    try:
        for piece in _pieces(step()):
            digest.update(piece)
    except M3Error as error:
        return Outcome(type(error).__name__, True, str(error))
    except Exception as error:  # noqa: BLE001 - that there is none is what the tests assert
        return Outcome(type(error).__name__, False, str(error))
    return Outcome("", True, digest.hexdigest())


def _pieces(value: object) -> Iterator[bytes | memoryview]:
    """A value of any kind as bytes, without holding what an iterator has already given."""
    if isinstance(value, bytes | memoryview):
        yield value
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype.name} {value.shape}".encode()
        yield np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Iterator):
        for item in value:
            yield from _pieces(item)
    else:
        yield repr(value).encode("utf-8", "surrogatepass")


def _verified(path: Path, level: Any) -> str:
    report = verify(path, level)
    for problem in report.problems:
        if len(str(problem)) > LONGEST_MESSAGE:
            raise AssertionError(f"a problem of {len(str(problem))} characters")
    if not report.ok:
        raise CorruptError("; ".join(map(str, report.problems))[:LONGEST_MESSAGE])
    return "sound"


def _run(path: Path, command: str, *arguments: str) -> str:
    """What a command prints."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(printed):
        cli.main([command, str(path), *arguments], prog_name="m3build", standalone_mode=False)
    printed.seek(0)
    return printed.read().replace(str(path), "BANK")


def _chunks(files: BankFiles) -> Iterator[object]:
    for shard in files.shards:
        yield from shard.chunks()
        yield from shard.chunk_ids()
        yield from (shard.chunk(row) for row in {0, shard.rows - 1} if 0 <= row < shard.rows)
        yield from (batch.to_pylist() for batch in shard.chunk_batches())


def _documents(files: BankFiles) -> Iterator[object]:
    for shard in files.shards:
        yield from shard.document_rows()
        yield from (shard.document(row) for row in {0, shard.documents - 1} if 0 <= row < shard.documents)
        yield from (batch.to_pylist() for batch in shard.document_batches())


def _memories(files: BankFiles) -> Iterator[object]:
    for shard in files.shards:
        if shard.has_memories:
            yield from shard.memory_batches()
            yield shard.memories(np.arange(shard.rows)[::-1])


def _embeddings(files: BankFiles) -> Iterator[object]:
    for shard in files.shards:
        yield from shard.embeddings()


def _ids(files: BankFiles) -> Iterator[object]:
    known = [bytes(ids[0]) for shard in files.shards for ids in shard.chunk_ids() if len(ids)]
    yield sorted(files.locate([*known, bytes(32)]).items())
    for identity in known:
        yield files.find(identity.hex())


def _codec(files: BankFiles) -> Iterator[object]:
    manifest = files.manifest
    codec = Codec.from_arrays(files.codec_arrays(), manifest.codec)
    if codec.row_bytes != manifest.row_codes_bytes:
        raise CorruptError(f"codec: rows of {codec.row_bytes} bytes, not {manifest.row_codes_bytes}")
    for shard in files.shards:
        rows = shard.memories([0] if shard.rows and shard.has_memories else [])
        positions = rows[:, codec.row_bytes :].reshape(len(rows), len(codec.heads), codec.slots)
        yield from codec.decode_rows(rows[:, : codec.row_bytes], positions)


def _show(bank: Bank) -> Iterator[object]:
    for number, shard in enumerate(bank.files.shards):
        for row in range(min(shard.rows, 2)):
            facts = bank.show(shard.chunk_id(row).hex())
            yield number, facts.id, facts.text, facts.sources, facts.token_ends
            yield from ((head, facts.kept_tokens(*head)) for head in facts.heads if facts.kept is not None)


def _read(bank: Bank) -> Iterator[object]:
    """Decoded memories, as an inference engine asks for them: the first and the last rows of all shards at
    once, then one of them from the cache. Rows that have no memory yet are left out."""
    shards = bank.files.shards
    rows = [
        (number, row)
        for number, shard in enumerate(shards)
        for row in sorted({0, shard.rows - 1})
        if row >= 0
    ]
    cold = bank.cold(rows)
    warm = [place for place, is_cold in zip(rows, cold, strict=True) if not is_cold]
    ids = [shards[number].chunk_id(row).hex() for number, row in warm]
    for wanted in (ids, ids[:1]):
        memories = bank.read(wanted)
        yield memories.ids
        yield from (memories.keys, memories.values, memories.positions, memories.mask)


STEPS: dict[str, Callable[[Path], object]] = {
    "versions": list_versions,
    "manifest": lambda path: read_manifest(path).to_json(),
    "info": lambda path: json.dumps({**describe(read_manifest(path)), "sha256": "", "created": ""}),
    "verify quick": lambda path: _verified(path, "quick"),
    "verify": lambda path: _verified(path, "default"),
}
OPEN_STEPS: dict[str, Callable[[Bank], object]] = {
    "chunks": lambda bank: _chunks(bank.files),
    "documents": lambda bank: _documents(bank.files),
    "memories": lambda bank: _memories(bank.files),
    "embeddings": lambda bank: _embeddings(bank.files),
    "ids": lambda bank: _ids(bank.files),
    "index bytes": lambda bank: iter([shard.index_bytes() for shard in bank.files.shards]),
    "codec": lambda bank: _codec(bank.files),
    "embedder arrays": lambda bank: iter(sorted(bank.files.embedder_arrays().items())),
    "rejects": lambda bank: bank.files.rejects(),
    "evaluation": lambda bank: bank.files.evaluation(),
    "search": lambda bank: bank.search(QUERIES, k=5).hits,
    "exact search": lambda bank: bank.search(QUERIES, k=5, exact=True).hits,
    "show": _show,
    "read": _read,
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "m3build info": ("info",),
    "m3build search": ("search", QUERIES[0]),
    "m3build verify": ("verify", "--json"),
}
