"""Finds what is wrong with a bank, file by file, and says which promise each fault breaks. Never raises on a
damaged bank.

``quick`` looks at manifests, and at the presence and sizes of the files they name. ``default`` reads every
byte: the hash of each file (by plain reads, since a bad disk under a memory map kills the process), for a
damaged table the record batches that are bad, and for a sound one whether its rows keep the rules of SPEC.md
(`verify_rows`). Each file is looked at once, however many versions name it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from typing import Final, Literal

from m3build_formats.atomic import open_directory, open_regular, resource_errors
from m3build_formats.bank import list_versions, manifest_name, read_manifest
from m3build_formats.entries import Batches, FileEntry
from m3build_formats.errors import CorruptError, M3Error, UsageError
from m3build_formats.layout import (
    BATCH_DIGEST_BYTES,
    BUILD_DIRECTORY,
    DATA_DIRECTORY,
    LOCK_FILE,
    VERSIONS_DIRECTORY,
)
from m3build_formats.manifest import Manifest
from m3build_formats.verify_report import Problem, Report

__all__ = ["Level", "Problem", "Report", "verify"]

Level = Literal["quick", "default"]
_PIECE_BYTES: Final = 1 << 20


def verify(path: str | os.PathLike[str], level: Level = "default", version: int | None = None) -> Report:
    """Checks one version of a bank, or all of them.

    Raises UsageError where ``path`` is no bank or has no such version, ResourceError where its directories
    cannot be read; everything else is in the report. Versions that a garbage collection removes meanwhile
    are no fault.
    """
    if level not in ("quick", "default"):
        raise UsageError(f"verify level {level!r}: choose quick or default")
    while True:
        numbers = list_versions(path)
        if not numbers or (version is not None and version not in numbers):
            read_manifest(path, version)  # raises the UsageError that says so
        report = _look(path, level, version, numbers)
        if report.ok or set(numbers) <= set(list_versions(path)):
            return report


def _look(path: str | os.PathLike[str], level: Level, version: int | None, numbers: list[int]) -> Report:
    manifests, problems = _read_manifests(path, numbers)
    if version is not None:
        problems = [item for item in problems if item.file == _manifest_file(version)]
    chosen = [item for item in manifests if version in (None, item.version)]
    data = _open_data(path)
    try:
        files = _Files(data, level)
        if data is None:
            problems.append(
                Problem(
                    DATA_DIRECTORY,
                    None,
                    "data files are there",
                    "the directory is missing, or is no directory",
                )
            )
        for manifest in chosen:
            problems.extend(files.check(manifest))
        unreachable = _unreachable(path, manifests)
    finally:
        if data is not None:
            os.close(data)
    return Report(tuple(problems), unreachable, len(chosen) + files.count, files.bytes)


class _Files:
    """Checks the data files of manifest after manifest, each file and each shard once."""

    def __init__(self, directory: int | None, level: Level) -> None:
        self._directory = directory
        self._level = level
        self._sound: dict[str, bool] = {}
        self._files_seen: set[FileEntry] = set()
        # Cold rows of each shard whose rows were looked at.
        self._cold: dict[tuple[object, ...], int] = {}
        self.count = 0
        self.bytes = 0

    def check(self, manifest: Manifest) -> Iterator[Problem]:
        """Problems of the files of one version."""
        if self._directory is None:
            return
        for name, (_, entry) in sorted(manifest.all_files().items()):
            if name not in self._sound:
                found = list(self._check_bytes(entry, self._directory))
                self._sound[name] = not found
                yield from found
        if self._level != "quick":
            yield from self._check_rows(manifest, self._directory)

    def _check_bytes(self, entry: FileEntry, directory: int) -> Iterator[Problem]:
        file = f"{DATA_DIRECTORY}/{entry.name}"
        self.count += 1
        try:
            with open(open_regular(entry.name, directory), "rb", buffering=0) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size != entry.bytes:
                    yield Problem(
                        file, None, "size as in the manifest", f"has {size} bytes, expected {entry.bytes}"
                    )
                elif self._level != "quick":
                    self.bytes += size
                    yield from _check_hash(file, opened.fileno(), entry)
        except FileNotFoundError:
            yield Problem(file, None, "data files are there", "is missing")
        except OSError as error:
            yield Problem(file, None, "files can be read", error.strerror or type(error).__name__)
        except CorruptError as error:
            yield Problem(file, None, "data files are there", str(error))

    def _check_rows(self, manifest: Manifest, directory: int) -> Iterator[Problem]:
        from m3build_formats.verify_rows import check_bank_file, check_shard

        for kind, entry in manifest.files.files():
            if self._sound[entry.name] and entry not in self._files_seen:
                self._files_seen.add(entry)
                yield from check_bank_file(kind, entry, directory)
        cold, all_seen = 0, True
        for shard in manifest.shards:
            # The whole entries: two of one name may say different rows and batches.
            key = (shard, manifest.row_bytes, manifest.row_codes_bytes, manifest.embedder["dim"])
            sound = all(self._sound[entry.name] for _, entry in shard.files())
            if sound and key not in self._cold:
                found: list[int] = [] if shard.memories else [shard.rows]
                yield from check_shard(manifest, shard, directory, found.append)
                self._cold[key] = sum(found)
            all_seen &= sound
            cold += self._cold.get(key, 0)
        if all_seen and cold != manifest.cold:
            yield Problem(
                _manifest_file(manifest.version),
                None,
                "counts.cold are the rows without a memory",
                f"says {manifest.cold}, and {cold} have none",
            )


def _read_manifests(path: str | os.PathLike[str], numbers: list[int]) -> tuple[list[Manifest], list[Problem]]:
    manifests: dict[int, Manifest] = {}
    problems = []
    for number in numbers:
        try:
            manifests[number] = read_manifest(path, number)
        except M3Error as error:
            problems.append(
                Problem(_manifest_file(number), None, "a manifest is whole and known", _after_name(error))
            )
    for number, manifest in manifests.items():
        base = manifest.base
        if base is not None and base.version in manifests and manifests[base.version].sha256 != base.sha256:
            message = f"names version {base.version} with another SHA-256 than it has"
            problems.append(
                Problem(_manifest_file(number), None, "a version names what it was made from", message)
            )
    return list(manifests.values()), problems


def _check_hash(file: str, descriptor: int, entry: FileEntry) -> Iterator[Problem]:
    whole = hashlib.sha256()
    for piece in _pieces(descriptor, 0, entry.bytes):
        whole.update(piece)
    if whole.hexdigest() == entry.sha256:
        return
    promise, found = "bytes as hashed in the name", False
    for row, start, end, digest, words in _parts(entry.batches, entry.rows or 0):
        part = hashlib.sha256()
        for piece in _pieces(descriptor, start, end):
            part.update(piece)
        if part.digest()[:BATCH_DIGEST_BYTES].hex() != digest:
            found = True
            yield Problem(file, row, promise, f"{words} (bytes {start} to {end - 1}) is damaged")
    if not found:
        yield Problem(
            file,
            None,
            promise,
            "the SHA-256 differs" + (", though its record batches are whole" if entry.batches else ""),
        )


def _parts(batches: Batches | None, rows: int) -> Iterator[tuple[int | None, int, int, str, str]]:
    if batches is None:
        return
    yield None, 0, batches.head_bytes, batches.head_digest, "the schema"
    for number, digest in enumerate(batches.digests):
        first = number * batches.rows
        last = min(first + batches.rows, rows) - 1
        yield first, *batches.span(number), digest, f"record batch {number}, rows {first} to {last},"


def _pieces(descriptor: int, start: int, end: int) -> Iterator[bytes]:
    while start < end and (piece := os.pread(descriptor, min(_PIECE_BYTES, end - start), start)):
        start += len(piece)
        yield piece


def _unreachable(path: str | os.PathLike[str], manifests: list[Manifest]) -> tuple[str, ...]:
    """Files below the bank that no whole version needs, but for build/ and the lock."""
    needed = {f"{DATA_DIRECTORY}/{name}" for manifest in manifests for name in manifest.all_files()}
    needed |= {_manifest_file(number) for number in list_versions(path)}
    needed |= {DATA_DIRECTORY, VERSIONS_DIRECTORY, BUILD_DIRECTORY, LOCK_FILE}
    with resource_errors(f"cannot list {os.fspath(path)}"):
        bank = open_directory(os.fspath(path), follow=True)
        try:
            found = set(os.listdir(bank))
            for directory in {DATA_DIRECTORY, VERSIONS_DIRECTORY} & found:
                with contextlib.suppress(NotADirectoryError):
                    found |= {f"{directory}/{name}" for name in _names_in(directory, bank)}
        finally:
            os.close(bank)
    return tuple(sorted(found - needed))


def _names_in(directory: str, bank: int) -> list[str]:
    descriptor = open_directory(directory, bank)
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)


def _open_data(path: str | os.PathLike[str]) -> int | None:
    with resource_errors(f"cannot open {os.fspath(path)}/{DATA_DIRECTORY}"):
        bank = open_directory(os.fspath(path), follow=True)
        try:
            return open_directory(DATA_DIRECTORY, bank)
        except (FileNotFoundError, NotADirectoryError):
            return None
        finally:
            os.close(bank)


def _manifest_file(number: int) -> str:
    return f"{VERSIONS_DIRECTORY}/{manifest_name(number)}"


def _after_name(error: M3Error) -> str:
    return str(error).split(".json: ", 1)[-1]
