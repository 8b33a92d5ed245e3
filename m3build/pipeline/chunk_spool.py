"""Chunks that wait on disk until all of their shard are known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc

from m3build.pipeline.chunk_batches import CHUNKS, chunk_batch, chunks_of
from m3build.records import Chunk

BLOCK_CHUNKS = 1024


class ChunkSpool:
    """Chunks in the order in which they are added: the last few in memory, all before them in an unnamed
    file in ``directory`` (that for temporary files if None), since a shard's chunks as objects would be the
    most that a build holds. ``append`` and iteration raise OSError when the disk does not take or give them.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._block: list[Chunk] = []
        self._file: Any = None
        self._writer: Any = None
        self._written = 0

    def __len__(self) -> int:
        return self._written + len(self._block)

    def append(self, chunk: Chunk) -> None:
        """Add a chunk; not once chunks have been looked at."""
        self._block.append(chunk)
        if len(self._block) == BLOCK_CHUNKS:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115
                self._writer = pa.ipc.new_stream(self._file, CHUNKS)
            self._writer.write_batch(chunk_batch(self._block))
            self._written += len(self._block)
            self._block = []

    def __iter__(self) -> Iterator[Chunk]:
        if self._file is not None:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            self._file.seek(0)
            for batch in pa.ipc.open_stream(self._file):
                yield from chunks_of(batch, 0, batch.num_rows)
        yield from self._block

    def close(self) -> None:
        """Forget the chunks."""
        self._block = []
        if self._file is not None:
            self._file.close()
