"""A codec: plain arrays that turn codes back into keys and values, and the checks that they are sound.

Decoding needs numpy only. A vector x of (kind, head) is stored as the code of y = A · (x − mean) / scale + b,
with the mean and the scale of its kind and head, and A, b (an orthonormal transform; identity without one)
and all codebooks of its codebook number. So decoding is x ≈ mean + scale · Aᵀ(y − b), y = first-level
centroids + fine centroids (or dequantized values). ``none`` stores x itself in bfloat16. formats/SPEC.md,
section "Codec arrays", says the same for readers in other languages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.codec.bits import unpack
from m3build.codec.rows import (
    KINDS,
    SCOPES,
    Heads,
    Kind,
    Scope,
    codebook_count,
    codebook_numbers,
    vector_places,
)
from m3build.codec.spec import SCALAR_BITS, CodecSpec, parse_spec
from m3build_formats.errors import CorruptError, UsageError

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_MAX_SLOTS = 255
_MAX_HEADS = 1 << 20


def array_shapes(spec: CodecSpec, scope: Scope, heads: Heads, head_dim: int) -> dict[str, tuple[int, ...]]:
    """Name → shape of every float32 array that a codec of this kind has, no more and no fewer."""
    if not spec.is_trained:
        return {}
    books, d = codebook_count(scope, heads), spec.code_dim(head_dim)
    shapes: dict[str, tuple[int, ...]] = {"mean": (2, len(heads), head_dim), "scale": (2, len(heads))}
    if spec.transform:
        shapes["transform"] = (books, d, head_dim)
        shapes["transform_bias"] = (books, d)
    if spec.first_level_bits:
        shapes["first_level"] = (books, 2, 1 << spec.first_level_bits, d // 2)
    if spec.fine == "PQ":
        shapes["product"] = (books, spec.pq_blocks, 1 << spec.pq_bits, d // spec.pq_blocks)
    elif spec.fine != "SQfp16":
        shapes["scalar_range"] = (books, 2, d)
    return shapes


@dataclass(frozen=True)
class Codec:
    """How the vectors of a bank are coded. ``arrays`` are float32 with the names and shapes of
    ``array_shapes``.
    """

    spec: CodecSpec
    scope: Scope
    heads: Heads
    head_dim: int
    slots: int
    arrays: Mapping[str, Floats]

    @cached_property
    def places(self) -> npt.NDArray[np.int64]:
        """See ``rows.vector_places``."""
        return vector_places(self.heads, self.slots)

    @cached_property
    def codebooks(self) -> npt.NDArray[np.int64]:
        """See ``rows.codebook_numbers``."""
        return codebook_numbers(self.scope, self.heads)

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of one code."""
        return self.spec.bytes_per_vector(self.head_dim)

    @property
    def row_bytes(self) -> int:
        """Bytes of the codes of one reference (kept positions not counted)."""
        return 2 * len(self.heads) * self.slots * self.bytes_per_vector

    def facts(self) -> dict[str, Any]:
        """What the manifest says of the codec, as JSON values; ``from_arrays`` reads it back."""
        return {
            "spec": str(self.spec),
            "scope": self.scope,
            "heads": [list(head) for head in self.heads],
            "head_dim": self.head_dim,
            "slots": self.slots,
            "bytes_per_vector": self.bytes_per_vector,
            "nominal_bits": self.spec.nominal_bits(self.head_dim),
            "compression": 2 * self.head_dim / self.bytes_per_vector,
        }

    def to_arrays(self) -> dict[str, Floats]:
        """The arrays to store, by name. Empty for ``none``."""
        return dict(self.arrays)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> Codec:
        """Rebuild a codec from stored arrays and the manifest's facts; CorruptError says which of them is
        wrong.
        """
        spec, scope, heads, head_dim, slots = _read_facts(facts)
        width = spec.bytes_per_vector(head_dim)
        if facts.get("bytes_per_vector", width) != width:
            raise CorruptError(
                f"codec {spec}: a code takes {width} bytes, the manifest says {facts['bytes_per_vector']}"
            )
        shapes = array_shapes(spec, scope, heads, head_dim)
        if set(arrays) != set(shapes):
            found = _shown(sorted(arrays))
            raise CorruptError(f"codec {spec}: arrays {sorted(shapes)} expected, {found} found")
        for name, shape in shapes.items():
            array = arrays[name]
            if array.dtype != np.float32 or array.shape != shape:
                raise CorruptError(
                    f"codec {spec}: array {name!r} is {array.dtype} {array.shape}, expected float32 {shape}"
                )
            if not np.isfinite(array).all():
                raise CorruptError(f"codec {spec}: array {name!r} holds values that are not finite")
        if "scale" in arrays and not (arrays["scale"] > 0).all():
            raise CorruptError(f"codec {spec}: array 'scale' holds values that are not positive")
        frozen = {name: np.ascontiguousarray(arrays[name]) for name in shapes}
        return cls(spec, scope, heads, head_dim, slots, frozen)

    def decode(self, codes: Bytes, kind: Kind, head: int) -> Floats:
        """Codes (..., bytes_per_vector) uint8 of one kind and head-list index → vectors (..., head_dim)
        float32.
        """
        side = KINDS.index(kind)
        flat = codes.reshape(-1, self.bytes_per_vector)
        decoded = self._decode_book(flat, int(self.codebooks[side, head]))
        if self.spec.is_trained:
            decoded = decoded * self.arrays["scale"][side, head] + self.arrays["mean"][side, head]
        return decoded.reshape(*codes.shape[:-1], self.head_dim)

    def decode_rows(self, codes: Bytes, positions: Bytes | None = None) -> tuple[Floats, Floats]:
        """Code rows (n, row_bytes) uint8 → keys and values, each (n, N_heads, slots, head_dim) float32.

        With ``positions`` (n, N_heads, slots) uint8, the vectors of unused slots (255) are zero; without,
        they are what zero bytes decode to.
        """
        n = len(codes)
        vectors = codes.reshape(n, -1, self.bytes_per_vector)
        out = np.empty((2, n, len(self.heads), self.slots, self.head_dim), np.float32)
        for book in np.unique(self.codebooks):
            for side in range(2):
                members = np.flatnonzero(self.codebooks[side] == book)
                if not len(members):
                    continue
                taken = vectors[:, self.places[side, members]]
                decoded = self._decode_book(taken.reshape(-1, self.bytes_per_vector), int(book))
                decoded = decoded.reshape(n, len(members), self.slots, self.head_dim)
                if self.spec.is_trained:
                    decoded *= self.arrays["scale"][side, members][None, :, None, None]
                    decoded += self.arrays["mean"][side, members][None, :, None, :]
                out[side][:, members] = decoded
        if positions is not None:
            out[:, positions == 255] = 0
        return out[0], out[1]

    def _decode_book(self, codes: Bytes, book: int) -> Floats:
        """Codes (n, bytes) → (n, head_dim) float32 before mean and scale."""
        spec, arrays = self.spec, self.arrays
        if not spec.is_trained:
            raw = np.ascontiguousarray(codes).view("<u2").astype(np.uint32) << np.uint32(16)
            return raw.view(np.float32)
        d = spec.code_dim(self.head_dim)
        split = spec.first_level_bytes()
        y = np.zeros((len(codes), d), np.float32)
        if spec.first_level_bits:
            halves = unpack(codes[:, :split], 2, spec.first_level_bits)
            for half in range(2):
                y[:, half * (d // 2) : (half + 1) * (d // 2)] = arrays["first_level"][book, half][
                    halves[:, half]
                ]
        fine = codes[:, split:]
        if spec.fine == "PQ":
            width = d // spec.pq_blocks
            numbers = unpack(fine, spec.pq_blocks, spec.pq_bits)
            for block in range(spec.pq_blocks):
                y[:, block * width : (block + 1) * width] += arrays["product"][book, block][numbers[:, block]]
        elif spec.fine == "SQfp16":
            y += np.ascontiguousarray(fine).view("<f2").astype(np.float32)
        else:
            bits = SCALAR_BITS[spec.fine]
            low, width_of = arrays["scalar_range"][book]
            fraction = (unpack(fine, d, bits).astype(np.float32) + np.float32(0.5)) / np.float32(
                (1 << bits) - 1
            )
            y += low + fraction * width_of
        if spec.transform:
            y = (y - arrays["transform_bias"][book]) @ arrays["transform"][book]
        return y


def _read_facts(facts: Mapping[str, Any]) -> tuple[CodecSpec, Scope, Heads, int, int]:
    """Narrow the manifest's codec object; CorruptError names the key that is wrong."""
    try:
        text, scope, head_dim, slots = facts["spec"], facts["scope"], facts["head_dim"], facts["slots"]
        pairs = facts["heads"]
    except KeyError as missing:
        raise CorruptError(f"codec: the manifest lacks {missing}") from None
    if not isinstance(text, str) or len(text) > 100:
        raise CorruptError("codec: 'spec' is not a codec string")
    for name, value, limit in (("head_dim", head_dim, 4096), ("slots", slots, _MAX_SLOTS)):
        if type(value) is not int or not 1 <= value <= limit:
            raise CorruptError(f"codec: {name!r} is {_shown(value)}, expected an integer from 1 to {limit}")
    if scope not in SCOPES:
        raise CorruptError(f"codec: 'scope' is {_shown(scope)}, expected one of {', '.join(SCOPES)}")
    if not isinstance(pairs, list | tuple) or not 1 <= len(pairs) <= _MAX_HEADS:
        raise CorruptError("codec: 'heads' is not a list of (layer, head) pairs")
    heads: list[tuple[int, int]] = []
    for pair in pairs:
        if (
            not isinstance(pair, list | tuple)
            or len(pair) != 2
            or any(type(i) is not int or i < 0 for i in pair)
        ):
            raise CorruptError(f"codec: 'heads' holds {_shown(pair)}, expected a (layer, head) pair")
        heads.append((pair[0], pair[1]))
    if heads != sorted(set(heads)):
        raise CorruptError("codec: 'heads' is not in ascending order")
    try:
        spec = parse_spec(text)
        spec.check_head_dim(head_dim)
    except UsageError as error:
        raise CorruptError(str(error)) from None
    return spec, scope, tuple(heads), head_dim, slots


def _shown(value: object) -> str:
    """A stranger's value in a message, however long it is."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
