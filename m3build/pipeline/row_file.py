"""Rows of one width that come in any order and are wanted in their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3build_formats.atomic import resource_errors


class RowFile:
    """Rows of ``row_bytes`` bytes, in an unnamed file in ``directory``. A row that was never put holds zeros
    or is missing at the end.

    Written and read by calls, not through a mapping: where the disk is full a call says so, while a mapping
    ends the process with SIGBUS. Raises ResourceError where the disk does not take or give them.
    """

    def __init__(self, row_bytes: int, directory: Path) -> None:
        self._row_bytes = row_bytes
        self._doing = f"cannot keep memories in {directory} until their shard is whole"
        with resource_errors(self._doing):
            self._file = tempfile.TemporaryFile(dir=directory, buffering=0)  # noqa: SIM115

    def put(self, rows: Sequence[int] | NDArray[np.int64], values: NDArray[np.uint8]) -> None:
        """Write ``values`` (n, row bytes) as these rows."""
        numbers = np.asarray(rows, np.int64)
        if not len(numbers):
            return
        order = np.argsort(numbers, kind="stable")
        numbers, values = numbers[order], np.ascontiguousarray(values[order])
        # Neighbours go in one call.
        cuts = np.flatnonzero(np.diff(numbers) != 1) + 1
        for run, first in zip(np.split(values, cuts), numbers[[0, *cuts]], strict=True):
            self._write(int(first) * self._row_bytes, run.tobytes())

    def blocks(self, rows: int, step: int) -> Iterator[NDArray[np.uint8]]:
        """The first ``rows`` rows, ``step`` at a time: (at most step, row bytes) each."""
        for first in range(0, rows, step):
            count = min(step, rows - first)
            with resource_errors(self._doing):
                data = os.pread(self._file.fileno(), count * self._row_bytes, first * self._row_bytes)
            yield np.frombuffer(data, np.uint8).reshape(count, self._row_bytes)

    def close(self) -> None:
        """Give the file up."""
        self._file.close()

    def _write(self, at: int, data: bytes) -> None:
        view = memoryview(data)
        while view.nbytes:
            with resource_errors(self._doing):
                written = os.pwrite(self._file.fileno(), view, at)
            view, at = view[written:], at + written
