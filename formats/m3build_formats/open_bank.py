"""An open version of a bank: its shards, its arrays, and where a chunk id is found. Made by
`bank.open_bank`."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from m3build_formats.arrays_file import read_arrays
from m3build_formats.atomic import open_directory
from m3build_formats.cold_rows import cold_rows
from m3build_formats.errors import CorruptError, ResourceError
from m3build_formats.evaluation_file import read_evaluation
from m3build_formats.id_index import IdIndex, Location
from m3build_formats.layout import DATA_DIRECTORY
from m3build_formats.manifest import Manifest
from m3build_formats.mapped_file import MappedFile, raise_descriptor_limit
from m3build_formats.rejects_file import RejectRow, read_rejects
from m3build_formats.shard import Shard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class BankFiles:
    """Every file of one version, mapped. A context manager; thread-safe. Arrays taken from it stay valid
    after it is closed."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._lock = threading.Lock()
        self._ids: IdIndex | None = None
        raise_descriptor_limit(len(manifest.all_files()))
        directory = open_data(path)
        try:
            dim = manifest.embedder["dim"]
            self.shards: tuple[Shard, ...] = tuple(
                Shard(entry, directory, manifest.row_bytes, dim) for entry in manifest.shards
            )
            self._files = {kind: MappedFile(entry, directory) for kind, entry in manifest.files.files()}
        finally:
            os.close(directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drops the bank's hold on its files; arrays and batches taken from them stay valid."""
        self.shards = ()
        self._files = {}
        self._ids = None

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    def codec_arrays(self) -> dict[str, NDArray[Any]]:
        """The codec's named arrays, read-only; empty where the codec has none."""
        return self._arrays("codec")

    def embedder_arrays(self) -> dict[str, NDArray[Any]]:
        """The embedder's named arrays, read-only; empty where the embedder has none."""
        return self._arrays("embedder")

    def whole_file(self, kind: str) -> memoryview | None:
        """All bytes of the file of kind "codec", "embedder", "rejects" or "eval", after a check of its
        SHA-256; None where the version has none. Raises CorruptError."""
        file = self._files.get(kind)
        return file.whole() if file is not None else None

    def rejects(self) -> Iterator[RejectRow]:
        """What could not be used of the sources, in the order of the sources."""
        file = self._files.get("rejects")
        if file is not None:
            yield from read_rejects(file.entry, file.whole())

    def evaluation(self) -> object:
        """The JSON of the evaluation file, None where there is none."""
        file = self._files.get("eval")
        return read_evaluation(file.entry, file.whole()) if file is not None else None

    def cold(self, places: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
        """Which rows, given as (shard, row), have no memory yet: bool (len(places),).

        Raises IndexError, CorruptError.
        """
        import numpy as np

        found = np.ones(len(places), np.bool_)
        if not self.manifest.cold:
            return ~found
        by_shard: dict[int, list[int]] = {}
        for number, (shard, _) in enumerate(places):
            by_shard.setdefault(shard, []).append(number)
        for shard, numbers in by_shard.items():
            if self.shards[shard].has_memories:
                rows = self.shards[shard].memories([places[number][1] for number in numbers])
                found[numbers] = cold_rows(rows, self.manifest.row_codes_bytes)
        return found

    def cold_of_shard(self, number: int) -> NDArray[np.bool_]:
        """Which rows of a shard have no memory yet: bool (rows,). Raises CorruptError."""
        import numpy as np

        shard, codes = self.shards[number], self.manifest.row_codes_bytes
        if not shard.has_memories:
            return np.ones(shard.rows, np.bool_)
        if not self.manifest.cold:
            return np.zeros(shard.rows, np.bool_)
        blocks = [cold_rows(block, codes) for block in shard.memory_batches()]
        return np.concatenate([np.empty(0, np.bool_), *blocks])

    def find(self, prefix: str) -> list[Location]:
        """All places (shard, row) of the one chunk whose id in hex starts with ``prefix``.

        Raises UsageError where no chunk or more than one has it, CorruptError. The first call reads all ids
        (16 bytes a row are kept).
        """
        return self._id_index().find(prefix)

    def locate(self, ids: Iterable[bytes]) -> dict[bytes, Location]:
        """First place (shard, row) of each of the raw 32-byte ids that the bank holds; the others are left
        out."""
        return self._id_index().locate(ids)

    def _id_index(self) -> IdIndex:
        with self._lock:
            if self._ids is None:
                self._ids = IdIndex(self.shards)
            return self._ids

    def _arrays(self, kind: str) -> dict[str, NDArray[np.generic]]:
        file = self._files.get(kind)
        return read_arrays(file.entry, file.data) if file is not None else {}


def open_data(path: Path) -> int:
    """A descriptor of a bank's data/; raises CorruptError where it is missing, ResourceError."""
    try:
        bank = open_directory(os.fspath(path), follow=True)
        try:
            return open_directory(DATA_DIRECTORY, bank)
        finally:
            os.close(bank)
    except (FileNotFoundError, NotADirectoryError):
        raise CorruptError(f"{path}: the bank has no directory {DATA_DIRECTORY}/ (or it is a link)") from None
    except OSError as error:
        raise ResourceError(f"{path}: cannot be opened: {error.strerror}") from error
