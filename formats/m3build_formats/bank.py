"""Finds and opens the versions of a bank.

`read_manifest` and `list_versions` need the standard library only and are what `m3build info` and `log` rest
on; `open_bank` loads pyarrow and numpy. The highest number is the current version. A version may be pinned by
number, by digest (``expect="sha256:…"``), or both.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from m3build_formats.atomic import open_directory, open_regular
from m3build_formats.errors import CorruptError, MismatchError, ResourceError, UsageError
from m3build_formats.layout import MANIFEST_NAME, MAX_MANIFEST_BYTES, VERSIONS_DIRECTORY
from m3build_formats.manifest import DIGEST_TAIL_BYTES, Manifest, digest_of_tail, parse_manifest

if TYPE_CHECKING:
    from m3build_formats.open_bank import BankFiles

_EXPECT: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)


def manifest_name(version: int) -> str:
    """Name of a version's manifest in versions/."""
    return f"{version:08d}.json"


def list_versions(path: str | os.PathLike[str]) -> list[int]:
    """Numbers of all versions, ascending (the last is current); raises UsageError where ``path`` is no
    bank."""
    directory = _open_versions(path)
    try:
        return _versions_in(directory)
    finally:
        os.close(directory)


def read_manifest(
    path: str | os.PathLike[str], version: int | None = None, expect: str | None = None
) -> Manifest:
    """The manifest of the current version, of ``version``, or of the version whose digest is ``expect``
    ("sha256:" and 64 hex digits).

    Raises UsageError (no bank or no such version), CorruptError (a damaged manifest, named),
    NewerFormatError, MismatchError (no version has the digest expected), ResourceError (unreadable).
    """
    digest = _expected_digest(expect)
    directory = _open_versions(path)
    try:
        versions = _versions_in(directory)
        if not versions:
            raise UsageError(f"{os.fspath(path)}: the bank has no version yet; run m3build compile")
        if version is not None and version not in versions:
            shown = ", ".join(map(str, versions[-10:]))
            raise UsageError(f"{os.fspath(path)}: has no version {version}; it has {shown}")
        if version is None and digest is not None:
            version = _version_with(digest, versions, directory, path)
        manifest = _read(directory, version or versions[-1])
    finally:
        os.close(directory)
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
            # A garbage collection may have removed this version between the two steps: then there is a newer
            # one to open.
            if version is not None or expect is not None or list_versions(path)[-1:] == [manifest.version]:
                raise


def is_bank(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` has the directory of versions that makes it a bank."""
    return os.path.isdir(os.path.join(path, VERSIONS_DIRECTORY))


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


def _versions_in(directory: int) -> list[int]:
    names = (MANIFEST_NAME.fullmatch(name) for name in os.listdir(directory))
    return sorted(number for match in names if match and (number := int(match[1])))


def _read(directory: int, version: int) -> Manifest:
    where = f"{VERSIONS_DIRECTORY}/{manifest_name(version)}"
    manifest = parse_manifest(_manifest_bytes(directory, version, where), where)
    if manifest.version != version:
        raise CorruptError(f"{where}: says that it is version {manifest.version}")
    return manifest


def _manifest_bytes(directory: int, version: int, where: str, tail: int | None = None) -> bytes:
    try:
        with open(open_regular(manifest_name(version), directory), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_MANIFEST_BYTES:
                raise CorruptError(
                    f"{where}: has {size} bytes, more than the {MAX_MANIFEST_BYTES} that format 1 allows"
                )
            if tail is not None:
                file.seek(max(0, size - tail))
            return file.read(MAX_MANIFEST_BYTES)
    except OSError as error:
        raise ResourceError(f"{where}: cannot be read: {error.strerror}") from error


def _expected_digest(expect: str | None) -> str | None:
    if expect is None:
        return None
    match = _EXPECT.fullmatch(expect)
    if match is None:
        raise UsageError(
            f"expect={expect!r}: write sha256: and 64 lower-case hex digits, as m3build log prints them"
        )
    return match[1]


def _version_with(digest: str, versions: list[int], directory: int, path: str | os.PathLike[str]) -> int:
    for version in reversed(versions):
        where = f"{VERSIONS_DIRECTORY}/{manifest_name(version)}"
        try:
            if digest_of_tail(_manifest_bytes(directory, version, where, DIGEST_TAIL_BYTES)) == digest:
                return version
        except ValueError:
            continue
    raise MismatchError(f"{os.fspath(path)}: none of its {len(versions)} versions is sha256:{digest}")
