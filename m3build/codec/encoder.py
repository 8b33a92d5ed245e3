"""Encoding keys and values where the model runs: torch on any device, with FAISS's codes.

Per codebook, all vectors of a batch go through the same steps as in FAISS's ``sa_encode``: centre and scale,
transform, nearest first-level centroid of each half, and the fine code of what is left. The transform is
computed in float64 and rounded once, assignments are exact (nearest.py), the rest is element by element; so a
vector's code depends on that vector alone, not on its batch, its place in it or the number of threads. (On
mps, which has no float64, this holds up to ties.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from m3build.codec.bits import pack
from m3build.codec.codec import Codec
from m3build.codec.nearest import NearestCentroid
from m3build.codec.spec import SCALAR_BITS
from m3build_formats.errors import MismatchError


@dataclass(frozen=True)
class _Book:
    """One codebook on the device: what a vector goes through after centring."""

    transform: torch.Tensor | None
    transform_bias: torch.Tensor | None
    first_level: tuple[NearestCentroid, ...]
    first_centroids: torch.Tensor | None
    product: tuple[NearestCentroid, ...]
    scalar_range: torch.Tensor | None


class TorchEncoder:
    """Encodes batches of keys and values with one codec on one device. Read-only after construction;
    threads may share it.
    """

    def __init__(
        self, codec: Codec, device: torch.device | str, shortlist_dtype: torch.dtype | None = None
    ) -> None:
        """``shortlist_dtype`` overrides the choice of nearest.py; it changes speed, never codes."""
        self.codec, self.device = codec, torch.device(device)
        self.exact_dtype = torch.float32 if self.device.type == "mps" else torch.float64
        self.places = torch.from_numpy(codec.places).to(self.device)
        if not codec.spec.is_trained:
            return
        self.mean = self._tensor("mean").to(self.exact_dtype)[:, :, None, :]
        self.scale = self._tensor("scale").to(self.exact_dtype)[:, :, None, None]
        self.numbers = torch.from_numpy(codec.codebooks)
        self.books = [self._book(i, shortlist_dtype) for i in range(int(codec.codebooks.max()) + 1)]

    def encode(self, keys: torch.Tensor, values: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Code rows of B references.

        ``keys``, ``values`` (B, N_heads, S, d) of any float dtype, ``positions`` (B, N_heads, S) uint8, 255
        for unused slots (their bytes are zero); all on the encoder's device. Returns (B, row_bytes) uint8
        there. MismatchError if a key or value is not finite.
        """
        codec = self.codec
        batch = keys.shape[0]
        used = positions != 255
        out = torch.zeros(
            batch,
            2 * len(codec.heads) * codec.slots,
            codec.bytes_per_vector,
            dtype=torch.uint8,
            device=self.device,
        )
        for side, vectors in enumerate((keys, values)):
            if not bool(torch.isfinite(vectors).all()):
                raise MismatchError(
                    f"the model gives {('keys', 'values')[side]} that are not finite; try --dtype float32"
                )
            codes = self._encode_side(vectors, used, side)
            codes[~used] = 0
            out[:, self.places[side].flatten()] = codes.flatten(1, 2)
        return out.view(batch, codec.row_bytes)

    def _encode_side(self, vectors: torch.Tensor, used: torch.Tensor, side: int) -> torch.Tensor:
        """(B, N_heads, S, d) → (B, N_heads, S, bytes) uint8; unused slots get any bytes."""
        codec = self.codec
        if not codec.spec.is_trained:
            return vectors.to(torch.bfloat16).contiguous().view(torch.uint8)
        codes = torch.empty(*vectors.shape[:3], codec.bytes_per_vector, dtype=torch.uint8, device=self.device)
        centred = (vectors.to(self.exact_dtype) - self.mean[side]) / self.scale[side]
        numbers = self.numbers[side]
        for book in torch.unique(numbers).tolist():
            members = (numbers == book).nonzero()[:, 0].to(self.device)
            mask = used[:, members]
            part = codes[:, members]
            part[mask] = self._encode_book(centred[:, members][mask], self.books[book])
            codes[:, members] = part
        return codes

    def _encode_book(self, x: torch.Tensor, book: _Book) -> torch.Tensor:
        """Centred vectors (n, d) in the exact dtype → codes (n, bytes) uint8."""
        spec = self.codec.spec
        if book.transform is not None and book.transform_bias is not None:
            x = torch.addmm(book.transform_bias, x, book.transform.t())
        y = x.float()
        codes = torch.empty(len(y), self.codec.bytes_per_vector, dtype=torch.uint8, device=self.device)
        if not len(y):
            return codes
        split = spec.first_level_bytes()
        if book.first_centroids is not None:
            halves = y.view(len(y), 2, -1)
            index = torch.stack([book.first_level[i].assign(halves[:, i].contiguous()) for i in range(2)])
            chosen = torch.stack([book.first_centroids[i][index[i]] for i in range(2)], 1)
            y = (halves - chosen).view(len(y), -1)
            pack(
                index.to(torch.int32 if spec.first_level_bits < 16 else torch.int64),
                spec.first_level_bits,
                codes[:, :split],
            )
        fine = codes[:, split:]
        if spec.fine == "PQ":
            blocks = y.view(len(y), spec.pq_blocks, -1)
            numbers = torch.stack([q.assign(blocks[:, i].contiguous()) for i, q in enumerate(book.product)])
            pack(numbers.to(torch.int32), spec.pq_bits, fine)
        elif spec.fine == "SQfp16":
            fine.copy_(y.half().contiguous().view(torch.uint8))
        elif book.scalar_range is not None:
            bits = SCALAR_BITS[spec.fine]
            low, width = book.scalar_range
            fraction = torch.where(
                width == 0, torch.zeros_like(y), (y - low) / torch.where(width == 0, 1.0, width)
            )
            steps = (fraction.clamp(0, 1) * ((1 << bits) - 1)).to(torch.int32)
            pack(steps.t().contiguous(), bits, fine)
        return codes

    def _book(self, number: int, shortlist_dtype: torch.dtype | None) -> _Book:
        spec = self.codec.spec

        def quantizers(name: str) -> tuple[NearestCentroid, ...]:
            # A copy: arrays of a bank are read-only views of a memory map, which torch warns about.
            books = torch.from_numpy(np.array(self.codec.arrays[name][number]))
            return tuple(NearestCentroid(centroids, self.device, shortlist_dtype) for centroids in books)

        return _Book(
            transform=self._tensor("transform", number).to(self.exact_dtype) if spec.transform else None,
            transform_bias=self._tensor("transform_bias", number).to(self.exact_dtype)
            if spec.transform
            else None,
            first_level=quantizers("first_level") if spec.first_level_bits else (),
            first_centroids=self._tensor("first_level", number) if spec.first_level_bits else None,
            product=quantizers("product") if spec.fine == "PQ" else (),
            scalar_range=self._tensor("scalar_range", number)
            if "scalar_range" in self.codec.arrays
            else None,
        )

    def _tensor(self, name: str, number: int | None = None) -> torch.Tensor:
        array = self.codec.arrays[name] if number is None else self.codec.arrays[name][number]
        return torch.from_numpy(np.array(array)).to(self.device)
