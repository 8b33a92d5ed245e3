"""How many training vectors each centroid stands for.

A centroid that one vector alone fell to is that vector: it keeps a key or value of one text, whatever becomes
of the text. So a bank says how many centroids stand for few.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m3build.codec.bits import unpack
from m3build.codec.codec import Codec
from m3build.codec.encoder import TorchEncoder

FEW = 3
_BLOCK_REFERENCES = 2048


def few_members(
    codec: Codec, keys: npt.NDArray[Any], values: npt.NDArray[Any], positions: npt.NDArray[np.uint8]
) -> dict[str, int]:
    """``centroids`` of a codec, and ``few_members``: how many of them stand for at least one but fewer than
    three vectors of the sample that it was trained on.

    ``keys``, ``values`` (R, N_heads, S, d), ``positions`` (R, N_heads, S) uint8 with 255 for unused slots.
    Empty for a codec without centroids.
    """
    spec = codec.spec
    bits = {"first_level": spec.first_level_bits, "product": spec.pq_bits if spec.fine == "PQ" else 0}
    tables: dict[str, npt.NDArray[Any]] = {
        name: np.zeros(codec.arrays[name].shape[:3], np.int64) for name, width in bits.items() if width
    }
    if not tables:
        return {}
    encoder = TorchEncoder(codec, "cpu")
    split = spec.first_level_bytes()
    for start in range(0, len(keys), _BLOCK_REFERENCES):
        block = slice(start, start + _BLOCK_REFERENCES)
        rows = encoder.encode(
            torch.from_numpy(keys[block]), torch.from_numpy(values[block]), torch.from_numpy(positions[block])
        ).numpy()
        codes: npt.NDArray[Any] = rows.reshape(len(rows), -1, codec.bytes_per_vector)[:, codec.places]
        used: npt.NDArray[Any] = np.broadcast_to((positions[block] != 255)[:, None], codes.shape[:4])
        for book in np.unique(codec.codebooks):
            members = used & (codec.codebooks == book)[None, :, :, None]
            mine = codes[members]
            for name, table in tables.items():
                packed = mine[:, :split] if name == "first_level" else mine[:, split:]
                for part, numbers in enumerate(unpack(packed, table.shape[1], bits[name]).T):
                    table[book, part] += np.bincount(numbers, minlength=table.shape[2])
    counts = np.concatenate([table.ravel() for table in tables.values()])
    return {"centroids": counts.size, "few_members": int(((counts > 0) & (counts < FEW)).sum())}
