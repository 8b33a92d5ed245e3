"""Finds and opens the versions of a bank.

`read_manifest` and `list_versions` need the standard library only and are what `m3build info` and `log` rest
on; `open_bank` loads pyarrow and numpy. The highest number is the current version. A version may be pinned by
number, by digest (``expect="sha256:…"``), or both.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from m3build_formats.atomic import open_directory, open_regular, resource_errors
from m3build_formats.errors import CorruptError, MismatchError, ResourceError, UsageError
from m3build_formats.layout import (
    DATA_DIRECTORY,
    LOCK_FILE,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    VERSIONS_DIRECTORY,
)
from m3build_formats.manifest import DIGEST_TAIL_BYTES, Manifest, digest_of_tail, parse_manifest

if TYPE_CHECKING:
    from m3build_formats.open_bank import BankFiles

_EXPECT: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


def manifest_name(version: int) -> str:
    """Name of a version's manifest in versions/."""
    return f"{version:08d}.json"


class Versions:
    """The manifests of a bank, for whoever reads many of them: versions/ is opened once. A context manager.

    Raises UsageError where ``path`` is no bank, ResourceError where it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._directory = _open_versions(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._directory)

    def numbers(self) -> list[int]:
        """Numbers of all versions that are there now, ascending (the last is current)."""
        with resource_errors(f"cannot list {self._path}/{VERSIONS_DIRECTORY}"):
            found = os.listdir(self._directory)
        names = (MANIFEST_NAME.fullmatch(name) for name in found)
        return sorted(number for match in names if match and (number := int(match[1])))

    def read(self, version: int) -> Manifest | None:
        """The manifest of a version, None where there is none (any more); raises CorruptError,
        NewerFormatError, ResourceError."""
        where = f"{VERSIONS_DIRECTORY}/{manifest_name(version)}"
        data = _manifest_bytes(self._directory, version, where)
        manifest = None if data is None else parse_manifest(data, where)
        if manifest is not None and manifest.version != version:
            raise CorruptError(f"{where}: says that it is version {manifest.version}")
        return manifest

    def with_digest(self, digest: str) -> int:
        """The newest version whose manifest ends with this digest (64 hex digits); raises MismatchError where
        none does."""
        numbers = self.numbers()
        for version in reversed(numbers):
            where = f"{VERSIONS_DIRECTORY}/{manifest_name(version)}"
            tail = _manifest_bytes(self._directory, version, where, DIGEST_TAIL_BYTES)
            with contextlib.suppress(ValueError):
                if tail is not None and digest_of_tail(tail) == digest:
                    return version
        raise MismatchError(f"{self._path}: none of its {len(numbers)} versions is sha256:{digest}")


def list_versions(path: str | os.PathLike[str]) -> list[int]:
    """Numbers of all versions, ascending (the last is current); raises UsageError where ``path`` is no
    bank."""
    with Versions(path) as versions:
        return versions.numbers()


def read_manifest(
    path: str | os.PathLike[str], version: int | None = None, expect: str | None = None
) -> Manifest:
    """The manifest of the current version, of ``version``, or of the version whose digest is ``expect``
    ("sha256:" and 64 hex digits).

    Raises UsageError (no bank or no such version), CorruptError (a damaged manifest, named),
    NewerFormatError, MismatchError (no version has the digest expected), ResourceError (unreadable).
    """
    digest = _expected_digest(expect)
    with Versions(path) as versions:
        while True:
            numbers = versions.numbers()
            if not numbers:
                raise UsageError(f"{os.fspath(path)}: the bank has no version yet; run m3build compile")
            if version is not None and version not in numbers:
                raise UsageError(f"{os.fspath(path)}: has no version {version}; it has {_shown(numbers)}")
            chosen = version or (versions.with_digest(digest) if digest is not None else numbers[-1])
            if (manifest := versions.read(chosen)) is not None:
                break
            # A garbage collection removed it after it was listed: look at what is there now.
            if chosen in versions.numbers():
                raise ResourceError(f"{os.fspath(path)}: lists version {chosen}, but does not give it")
    if digest is not None and manifest.sha256 != digest:
        raise MismatchError(
            f"{os.fspath(path)}: version {manifest.version} is sha256:{manifest.sha256}, not sha256:{digest}"
        )
    return manifest


def open_bank(
    path: str | os.PathLike[str], version: int | None = None, expect: str | None = None
) -> BankFiles:
    """Opens every file of a version (see `read_manifest` for which), so that it stays readable whatever
    happens to the directory afterwards.

    Raises what `read_manifest` raises, and CorruptError for a data file that is missing, of another size, or
    has a damaged schema.
    """
    from m3build_formats.open_bank import BankFiles

    while True:
        manifest = read_manifest(path, version, expect)
        try:
            return BankFiles(Path(path), manifest)
        except CorruptError:
            # A garbage collection may have removed this version between the two steps. Then there is a newer
            # one to open, or `read_manifest` says that the one asked for is gone.
            numbers = list_versions(path)
            pinned = version is not None or expect is not None
            if manifest.version in numbers if pinned else numbers[-1:] == [manifest.version]:
                raise


def is_bank(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` has the directory of versions that makes it a bank."""
    return os.path.isdir(os.path.join(path, VERSIONS_DIRECTORY))


def looks_like_bank(path: str | os.PathLike[str]) -> bool:
    """Whether a directory is a bank, an unfinished one too: by the directories that banks have and a manifest
    or a lock file, since other directories may have one called ``versions``."""
    if not (is_bank(path) and os.path.isdir(os.path.join(path, DATA_DIRECTORY))):
        return False
    names = os.listdir(os.path.join(path, VERSIONS_DIRECTORY))
    return os.path.exists(os.path.join(path, LOCK_FILE)) or any(map(MANIFEST_NAME.fullmatch, names))


def _open_versions(path: str | os.PathLike[str]) -> int:
    try:
        bank = open_directory(os.fspath(path), follow=True)
        try:
            return open_directory(VERSIONS_DIRECTORY, bank)
        finally:
            os.close(bank)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"{os.fspath(path)}: no bank there (it has no {VERSIONS_DIRECTORY}/); m3build compile makes one"
        ) from None
    except OSError as error:
        raise ResourceError(f"{os.fspath(path)}: cannot be opened: {error.strerror}") from error


def _manifest_bytes(directory: int, version: int, where: str, tail: int | None = None) -> bytes | None:
    try:
        with open(open_regular(manifest_name(version), directory), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MANIFEST_BYTES:
                raise CorruptError(
                    f"{where}: has {size} bytes, more than the {MAX_MANIFEST_BYTES} that format 1 allows"
                )
            wanted = size if tail is None else min(tail, size)
            file.seek(size - wanted)
            return file.read(wanted)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ResourceError(f"{where}: cannot be read: {error.strerror}") from error


def _expected_digest(expect: str | None) -> str | None:
    if expect is None:
        return None
    match = _EXPECT.fullmatch(expect)
    if match is None:
        raise UsageError(
            f"expect={expect!r}: write sha256: and 64 lower-case hex digits, as m3build info prints them"
        )
    return match[1]


def _shown(numbers: list[int]) -> str:
    return ("…, " if len(numbers) > 10 else "") + ", ".join(map(str, numbers[-10:]))
