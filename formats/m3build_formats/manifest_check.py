"""What is wrong with a manifest, all of it at once, each with the path to the place.

The input is JSON from a stranger: any type may stand anywhere. Checks go from types to ranges to what must
agree across fields, and a later check of a value runs only where the earlier ones passed, so that one fault
gives one problem. The same contract, minus what crosses fields, is schema/manifest.schema.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from m3build_formats.checker import Checker, Problem
from m3build_formats.layout import (
    BATCH_DIGEST_BYTES,
    FORMAT,
    FORMAT_VERSION,
    MAX_DIMENSION,
    MAX_FILE_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADS,
    MAX_JSON_INTEGER,
    MAX_LAYERS,
    MAX_REFERENCE_TOKENS,
    MAX_ROW_BYTES,
    MAX_ROWS,
    MAX_ROWS_PER_BATCH,
    MAX_SHARD_ROWS,
    MAX_VERSION,
    MIN_HEAD_BYTES,
    SUFFIXES,
    TABLE_KINDS,
)

COUNTS: Final = (
    "documents",
    "chunks",
    "tokens",
    "characters",
    "duplicates",
    "near_duplicates",
    "empty_documents",
    "rejects",
    "unsupported_files",
)
_TOP_LEVEL: Final = frozenset(
    [
        "format",
        "format_version",
        "features",
        "version",
        "base",
        "created",
        "operation",
        "counts",
        "sources",
        "chunker",
        "model",
        "memory",
        "codec",
        "embedder",
        "index",
        "libraries",
        "code_key",
        "row_bytes",
        "shards",
        "files",
    ]
)
_FILES: Final = ("codec", "embedder", "rejects", "eval")
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_DIGEST: Final = re.compile(rf"[0-9a-f]{{{2 * BATCH_DIGEST_BYTES}}}", re.ASCII)
_CODE_KEY: Final = re.compile(r"[0-9a-f]{8,128}", re.ASCII)
_CREATED: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


def manifest_problems(value: object) -> list[Problem]:
    """Everything wrong with a parsed manifest (without its ``sha256``); empty for a good one. Never raises on
    JSON values."""
    check = Checker()
    top = check.mapping(value, "manifest", _TOP_LEVEL, exact=True)
    if top is None:
        return check.problems
    if top.get("format") != FORMAT:
        check.add("format", f"expected {FORMAT!r}")
    check.integer(top.get("format_version"), "format_version", FORMAT_VERSION, FORMAT_VERSION)
    if top.get("features") != []:
        check.add("features", "expected [], since format 1 has no features yet")
    version = check.integer(top.get("version"), "version", 1, MAX_VERSION)
    _check_base(check, top.get("base"), version)
    check.matching(top.get("created"), "created", _CREATED, "a UTC time like 2024-07-01T12:00:00Z")
    check.text(top.get("operation"), "operation")
    counts = check.mapping(top.get("counts"), "counts", COUNTS)
    for name, count in (counts or {}).items():
        check.integer(count, f"counts.{name}", 0, MAX_JSON_INTEGER)
    for name in ("sources", "chunker", "libraries"):
        check.mapping(top.get(name), name)
    check.matching(top.get("code_key"), "code_key", _CODE_KEY, "8 to 128 lower-case hex digits")
    _check_sections(check, top)
    has_memories = _check_shards(check, top)
    files = check.mapping(top.get("files"), "files", _FILES, exact=True) or {}
    for kind in _FILES:
        if files.get(kind) is not None:
            _check_file(check, files[kind], f"files.{kind}", kind)
    _check_row_bytes(check, top, has_memories)
    if not check.problems:
        _check_codec_fits(check, top)
    return check.problems


def file_entry_problems(value: object, kind: str) -> list[Problem]:
    """Everything wrong with the JSON of one file entry of ``kind``, as a resumable build may have stored
    it."""
    check = Checker()
    _check_file(check, value, "entry", kind)
    return check.problems


def _check_base(check: Checker, base: object, version: int | None) -> None:
    if base is None:
        return
    found = check.mapping(base, "base", ("version", "sha256"), exact=True)
    if found is not None:
        check.matching(found.get("sha256"), "base.sha256", _SHA256, "64 lower-case hex digits")
        check.integer(found.get("version"), "base.version", 1, (version or MAX_VERSION + 1) - 1)


def _check_sections(check: Checker, top: Mapping[str, Any]) -> None:
    kv_heads = None
    model = check.mapping(top.get("model"), "model", ("name", "fingerprint", "kv_heads", "head_dim"))
    if model is not None:
        check.text(model.get("name"), "model.name")
        check.text(model.get("fingerprint"), "model.fingerprint")
        kv_heads = check.integer(model.get("kv_heads"), "model.kv_heads", 1, MAX_HEADS)
        check.integer(model.get("head_dim"), "model.head_dim", 1, MAX_DIMENSION)
    required = ("memory_layers", "memory_heads", "sparse_tokens", "reference_tokens")
    memory = check.mapping(top.get("memory"), "memory", required)
    if memory is not None:
        layers = check.integers(
            memory.get("memory_layers"), "memory.memory_layers", MAX_LAYERS - 1, MAX_LAYERS
        )
        heads = memory.get("memory_heads")
        if not isinstance(heads, list) or (layers is not None and len(heads) != len(layers)):
            check.add("memory.memory_heads", "expected a list with one list of heads for each memory layer")
        else:
            for number, of_layer in enumerate(heads):
                path = f"memory.memory_heads[{number}]"
                if check.integers(of_layer, path, (kv_heads or MAX_HEADS) - 1, MAX_HEADS) == []:
                    check.add(path, "expected at least one head")
        check.integer(memory.get("sparse_tokens"), "memory.sparse_tokens", 1, MAX_REFERENCE_TOKENS)
        check.integer(memory.get("reference_tokens"), "memory.reference_tokens", 1, MAX_REFERENCE_TOKENS)
    codec = check.mapping(
        top.get("codec"), "codec", ("spec", "bytes_per_vector", "compression", "key_error", "value_error")
    )
    if codec is not None:
        check.text(codec.get("spec"), "codec.spec")
        check.integer(codec.get("bytes_per_vector"), "codec.bytes_per_vector", 1, MAX_ROW_BYTES)
        check.number(codec.get("compression"), "codec.compression")
        for name in ("key_error", "value_error"):
            if codec.get(name) is not None:
                check.number(codec[name], f"codec.{name}")
    embedder = check.mapping(top.get("embedder"), "embedder", ("name", "dim"))
    if embedder is not None:
        check.text(embedder.get("name"), "embedder.name")
        check.integer(embedder.get("dim"), "embedder.dim", 1, MAX_DIMENSION)
    index = check.mapping(top.get("index"), "index", ("type", "metric", "vectors"))
    if index is not None:
        check.text(index.get("type"), "index.type")
        check.text(index.get("metric"), "index.metric")
        check.integer(index.get("vectors"), "index.vectors", 0, MAX_ROWS)


def _check_row_bytes(check: Checker, top: Mapping[str, Any], has_memories: bool) -> None:
    row = check.mapping(top.get("row_bytes"), "row_bytes", ("codes", "positions"), exact=True)
    if row is None:
        return
    codes = check.integer(row.get("codes"), "row_bytes.codes", 0, MAX_ROW_BYTES)
    positions = check.integer(row.get("positions"), "row_bytes.positions", 0, MAX_ROW_BYTES)
    if check.problems or codes is None or positions is None:
        return
    heads = sum(map(len, top["memory"]["memory_heads"]))
    slots = heads * top["memory"]["sparse_tokens"]
    if positions != slots:
        check.add(
            "row_bytes.positions",
            f"expected {slots}: {heads} heads of {top['memory']['sparse_tokens']} slots, got {positions}",
        )
    vector = top["codec"]["bytes_per_vector"]
    if codes != 2 * slots * vector:
        check.add(
            "row_bytes.codes",
            f"expected {2 * slots * vector}: 2 × {slots} slots × {vector} bytes, got {codes}",
        )
    if has_memories and not slots:
        check.add("row_bytes", "is zero, but the shards have memories")


def _check_codec_fits(check: Checker, top: Mapping[str, Any]) -> None:
    """Checks what a decoder is told of the memories against the sections that say it first."""
    memory, codec = top["memory"], top["codec"]
    layers = zip(memory["memory_layers"], memory["memory_heads"], strict=True)
    expected = {
        "heads": [[layer, head] for layer, of_layer in layers for head in of_layer],
        "head_dim": top["model"]["head_dim"],
        "slots": memory["sparse_tokens"],
    }
    for key, value in expected.items():
        if key in codec and codec[key] != value:
            check.add(f"codec.{key}", f"expected {str(value)[:60]}, as memory and model say")


def _check_shards(check: Checker, top: Mapping[str, Any]) -> bool:
    """Checks all shards; True where they have memories."""
    shards = top.get("shards")
    if not isinstance(shards, list):
        check.add("shards", "expected a list")
        return False
    keys = ("rows", "documents", "chunks", "documents_file", "memories", "embeddings", "index")
    with_memories, total = 0, 0
    for number, value in enumerate(shards):
        path = f"shards[{number}]"
        shard = check.mapping(value, path, keys, exact=True)
        if shard is None:
            continue
        rows = check.integer(shard.get("rows"), f"{path}.rows", 0, MAX_SHARD_ROWS)
        documents = check.integer(shard.get("documents"), f"{path}.documents", 0, MAX_SHARD_ROWS)
        total += rows or 0
        for key, kind, expected in (
            ("chunks", "chunks", rows),
            ("documents_file", "documents", documents),
            ("memories", "memories", rows),
            ("embeddings", "embeddings", rows),
            ("index", "index", None),
        ):
            if key == "memories" and shard.get(key) is None:
                continue
            with_memories += key == "memories"
            found = _check_file(check, shard.get(key), f"{path}.{key}", kind)
            if found is not None and expected is not None and found != expected:
                check.add(f"{path}.{key}.rows", f"expected the shard's {expected}, got {found}")
    if not check.problems:
        _check_counts(check, top["counts"], shards, total)
    return bool(with_memories)


def _check_counts(check: Checker, counts: Mapping[str, int], shards: list[Any], total: int) -> None:
    if counts["chunks"] != total:
        check.add("counts.chunks", f"expected the {total} rows of the shards, got {counts['chunks']}")
    without = sum(shard["rows"] for shard in shards if shard["memories"] is None)
    cold = counts.get("cold", without)
    if not without <= cold <= total:
        check.add(
            "counts.cold",
            f"expected from {without}, the rows of shards without memories, to {total}, got {cold}",
        )


def _check_file(check: Checker, value: object, path: str, kind: str) -> int | None:
    """Checks a file entry and returns its rows."""
    entry = check.mapping(value, path, ("name", "sha256", "bytes", "rows", "batches"), exact=True)
    if entry is None:
        return None
    sha256 = check.matching(entry.get("sha256"), f"{path}.sha256", _SHA256, "64 lower-case hex digits")
    if sha256 is not None and entry.get("name") != f"{sha256}.{SUFFIXES[kind]}":
        check.add(
            f"{path}.name",
            f"expected its SHA-256 and {SUFFIXES[kind]!r}, got {str(entry.get('name'))[:90]!r}",
        )
    size = check.integer(entry.get("bytes"), f"{path}.bytes", 0, MAX_FILE_BYTES)
    if kind not in TABLE_KINDS:
        if entry.get("rows") is not None:
            check.integer(entry["rows"], f"{path}.rows", 0, MAX_ROWS)
        if entry.get("batches") is not None:
            check.add(f"{path}.batches", f"expected null for {kind}")
        return None
    rows = check.integer(entry.get("rows"), f"{path}.rows", 0, MAX_ROWS)
    batches = check.mapping(
        entry.get("batches"), f"{path}.batches", ("rows", "head", "ends", "digests"), exact=True
    )
    if batches is not None and size is not None and rows is not None:
        _check_batches(check, batches, f"{path}.batches", rows, size)
    return rows


def _check_batches(check: Checker, batches: Mapping[str, Any], path: str, rows: int, size: int) -> None:
    each = check.integer(batches.get("rows"), f"{path}.rows", 1, MAX_ROWS_PER_BATCH)
    head = check.mapping(batches.get("head"), f"{path}.head", ("bytes", "digest"), exact=True)
    if head is None or each is None:
        return
    check.matching(head.get("digest"), f"{path}.head.digest", _DIGEST, "32 lower-case hex digits")
    start = check.integer(head.get("bytes"), f"{path}.head.bytes", MIN_HEAD_BYTES, min(size, MAX_HEAD_BYTES))
    expected = -(-rows // each)
    ends = check.integers(batches.get("ends"), f"{path}.ends", size, expected)
    if ends is not None and len(ends) != expected:
        check.add(f"{path}.ends", f"expected {expected} of them for {rows} rows, got {len(ends)}")
    if start is not None and ends and ends[0] <= start:
        check.add(f"{path}.ends", f"starts with {ends[0]}, inside the head of {start} bytes")
    digests = batches.get("digests")
    if not isinstance(digests, list) or len(digests) != expected or not _all_digests(digests):
        check.add(f"{path}.digests", f"expected {expected} strings of 32 lower-case hex digits")


def _all_digests(values: list[Any], is_digest: Callable[[str], object] = _DIGEST.fullmatch) -> bool:
    return set(map(type, values)) <= {str} and all(map(is_digest, values))
