"""Compares two versions of a bank, or of two banks.

Manifests tell most of it. Rows are read only of shards that differ in documents or chunks (`diff_rows`), and
the chunk ids of the shared shards where a text that seems to come or go may stand there too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from m3build_formats.bank import Versions, list_versions, read_manifest
from m3build_formats.bank_name import split_version
from m3build_formats.diff_report import (
    ChunkChanges,
    Difference,
    DocumentChanges,
    Setting,
    Sharing,
    Side,
)
from m3build_formats.errors import BusyError, CorruptError, UsageError
from m3build_formats.history import same_contents
from m3build_formats.info import describe
from m3build_formats.manifest import Manifest

LIMIT: Final = 10
_SECTIONS: Final = ("sources", "chunker", "model", "memory", "codec", "embedder", "index", "libraries")
# What a build found out rather than what it was told; the most important of it is in the facts of each side.
_MEASURED: Final = frozenset(
    {
        "sources.files",
        "model.probe",
        "codec.key_error",
        "codec.value_error",
        "codec.logit_error",
        "codec.output_error",
        "codec.errors_by_layer",
        "codec.errors_by_head",
        "codec.held_out",
        "codec.trained_on",
        "embedder.sample_texts",
        "index.vectors",
        "index.recall",
    }
)

__all__ = ["LIMIT", "Difference", "diff_versions"]


def diff_versions(
    a: str | os.PathLike[str], b: str | os.PathLike[str] | None = None, limit: int = LIMIT
) -> Difference:
    """What changed from ``a`` to ``b``, each the path of a bank (its current version) or ``path@version``.

    Without ``b``: from the base of the current version to it, or from version v of ``path@v`` to the current
    one. At most ``limit`` ids are listed of each kind of change; totals are exact. Takes some 32 bytes a row
    of the shards that differ.

    Raises UsageError (no bank, no such version, no base to compare with), CorruptError, NewerFormatError,
    BusyError (a version was removed while it was read), ResourceError.
    """
    if limit < 0:
        raise UsageError(f"a limit of {limit}: it cannot be negative")
    before, after = _sides(a, b)
    try:
        return _compare(before, after, limit)
    except CorruptError as error:
        for path, manifest in (before, after):
            if manifest is not None and manifest.version not in list_versions(path):
                raise BusyError(
                    f"{path}: version {manifest.version} was removed while it was read; run it again"
                ) from error
        raise


def _sides(
    a: str | os.PathLike[str], b: str | os.PathLike[str] | None
) -> tuple[tuple[str, Manifest | None], tuple[str, Manifest]]:
    path, version = split_version(a)
    first = read_manifest(path, version)
    if b is not None:
        other, number = split_version(b)
        return (path, first), (other, read_manifest(other, number))
    if version is not None:
        return (path, first), (path, read_manifest(path))
    return (path, _base_of(path, first)), (path, first)


def _base_of(path: str, manifest: Manifest) -> Manifest | None:
    if manifest.base is None:
        return None
    number = manifest.base.version
    with Versions(path) as versions:
        base = versions.read(number)
        numbers = versions.numbers()
    if base is None:
        others = ", ".join(str(other) for other in numbers[-10:] if other != manifest.version)
        there = f"choose one that is: {path}@VERSION ({others})" if others else "there is no other"
        raise UsageError(
            f"{path}: version {manifest.version} was made from version {number}, which is no longer there; "
            f"{there}"
        )
    if base.sha256 != manifest.base.sha256:
        raise CorruptError(
            f"{path}: version {manifest.version} was made from another version {number} than the one that "
            f"is there; to compare with that one all the same, name it: {path}@{number}"
        )
    return base


def _compare(before: tuple[str, Manifest | None], after: tuple[str, Manifest], limit: int) -> Difference:
    (old_path, old), (new_path, new) = before, after
    same = old is not None and same_contents(old, new)
    documents, chunks = DocumentChanges(), ChunkChanges()
    if not same:
        from m3build_formats.diff_rows import Tables, compare_rows

        documents, chunks = compare_rows(
            Tables(Path(old_path), old.shards if old else ()), Tables(Path(new_path), new.shards), limit
        )
        if old is not None and old.code_key == new.code_key and (old.cold or new.cold):
            # Memories files differ in which rows are warm; nothing that had a memory got another.
            chunks = replace(chunks, encoded_anew=0)
    return Difference(
        before=Side(old_path, describe(old)) if old else None,
        after=Side(new_path, describe(new)),
        same=same,
        documents=documents,
        chunks=chunks,
        settings=tuple(_settings(old, new)) if old else (),
        sharing=_sharing(old, new),
    )


def _settings(old: Manifest, new: Manifest) -> Iterator[Setting]:
    flat_old, flat_new = dict(_all_values(old)), dict(_all_values(new))
    for path in sorted({*flat_old, *flat_new}):
        if flat_old.get(path) != flat_new.get(path):
            yield Setting(path, flat_old.get(path), flat_new.get(path))


def _all_values(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    yield "code_key", manifest.code_key
    for section in _SECTIONS:
        yield from _values(getattr(manifest, section), section)


def _values(value: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        place = f"{path}.{key}"
        if place in _MEASURED:
            continue
        if isinstance(item, Mapping):
            yield from _values(item, place)
        else:
            yield place, item


def _sharing(old: Manifest | None, new: Manifest) -> Sharing:
    sizes_old = {name: entry.bytes for name, (_, entry) in old.all_files().items()} if old else {}
    sizes_new = {name: entry.bytes for name, (_, entry) in new.all_files().items()}
    shared = sizes_old.keys() & sizes_new.keys()
    return Sharing(
        files_before=len(sizes_old),
        files_after=len(sizes_new),
        files_shared=len(shared),
        bytes_before=sum(sizes_old.values()),
        bytes_after=sum(sizes_new.values()),
        bytes_shared=sum(sizes_new[name] for name in shared),
    )
