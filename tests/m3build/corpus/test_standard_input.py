"""Standard input is spooled to disk and then read like a JSON lines file named ``-``."""

from __future__ import annotations

import errno
import io
from pathlib import Path
from typing import Any

import pytest

from m3build.corpus import SourceOptions, read_range, split, spool_standard_input
from m3build.records import Document
from m3build_formats.errors import ResourceError


@pytest.mark.parametrize("compression", [None, "gz", "zst"])
def test_standard_input_is_read_like_a_file_named_dash(
    tmp_path: Path, find: Any, compress: Any, compression: str | None
) -> None:
    data = b'{"text": "a"}\n{"text": "b"}\n'
    spooled = spool_standard_input(io.BytesIO(compress(data, compression) if compression else data), tmp_path)
    files, _ = find("-", standard_input=spooled)
    assert [file.name for file in files] == ["-"]
    options = SourceOptions(range_bytes=5)
    found = [item for part in split(files[0], options) for item in read_range(part, options)]
    assert [item.text for item in found if isinstance(item, Document)] == ["a", "b"]
    assert all(isinstance(item, Document) and item.id.startswith("-#") for item in found)


def test_standard_input_beside_files_keeps_canonical_order(make: Any, find: Any, tmp_path: Path) -> None:
    spooled = spool_standard_input(io.BytesIO(b""), tmp_path)
    files, _ = find(make("docs/a.txt", "x"), "-", make("docs/!.txt", "x"), standard_input=spooled)
    assert [file.name for file in files] == ["!.txt", "-", "a.txt"]


class FullDisk(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_a_resource_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="No space left"):
        spool_standard_input(FullDisk(), tmp_path)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
