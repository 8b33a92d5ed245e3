"""Decoded memories of some rows as dense arrays: what the cache holds and what a read is put together from.

NumPy arrays and torch tensors go through the same steps; what they do not share is in ``NumpyBlocks`` and, so
that NumPy's readers need no torch, in memory_blocks_torch.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from m3build.codec.codec import Codec
from m3build.memories import Array
from m3build_formats.errors import CorruptError, ResourceError
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.manifest import Manifest

Rows: TypeAlias = npt.NDArray[np.uint8]

MAX_MEMORY_BYTES = 1 << 31
"""Of one reference, decoded to float32 for all heads. A stranger's bank can name many heads and hold few;
every token of every layer of the largest models is below a tenth of it."""


@dataclass(frozen=True, slots=True, eq=False)
class Block(Generic[Array]):
    """Memories of n rows, or of one without the first dimension: ``keys`` and ``values`` (n, L, Hkv, S, d),
    ``positions`` (n, L, Hkv, S) uint8."""

    keys: Array
    values: Array
    positions: Array

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.keys.nbytes + self.values.nbytes + self.positions.nbytes)

    def put(self, places: Sequence[int], block: Block[Array]) -> None:
        """Write a block's memories into these places."""
        self.keys[places] = block.keys
        self.values[places] = block.values
        self.positions[places] = block.positions


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """How the memory rows of a bank become dense arrays: ``dense`` is (L, Hkv, S, d), ``cells`` the numbers
    (memory layer · Hkv + head) of the heads that hold memory."""

    dense: tuple[int, int, int, int]
    cells: npt.NDArray[np.int64]
    codes: int

    @classmethod
    def of(cls, manifest: Manifest, codec: Codec) -> MemoryShape:
        """Raises CorruptError where manifest and codec differ, ResourceError where one memory would take
        over ``MAX_MEMORY_BYTES``."""
        if codec.row_bytes != manifest.row_codes_bytes:
            raise CorruptError(
                f"codec {codec.spec}: the codes of a reference take {codec.row_bytes} bytes, the manifest "
                f"says {manifest.row_codes_bytes}"
            )
        layers, kv_heads = manifest.memory["memory_layers"], manifest.model["kv_heads"]
        shape = cls(
            (len(layers), kv_heads, codec.slots, codec.head_dim),
            np.array(
                [
                    rank * kv_heads + head
                    for rank, heads in enumerate(manifest.memory["memory_heads"])
                    for head in heads
                ],
                np.int64,
            ),
            codec.row_bytes,
        )
        if shape.float32_bytes > MAX_MEMORY_BYTES:
            raise ResourceError(
                f"one memory of this bank takes {shape.float32_bytes / 2**30:,.1f} GiB when decoded for "
                f"{len(layers)} layers of {kv_heads} heads; at most {MAX_MEMORY_BYTES >> 30} GiB are read"
            )
        return shape

    @property
    def float32_bytes(self) -> int:
        """Bytes of one reference's keys and values in float32."""
        layers, kv_heads, slots, head_dim = self.dense
        return 8 * layers * kv_heads * slots * head_dim

    @property
    def is_full(self) -> bool:
        """Whether every head of the memory layers holds memory."""
        return len(self.cells) == self.dense[0] * self.dense[1]

    def split(self, rows: Any) -> tuple[Any, Any]:
        """Memory rows (n, row_bytes), an array of either kind, → codes (n, row_codes_bytes) and positions (n,
        N_heads, S)."""
        return rows[:, : self.codes], rows[:, self.codes :].reshape(len(rows), len(self.cells), self.dense[2])


class Blocks(Protocol[Array]):
    """Makes blocks of one kind of array."""

    def decode(self, rows: Rows) -> Block[Array]:
        """Memory rows (n, row_bytes) → their memories; nothing else refers to the arrays."""
        ...

    def empty(self, n: int) -> Block[Array]:
        """A block to be filled."""
        ...

    def stack(self, ones: Sequence[Block[Array]]) -> Block[Array]:
        """One block of memories that are without the first dimension."""
        ...

    def copy_of(self, block: Block[Array], number: int) -> Block[Array]:
        """One memory of a block, in arrays of its own."""
        ...


class NumpyBlocks:
    """Blocks of NumPy arrays, float32."""

    def __init__(self, codec: Codec, shape: MemoryShape) -> None:
        self._codec, self._shape = codec, shape

    def decode(self, rows: Rows) -> Block[npt.NDArray[Any]]:
        codes, positions = self._shape.split(rows)
        keys, values = self._codec.decode_rows(codes, positions)
        return Block(self._dense(keys, 0), self._dense(values, 0), self._dense(positions, UNUSED_SLOT))

    def empty(self, n: int) -> Block[npt.NDArray[Any]]:
        vectors = (n, *self._shape.dense)
        return Block(
            np.empty(vectors, np.float32), np.empty(vectors, np.float32), np.empty(vectors[:-1], np.uint8)
        )

    def stack(self, ones: Sequence[Block[npt.NDArray[Any]]]) -> Block[npt.NDArray[Any]]:
        return Block(
            np.stack([one.keys for one in ones]),
            np.stack([one.values for one in ones]),
            np.stack([one.positions for one in ones]),
        )

    def copy_of(self, block: Block[npt.NDArray[Any]], number: int) -> Block[npt.NDArray[Any]]:
        return Block(block.keys[number].copy(), block.values[number].copy(), block.positions[number].copy())

    def _dense(self, compact: npt.NDArray[Any], fill: int) -> npt.NDArray[Any]:
        """(n, N_heads, S, …) → (n, L, Hkv, S, …)."""
        layers, kv_heads, *_ = self._shape.dense
        n, _, *rest = compact.shape
        if not self._shape.is_full:
            spread = np.full((n, layers * kv_heads, *rest), fill, compact.dtype)
            spread[:, self._shape.cells] = compact
            compact = spread
        return compact.reshape(n, layers, kv_heads, *rest)
