"""Vectors that wait on disk until an index is trained on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Halves = npt.NDArray[np.float16]


class Vectors(Protocol):
    """Float16 vectors in rows: an array, or a ``VectorFile``."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, rows: slice, /) -> Halves: ...


class VectorFile:
    """Float16 vectors in an unnamed file in ``directory`` (that for temporary files if None). To be closed;
    ``append`` and reading raise OSError when the disk does not take or give them."""

    def __init__(self, dim: int, directory: Path | None = None) -> None:
        self._dim = dim
        self._rows = 0
        self._file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and dimensions."""
        return self._rows, self._dim

    def __len__(self) -> int:
        return self._rows

    def append(self, block: Halves) -> None:
        """Add the rows of a block, (any, dim)."""
        self._file.seek(0, 2)
        self._file.write(np.ascontiguousarray(block, np.float16).tobytes())
        self._rows += len(block)

    def __getitem__(self, rows: slice, /) -> Halves:
        """A copy of neighbouring rows."""
        first, last, step = rows.indices(self._rows)
        if step != 1:
            raise ValueError("rows of a file come one after the other")
        size = 2 * self._dim
        self._file.seek(first * size)
        data = self._file.read(max(0, last - first) * size)
        return np.frombuffer(data, np.float16).reshape(-1, self._dim)

    def close(self) -> None:
        """Forget the vectors."""
        self._file.close()
