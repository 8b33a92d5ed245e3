"""The facts that `m3build info --json` prints, from the manifest alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3build_formats.layout import FORMAT_VERSION
from m3build_formats.manifest import Manifest


def describe(manifest: Manifest) -> dict[str, Any]:
    """One JSON object with the counts, sizes in bytes (each file once), model, codec, embedder and index of a
    version."""
    sizes = dict.fromkeys(("text", "memories", "codec", "embeddings", "index"), 0)
    total = 0
    for kind, entry in manifest.all_files().values():
        total += entry.bytes
        kind = "text" if kind in ("chunks", "documents") else kind
        if kind in sizes:
            sizes[kind] += entry.bytes
    model, memory = manifest.model, manifest.memory
    return {
        "format_version": FORMAT_VERSION,
        "version": manifest.version,
        "sha256": manifest.sha256,
        "created": manifest.created,
        "operation": manifest.operation,
        "documents": manifest.counts["documents"],
        "chunks": manifest.counts["chunks"],
        "tokens": manifest.counts["tokens"],
        "duplicates": manifest.counts["duplicates"],
        "near_duplicates": manifest.counts["near_duplicates"],
        "empty_documents": manifest.counts["empty_documents"],
        "rejects": manifest.counts["rejects"],
        "unsupported_files": manifest.counts["unsupported_files"],
        "unlisted": unlisted(manifest),
        "excluded": manifest.counts.get("excluded", 0),
        "cold": manifest.cold,
        "exclude": excluded_patterns(manifest),
        "characters": manifest.counts["characters"],
        "shards": len(manifest.shards),
        "bytes": {**sizes, "total": total},
        "model": {
            "name": model["name"],
            "fingerprint": model["fingerprint"],
            "memory_layers": list(memory["memory_layers"]),
            "kv_heads": model["kv_heads"],
            "head_dim": model["head_dim"],
            "sparse_tokens": memory["sparse_tokens"],
            "reference_tokens": memory["reference_tokens"],
            **_present(model, "architecture", "dtype", "device"),
            **_present(memory, "selection"),
        },
        "codec": {
            **_named(manifest.codec, "spec", "bytes_per_vector", "compression", "key_error", "value_error"),
            **_present(manifest.codec, "scope", "nominal_bits", "logit_error", "output_error"),
        },
        "embedder": _named(manifest.embedder, "name", "dim"),
        "index": {
            **_named(manifest.index, "type", "metric", "vectors"),
            **_present(manifest.index, "probes", "recall"),
        },
    }


def excluded_patterns(manifest: Manifest) -> list[str]:
    """The patterns of documents that stay out of the bank (``compile --exclude``)."""
    settings = manifest.sources.get("settings")
    found = settings.get("exclude") if isinstance(settings, dict) else None
    return [item for item in found if isinstance(item, str)] if isinstance(found, list) else []


def unlisted(manifest: Manifest) -> int:
    """How many rejects and unsupported files the list of rejects has no line for, since it was full (SPEC 13)
    or, in a bank that another program wrote, is not there."""
    listed = manifest.files.rejects
    left_out = manifest.counts["rejects"] + manifest.counts["unsupported_files"]
    return max(0, left_out - ((listed.rows or 0) if listed else 0))


def _named(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: section[key] for key in keys}


def _present(section: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: section[key] for key in keys if key in section}
