"""Helpers of the reader tests: write a file, read a file whole or by ranges, compress bytes."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import zstandard

from m3build.corpus import SourceFile, SourceOptions, discover, read_range, split
from m3build.records import Document, Reject


@dataclass
class Found:
    """What reading gave."""

    documents: list[Document] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        return [document.text for document in self.documents]

    @property
    def reason(self) -> str:
        """The reason of the only reject."""
        assert len(self.rejects) == 1, self.rejects
        return self.rejects[0].reason

    @property
    def only(self) -> Document:
        assert not self.rejects, self.rejects
        assert len(self.documents) == 1
        return self.documents[0]

    def add(self, item: Document | Reject) -> None:
        if isinstance(item, Document):
            self.documents.append(item)
        else:
            self.rejects.append(item)


def read_file(path: Path | str, **options: Any) -> Found:
    """Reads one SOURCE in the ranges that ``split`` gives."""
    found = Found()
    settings = SourceOptions(**options)
    for file in discover([str(path)], found.rejects.append):
        for part in split(file, settings):
            for item in read_range(part, settings):
                found.add(item)
    return found


def pack(data: bytes, compression: str) -> bytes:
    """``data`` compressed, by libraries other than those that read it where there are others."""
    match compression:
        case "gz":
            return gzip.compress(data, mtime=0)
        case "bz2":
            return bz2.compress(data)
        case "xz":
            return lzma.compress(data)
        case "zst":
            return zstandard.compress(data)
    raise ValueError(compression)


@pytest.fixture(scope="session")
def read() -> Callable[..., Found]:
    return read_file


@pytest.fixture(scope="session")
def compress() -> Callable[[bytes, str], bytes]:
    return pack


@pytest.fixture
def make(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    """Writes a file below a fresh directory."""

    def write(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


@pytest.fixture
def find() -> Callable[..., tuple[list[SourceFile], list[Reject]]]:
    """``discover`` with its rejects."""

    def run(*sources: Path | str, **named: Any) -> tuple[list[SourceFile], list[Reject]]:
        rejects: list[Reject] = []
        return discover([str(source) for source in sources], rejects.append, **named), rejects

    return run
