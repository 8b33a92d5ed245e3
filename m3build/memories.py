"""Explicit memories as a model reads them: dense arrays over memory layers and key-value heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

Array = TypeVar("Array", npt.NDArray[Any], "torch.Tensor")
"""NumPy arrays, or torch tensors all on one device."""


@dataclass(frozen=True, slots=True, eq=False)
class Memories(Generic[Array]):
    """The memories of n references, in the order in which they were asked for.

    ``ids``: n text hashes in hex. ``memory_layers``: numbers of the L memory layers, ascending. ``keys``
    (after RoPE, at the positions that the reference's tokens had when it was written; Memory³, §3.1) and
    ``values``: (n, L, Hkv, S, d), float32 in NumPy, any floating-point dtype in torch. ``positions``: (n, L,
    Hkv, S) uint8, the kept tokens counted from the reference's first token (the reference BOS does not
    count), ascending, 255 for an unused slot. ``mask``: (n, L, Hkv, S) bool, True for used slots.

    Hkv are all key-value heads of the model. Those that hold no memory in a layer, and unused slots, are
    False in ``mask``, zero in ``keys`` and ``values``.
    """

    ids: tuple[str, ...]
    memory_layers: tuple[int, ...]
    keys: Array
    values: Array
    positions: Array
    mask: Array

    def __len__(self) -> int:
        """n."""
        return len(self.ids)

    def __getitem__(self, chosen: int | slice | Sequence[int] | npt.NDArray[Any]) -> Memories[Array]:
        """The memories with these numbers from 0 to n − 1 (negative ones count from the end), or where a
        boolean array is true; repeats are allowed. One number gives n = 1. A copy; raises IndexError."""
        numbers = np.arange(len(self))
        if isinstance(chosen, slice):
            picked = numbers[chosen].tolist()
        else:
            # An empty list has no integer type of its own.
            asked: npt.NDArray[Any] = np.asarray(chosen) if np.size(chosen) else np.empty(0, np.int64)
            picked = numbers[asked].reshape(-1).tolist()
        return Memories(
            tuple(self.ids[number] for number in picked),
            self.memory_layers,
            self.keys[picked],
            self.values[picked],
            self.positions[picked],
            self.mask[picked],
        )
