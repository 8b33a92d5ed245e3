"""Codec strings: FAISS's notation for how a key or value vector becomes a code.

The grammar is ``[OPQm_d,|PCAd,|RRd,][Residual2xb,](PQmxb|SQ4|SQ6|SQ8|SQfp16)``, or ``none`` for raw bfloat16.
It is the part of FAISS's factory language that a bank can promise to decode for good: an orthonormal
transform, a first level of two codebooks of 2^b centroids (one for each half of the transformed vector), and
a product or scalar quantizer for what is left. Everything else is refused by name, so that no bank depends on
an unwritten detail of a library.

Two numbers describe the size of a code and both are reported: the nominal bits, which the information takes,
and the stored bytes, in which the first level and the rest are each rounded up to whole bytes, as FAISS does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from m3build_formats.errors import UsageError

Transform = Literal["", "OPQ", "PCA", "RR"]
Fine = Literal["PQ", "SQ4", "SQ6", "SQ8", "SQfp16", "none"]

GRAMMAR = "[OPQm_d,|PCAd,|RRd,][Residual2xb,](PQmxb|SQ4|SQ6|SQ8|SQfp16), or none"
MAX_HEAD_DIMENSION = 4096
MAX_FIRST_LEVEL_BITS = 16
MAX_PQ_BITS = 16
SCALAR_BITS: dict[Fine, int] = {"SQ4": 4, "SQ6": 6, "SQ8": 8, "SQfp16": 16}

_TRANSFORM = re.compile(
    r"OPQ(?P<blocks>[1-9]\d{0,3})_(?P<opq>[1-9]\d{0,3})|PCA(?P<pca>[1-9]\d{0,3})|RR(?P<rr>[1-9]\d{0,3})"
)
_FIRST_LEVEL = re.compile(r"Residual2x(?P<bits>[1-9]\d?)")
_PRODUCT = re.compile(r"PQ(?P<blocks>[1-9]\d{0,3})x(?P<bits>[1-9]\d?)")


@dataclass(frozen=True, slots=True)
class CodecSpec:
    """One codec string, taken apart.

    ``transform`` with ``transform_blocks`` (OPQ only, else 0) and ``transform_dim`` (output dimension, 0
    without a transform); ``first_level_bits`` b of ``Residual2xb`` (0: no first level); ``fine`` the last
    stage, with ``pq_blocks`` and ``pq_bits`` for PQ (else 0).
    """

    transform: Transform = ""
    transform_blocks: int = 0
    transform_dim: int = 0
    first_level_bits: int = 0
    fine: Fine = "none"
    pq_blocks: int = 0
    pq_bits: int = 0

    def __str__(self) -> str:
        parts: list[str] = []
        if self.transform == "OPQ":
            parts.append(f"OPQ{self.transform_blocks}_{self.transform_dim}")
        elif self.transform:
            parts.append(f"{self.transform}{self.transform_dim}")
        if self.first_level_bits:
            parts.append(f"Residual2x{self.first_level_bits}")
        parts.append(f"PQ{self.pq_blocks}x{self.pq_bits}" if self.fine == "PQ" else self.fine)
        return ",".join(parts)

    @property
    def is_trained(self) -> bool:
        """Whether the codec has parameters to learn; ``none`` has not."""
        return self.fine != "none"

    def code_dim(self, head_dim: int) -> int:
        """Dimension of the vectors that the quantizers see: after the transform."""
        return self.transform_dim or head_dim

    def nominal_bits(self, head_dim: int) -> int:
        """Bits of one code before rounding up to bytes."""
        if self.fine == "none":
            return 16 * head_dim
        fine = (
            self.pq_blocks * self.pq_bits
            if self.fine == "PQ"
            else SCALAR_BITS[self.fine] * self.code_dim(head_dim)
        )
        return 2 * self.first_level_bits + fine

    def first_level_bytes(self) -> int:
        """Bytes at the start of a code that hold the two first-level indices."""
        return (2 * self.first_level_bits + 7) // 8

    def bytes_per_vector(self, head_dim: int) -> int:
        """Stored bytes of one code: first level and fine code, each rounded up."""
        return self.first_level_bytes() + (self.nominal_bits(head_dim) - 2 * self.first_level_bits + 7) // 8

    def centroids(self) -> int:
        """Size of the largest codebook: what the number of training vectors is measured by. 0 if there is
        none.
        """
        return max(
            1 << self.first_level_bits if self.first_level_bits else 0,
            1 << self.pq_bits if self.fine == "PQ" else 0,
        )

    def encode_flops(self, head_dim: int) -> int:
        """Floating-point operations that turn one vector into its code: products of the transform and of
        the assignments.
        """
        d = self.code_dim(head_dim)
        transform = 2 * head_dim * d if self.transform else 0
        first = 2 * d << self.first_level_bits if self.first_level_bits else 0
        fine = 2 * d << self.pq_bits if self.fine == "PQ" else 4 * d
        return 0 if self.fine == "none" else transform + first + fine

    def check_head_dim(self, head_dim: int) -> None:
        """Raise UsageError, with the values that would fit, unless vectors of ``head_dim`` dimensions can
        be coded this way.
        """
        if not 1 <= head_dim <= MAX_HEAD_DIMENSION:
            raise UsageError(
                f"codec {self}: a head dimension of {head_dim} is outside 1 to {MAX_HEAD_DIMENSION}"
            )
        d = self.code_dim(head_dim)
        if d > head_dim:
            raise UsageError(
                f"codec {self}: {self.transform} to {d} dimensions, but the model's heads have {head_dim}; "
                f"use {head_dim} or fewer"
            )
        if self.transform == "OPQ" and d % self.transform_blocks:
            raise UsageError(
                f"codec {self}: OPQ{self.transform_blocks} does not divide {d} dimensions; "
                f"m can be {_divisors(d)}"
            )
        if self.first_level_bits and d % 2:
            raise UsageError(f"codec {self}: Residual2x needs an even number of dimensions, not {d}")
        if self.fine == "PQ" and d % self.pq_blocks:
            raise UsageError(
                f"codec {self}: PQ{self.pq_blocks} does not divide {d} dimensions; m can be {_divisors(d)}"
            )


def parse_spec(text: str) -> CodecSpec:
    """Read a codec string; UsageError names the part that is not understood and says what is allowed.

    ``str()`` of the result gives the same string back. Whether it fits a head dimension is asked of
    ``check_head_dim``.
    """
    if text == "none":
        return CodecSpec()
    transform: Transform = ""
    blocks = dim = first = 0
    parts = text.split(",")
    if match := _TRANSFORM.fullmatch(parts[0]):
        transform = "OPQ" if match["opq"] else "PCA" if match["pca"] else "RR"
        blocks, dim = int(match["blocks"] or 0), int(match["opq"] or match["pca"] or match["rr"])
        parts = parts[1:]
    if parts and (match := _FIRST_LEVEL.fullmatch(parts[0])):
        first = int(match["bits"])
        if first > MAX_FIRST_LEVEL_BITS:
            raise UsageError(
                f"codec {text!r}: Residual2x{first} is over the limit of Residual2x{MAX_FIRST_LEVEL_BITS}"
            )
        parts = parts[1:]
    if len(parts) != 1:
        wrong = repr(parts[0]) if parts else "nothing"
        raise UsageError(f"codec {text!r}: found {wrong} where one last part is expected; allowed: {GRAMMAR}")
    last = parts[0]
    for scalar in SCALAR_BITS:
        if last == scalar:
            return CodecSpec(transform, blocks, dim, first, scalar)
    if match := _PRODUCT.fullmatch(last):
        bits = int(match["bits"])
        if bits > MAX_PQ_BITS:
            raise UsageError(f"codec {text!r}: {last} has over {MAX_PQ_BITS} bits a block")
        return CodecSpec(transform, blocks, dim, first, "PQ", int(match["blocks"]), bits)
    raise UsageError(f"codec {text!r}: {last!r} is not supported; allowed: {GRAMMAR}")


def _divisors(number: int) -> str:
    return ", ".join(str(m) for m in range(1, number + 1) if number % m == 0)
