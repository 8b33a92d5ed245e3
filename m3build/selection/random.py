"""Control: tokens drawn at random, another draw for each reference, layer and head.

The draw is seeded by the reference's own token ids, so it does not depend on where in the corpus a reference
stands, on its neighbours in a batch, or on any generator's state.
"""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
import torch

from m3build.capture import LayerCapture
from m3build.selection.base import References, Selector


class Random(Selector):
    """Uniform scores in [0, 1) from a counter hash (splitmix64) of the reference's token ids, layer, head and
    position."""

    name: ClassVar[str] = "random"

    def scores(self, layer: LayerCapture, references: References) -> torch.Tensor:
        rows, heads, tokens, _ = layer.key.shape
        drawn = np.zeros((rows, heads, tokens), dtype=np.float32)
        masks = references.mask.cpu().numpy()
        ids = references.token_ids.cpu().numpy().astype("<i8")
        for row in range(rows):
            own = ids[row, masks[row]]
            digest = hashlib.blake2b(
                own.tobytes() + layer.layer.to_bytes(8, "little"), digest_size=8
            ).digest()
            seed = np.uint64(int.from_bytes(digest, "little"))
            counters = np.arange(heads * len(own), dtype=np.uint64).reshape(heads, len(own))
            drawn[row][:, masks[row]] = _uniform(seed, counters)
        return torch.from_numpy(drawn).to(layer.key.device)


def _uniform(seed: np.uint64, counters: np.ndarray) -> np.ndarray:
    """splitmix64 of ``seed + counter`` (Steele, Lea, Flood 2014), its upper 24 bits as a float32 in [0,
    1)."""
    with np.errstate(over="ignore"):
        z = seed + (counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
