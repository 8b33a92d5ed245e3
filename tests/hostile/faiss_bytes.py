"""FAISS index files put together by hand, so that a case can lie in any field.

The layouts are those of FAISS's index_write.cpp for the types that a bank may have. A test compares what
these functions make of sound values with what FAISS writes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from good_bank import DIM

FP16, EIGHT_BITS = 4, 0
"""ScalarQuantizer::QuantizerType."""


def header(fourcc: bytes, rows: int, *, dim: int = DIM, metric: int = 0, trained: int = 1) -> bytes:
    """Type, dimensions, number of vectors, two numbers without use, whether it is trained, metric (0: inner
    product)."""
    return fourcc + struct.pack("<iqqq?i", dim, rows, 1 << 20, 1 << 20, trained, metric)


def vector(array: Any, dtype: str = "u1", count: int | None = None) -> bytes:
    """A vector: the number of its elements, then the elements."""
    data = np.ascontiguousarray(array, dtype)
    return struct.pack("<Q", data.size if count is None else count) + data.tobytes()


def flat(vectors: Any, rows: int | None = None, count: int | None = None, **said: int) -> bytes:
    """An exact index; its codes are counted in floats."""
    data = np.ascontiguousarray(vectors, "f4")
    return header(b"IxFI", len(data) if rows is None else rows, **said) + vector(data, "f4", count)


def scalar_quantizer(
    kind: int, tables: Any = (), *, dim: int = DIM, code: int | None = None, count: int | None = None
) -> bytes:
    """A scalar quantizer: type, two training parameters, dimensions, code size, trained values."""
    size = (2 if kind == FP16 else 1) * dim if code is None else code
    return struct.pack("<iifqq", kind, 0, 0.0, dim, size) + vector(tables, "f4", count)


def scalar(
    codes: bytes, rows: int, quantizer: bytes | None = None, count: int | None = None, **said: int
) -> bytes:
    """An index of scalar-quantized vectors."""
    fitting = scalar_quantizer(FP16) if quantizer is None else quantizer
    return header(b"IxSQ", rows, **said) + fitting + vector(np.frombuffer(codes, "u1"), "u1", count)


EMPTY_QUANTIZER = header(b"IxFI", 0) + vector(())
NO_MAP = struct.pack("<bQ", 0, 0)


@dataclass
class Lists:
    """Inverted lists as FAISS stores them in one array: codes and ids of each."""

    codes: list[bytes]
    ids: list[list[int]]
    code_size: int
    kind: bytes = b"full"
    said_lists: int | None = None
    said_code_size: int | None = None
    sizes: list[int] | None = None

    def to_bytes(self) -> bytes:
        """The lists with what they say of themselves."""
        sizes = [len(ids) for ids in self.ids] if self.sizes is None else self.sizes
        count = len(self.codes) if self.said_lists is None else self.said_lists
        width = self.code_size if self.said_code_size is None else self.said_code_size
        data = b"ilar" + struct.pack("<QQ", count, width) + self.kind + vector(sizes, "u8")
        for codes, ids in zip(self.codes, self.ids, strict=True):
            data += codes + np.array(ids, "i8").tobytes()
        return data


@dataclass
class Inverted:
    """An index of inverted lists, from parts that a case may replace."""

    fourcc: bytes
    rows: int
    lists: Lists
    own: bytes = b""
    """What the type has between the map and the lists."""
    said: dict[str, int] = field(default_factory=dict)
    nlist: int = 4
    probes: int = 1
    quantizer: bytes = EMPTY_QUANTIZER
    map: bytes = NO_MAP
    stored: bytes | None = None
    """What stands in place of the lists."""

    def to_bytes(self) -> bytes:
        """The whole file."""
        lists = self.lists.to_bytes() if self.stored is None else self.stored
        return (
            header(self.fourcc, self.rows, **self.said)
            + struct.pack("<QQ", self.nlist, self.probes)
            + self.quantizer
            + self.map
            + self.own
            + lists
        )


def inverted_flat(vectors: np.ndarray, lists: int = 4) -> Inverted:
    """Full vectors, row i in list i modulo ``lists``."""
    data = np.ascontiguousarray(vectors, "f4")
    ids = [list(range(number, len(data), lists)) for number in range(lists)]
    codes = [data[some].tobytes() for some in ids]
    return Inverted(b"IwFl", len(data), Lists(codes, ids, 4 * DIM), nlist=lists)


def inverted_scalar(vectors: np.ndarray, residual: int = 0, lists: int = 4) -> Inverted:
    """Vectors of float16."""
    data = np.ascontiguousarray(vectors, "f2")
    ids = [list(range(number, len(data), lists)) for number in range(lists)]
    codes = [data[some].tobytes() for some in ids]
    own = scalar_quantizer(FP16) + struct.pack("<Q?", 2 * DIM, residual)
    return Inverted(b"IwSq", len(data), Lists(codes, ids, 2 * DIM), own, nlist=lists)


def product_quantizer(centroids: Any, parts: int, bits: int = 8, *, dim: int = DIM) -> bytes:
    """A product quantizer: dimensions, parts, bits of each, centroids."""
    return struct.pack("<QQQ", dim, parts, bits) + vector(centroids, "f4")


def inverted_product(
    rows: int, centroids: Any, parts: int = 4, code: int = 4, residual: int = 0, lists: int = 2, **said: int
) -> Inverted:
    """Product-quantized vectors, all codes zero."""
    ids = [list(range(number, rows, lists)) for number in range(lists)]
    codes = [bytes(code * len(some)) for some in ids]
    own = struct.pack("<?Q", residual, code) + product_quantizer(centroids, parts, **said)
    return Inverted(b"IwPQ", rows, Lists(codes, ids, code), own, nlist=lists)


@dataclass
class Graph:
    """An HNSW index taken apart."""

    rows: int
    probabilities: np.ndarray
    cumulative: np.ndarray
    levels: np.ndarray
    offsets: np.ndarray
    neighbors: np.ndarray
    entry: int
    top: int
    construction: int
    search: int
    storage: bytes
    said: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, data: bytes) -> Graph:
        """The parts of a sound file."""
        at = len(header(b"IHNf", 0))
        arrays: list[Any] = []
        for dtype in ("f8", "i4", "i4", "u8", "i4"):
            (count,) = struct.unpack_from("<Q", data, at)
            arrays.append(np.frombuffer(data, dtype, count, at + 8).copy())
            at += 8 + arrays[-1].nbytes
        entry, top, construction, search, _ = struct.unpack_from("<iiiii", data, at)
        (rows,) = struct.unpack_from("<q", data, 8)
        probabilities, cumulative, levels, offsets, neighbors = arrays
        return cls(
            rows,
            probabilities,
            cumulative,
            levels,
            offsets,
            neighbors,
            entry,
            top,
            construction,
            search,
            data[at + 20 :],
        )

    def to_bytes(self) -> bytes:
        """The whole file."""
        return (
            header(b"IHNf", self.rows, **self.said)
            + vector(self.probabilities, "f8")
            + vector(self.cumulative, "i4")
            + vector(self.levels, "i4")
            + vector(self.offsets, "u8")
            + vector(self.neighbors, "i4")
            + struct.pack("<iiiii", self.entry, self.top, self.construction, self.search, 1)
            + self.storage
        )

    def slots(self, row: int, level: int) -> slice:
        """Where the neighbors of a row on a level stand."""
        start = int(self.offsets[row])
        return slice(start + int(self.cumulative[level]), start + int(self.cumulative[level + 1]))
