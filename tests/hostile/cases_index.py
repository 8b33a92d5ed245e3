"""FAISS index files: other types, other shapes, lies in every field, and a path to a file outside."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from case import add, case, each
from faiss_bytes import (
    EIGHT_BITS,
    EMPTY_QUANTIZER,
    FP16,
    Graph,
    Inverted,
    flat,
    header,
    inverted_flat,
    inverted_product,
    inverted_scalar,
    product_quantizer,
    scalar,
    scalar_quantizer,
    vector,
)
from forge import Forge
from good_bank import DIM, ROWS, make_embedder, make_state
from reading import QUERIES

from m3build.index.library import one_thread

N = ROWS[0]
CANARY = Path("canary")
"""In the working directory of the reading process there is a file of this name."""
Data = Callable[[np.ndarray], bytes]


def _vectors(forge: Forge) -> np.ndarray:
    """The embeddings of the first shard, float16 (rows, DIM)."""
    column = forge.table(forge.shard()["embeddings"]).read()["embedding"].combine_chunks()
    return np.asarray(column.flatten()).reshape(-1, DIM)


def _put(forge: Forge, data: bytes) -> None:
    forge.put(forge.shard()["index"], data)


def _add(name: str, make: Data, spec: str, words: str = "index") -> None:
    add(
        f"index {spec}: {name}",
        lambda forge: _put(forge, make(_vectors(forge))),
        step="search",
        words=words,
        verified=True,
        spec=spec,
    )


def _factory(text: str, metric: int = faiss.METRIC_INNER_PRODUCT) -> Data:
    def make(vectors: np.ndarray) -> bytes:
        with one_thread():
            index = faiss.index_factory(DIM, text, metric)
            data = np.repeat(vectors.astype(np.float32), 8, axis=0)
            index.train(data + np.random.default_rng(0).standard_normal(data.shape).astype(np.float32))
            index.add(vectors.astype(np.float32))
            return bytes(faiss.serialize_index(index))

    return make


def _infinite(vectors: np.ndarray) -> np.ndarray:
    """Vectors with infinity in a dimension in which all queries are positive: so are their scores."""
    queries = make_embedder().embed_queries(QUERIES)
    changed = vectors.astype(np.float32)
    changed[::2, np.flatnonzero((queries > 0).all(0))[0]] = np.inf
    return changed


# Types that the format's allow-list refuses by their first four bytes.
for _text in ("Flat,RFlat", "PQ8x4fs", "RQ2x4", "HNSW4,PQ4x4", "RaBitQ"):
    add(
        f"index type {_text}",
        lambda forge, text=_text: _put(forge, _factory(text)(_vectors(forge))),  # type: ignore[misc]
        step="index bytes",
        words="not allowed",
    )


@case(step="index bytes", words="not allowed")
def index_type_binary(forge: Forge) -> None:
    """Bits and not numbers."""
    index = faiss.IndexBinaryFlat(DIM)
    index.add(_vectors(forge).astype(np.float32).view(np.uint8)[:, : DIM // 8].copy())
    _put(forge, bytes(faiss.serialize_index_binary(index)))


@each(
    {
        "zeros": bytes(100),
        "text": b"not an index",
        "a pickle": b"\x80\x04\x95",
        "nothing": b"",
        "null": b"null",
    },
    step="index bytes",
    words="not allowed",
)
def an_index_of(forge: Forge, data: bytes) -> None:
    """No FAISS file."""
    _put(forge, data)


# Types that a bank may have, where the state says another.
for _text in (
    "PCA32,Flat",
    "Flat",
    "SQ8",
    "PQ4x4",
    "IVF4,Flat",
    "IVF4,SQfp16",
    "IVF2,PQ4x4",
    "HNSW4",
    "HNSW4,SQfp16",
):
    _add(f"type {_text}", _factory(_text), "SQfp16")
_add("squared L2", _factory("Flat", faiss.METRIC_L2), "Flat")
_add("a metric of 22", lambda v: flat(v, metric=22), "Flat")
_add("a metric of -1", lambda v: flat(v, metric=-1), "Flat")
_add("rows that are not there", lambda v: flat(v, rows=1 << 40), "Flat")
_add("rows below zero", lambda v: flat(v, rows=-1), "Flat")
_add("a row less", lambda v: flat(v[:-1]), "Flat")
_add("a row more", lambda v: flat(np.concatenate([v, v[:1]])), "Flat")
_add("half the dimensions, twice the rows", lambda v: flat(v, rows=2 * N, dim=DIM // 2), "Flat")
_add("no dimensions", lambda v: header(b"IxFI", N, dim=0) + vector(()), "Flat")
_add("dimensions below zero", lambda v: header(b"IxFI", N, dim=-DIM) + vector(()), "Flat")
_add("2^20 dimensions", lambda v: header(b"IxFI", N, dim=1 << 20) + vector(()), "Flat")
_add("not trained", lambda v: flat(v, trained=0), "Flat")
_add("a count that overflows", lambda v: flat(v, count=(1 << 62) + v.size), "Flat")
_add("a count of 2^63", lambda v: flat(v, count=1 << 63), "Flat")
_add("a byte less", lambda v: flat(v)[:-1], "Flat")
_add("a byte more", lambda v: flat(v) + b"\0", "Flat")
_add("two indexes", lambda v: flat(v) * 2, "Flat")
_add("vectors of infinity where queries look", lambda v: flat(_infinite(v)), "Flat", "not finite")
add(
    "index Flat: vectors of NaN",
    lambda forge: _put(forge, flat(np.full_like(_vectors(forge), np.nan))),
    error="",
    verified=True,
    spec="Flat",
)

_add("no codes", lambda v: scalar(b"", N), "SQfp16")
_add("a code less", lambda v: scalar(v[:-1].tobytes(), N), "SQfp16")
_add("half a code less", lambda v: scalar(v.tobytes()[:-DIM], N), "SQfp16")
_add("2^62 codes", lambda v: scalar(v.tobytes(), N, count=1 << 62), "SQfp16")
_add(
    "another type of codes",
    lambda v: scalar(v.tobytes()[: N * DIM], N, scalar_quantizer(EIGHT_BITS)),
    "SQfp16",
)
_add("codes of a type that is none", lambda v: scalar(v.tobytes(), N, scalar_quantizer(99)), "SQfp16")
_add("codes of a trained type", lambda v: scalar(v.tobytes(), N, scalar_quantizer(12, [0.0] * 31)), "SQfp16")
_add(
    "dimensions of another quantizer",
    lambda v: scalar(v.tobytes(), N, scalar_quantizer(FP16, dim=2 * DIM)),
    "SQfp16",
)
_add("codes of one byte", lambda v: scalar(v.tobytes(), N, scalar_quantizer(FP16, code=1)), "SQfp16")
_add("tables where there are none", lambda v: scalar(v.tobytes(), N, scalar_quantizer(FP16, [0.0])), "SQfp16")
_add("2^62 tables", lambda v: scalar(v.tobytes(), N, scalar_quantizer(FP16, count=1 << 62)), "SQfp16")

_SQ8 = make_state("SQ8").tables
_add("no tables", lambda v: scalar(bytes(N * DIM), N, scalar_quantizer(EIGHT_BITS)), "SQ8")
_add("other tables", lambda v: scalar(bytes(N * DIM), N, scalar_quantizer(EIGHT_BITS, _SQ8 + 1)), "SQ8")
_add("tables of NaN", lambda v: scalar(bytes(N * DIM), N, scalar_quantizer(EIGHT_BITS, _SQ8 * np.nan)), "SQ8")
_add("a float16 quantizer", lambda v: scalar(v.tobytes(), N), "SQ8")

HUGE = 1 << 62


def _list(
    change: Callable[[Inverted], object], base: Callable[[np.ndarray], Inverted] = inverted_flat
) -> Data:
    def make(vectors: np.ndarray) -> bytes:
        index = base(vectors)
        change(index)
        return index.to_bytes()

    return make


def _set(**changed: Any) -> Data:
    return _list(lambda index: vars(index).update(changed))


def _set_lists(**changed: Any) -> Data:
    return _list(lambda index: vars(index.lists).update(changed))


def _on_disk(path: Path) -> bytes:
    """Inverted lists that FAISS maps from a file of any name: their number, code size, size, capacity and
    offset of each, free slots, the file's name, its size."""
    sizes = [N // 4] * 4
    lists = b"".join(struct.pack("<QQQ", size, size, number * 4096) for number, size in enumerate(sizes))
    name = str(path).encode()
    return (
        b"ilod"
        + struct.pack("<QQ", 4, 4 * DIM)
        + struct.pack("<Q", 4)
        + lists
        + struct.pack("<Q", 0)
        + struct.pack("<Q", len(name))
        + name
        + struct.pack("<Q", 1 << 16)
    )


def _nested(depth: int) -> bytes:
    """Indexes of inverted lists, each the quantizer of the next."""
    data = EMPTY_QUANTIZER
    for _ in range(depth):
        data = header(b"IwFl", 0) + struct.pack("<QQ", 0, 1) + data + struct.pack("<bQ", 0, 0) + b"il00"
    return data


IVF_FLAT: Mapping[str, Data] = {
    "lists in a file outside": _set(stored=_on_disk(CANARY)),
    "lists in the memory of the process": _set(stored=_on_disk(Path("/proc/self/mem"))),
    "lists in a device": _set(stored=_on_disk(Path("/dev/zero"))),
    "no lists": _set(stored=b"il00"),
    "lists of an unknown kind": _set(stored=b"ilxx" + bytes(64)),
    "block lists": _set(stored=b"ilbl" + struct.pack("<QQQQQ", 4, 256, 1, 1, 0) + bytes(64)),
    "panorama lists": _set(stored=b"ilpn" + struct.pack("<QQQ", 4, 256, HUGE) + bytes(64)),
    "a quantizer that is a transform": _set(quantizer=_factory("PCA32,Flat")(np.eye(DIM, dtype=np.float16))),
    "a quantizer that is a graph": _set(quantizer=_factory("HNSW4")(np.eye(4, DIM, dtype=np.float16))),
    "a quantizer that is none": _set(quantizer=b"null"),
    "a quantizer of quantizers": _set(quantizer=_nested(40)),
    "a quantizer of a thousand quantizers": _set(quantizer=_nested(1000)),
    "a quantizer with vectors": _set(quantizer=flat(np.eye(4, DIM))),
    "a quantizer of other dimensions": _set(quantizer=header(b"IxFI", 0, dim=1) + vector(())),
    "a map of rows": _set(map=struct.pack("<b", 1) + vector(range(N), "i8")),
    "a map of 2^60 rows": _set(map=struct.pack("<bQ", 1, 1 << 60)),
    "a map that hashes": _set(map=struct.pack("<bQQ", 2, 0, 1 << 60)),
    "2^62 lists": _set(nlist=HUGE),
    "other lists than the state": _list(lambda index: None, lambda v: inverted_flat(v, 5)),
    "2^62 probes": _set(probes=HUGE, said={"metric": 1}),
    "not trained": _set(said={"trained": 0}),
    "squared L2": _set(said={"metric": 1}),
    "lists that say 2^62 lists": _set_lists(said_lists=HUGE),
    "lists of another number": _set_lists(said_lists=3),
    "lists of other codes": _set_lists(said_code_size=8),
    "sizes that overflow": _set_lists(sizes=[HUGE, HUGE, HUGE, HUGE + N]),
    "sizes that do not add up": _set_lists(sizes=[1, 1, 1, 1]),
    "sizes of one list": _set_lists(sizes=[N, 0, 0, 0]),
    "a size less": _set_lists(sizes=[10, 10, 10]),
    "an unknown kind of sizes": _set_lists(kind=b"none"),
    "a sparse list beyond": _set_lists(kind=b"sprs", sizes=[4, N]),
    "a sparse list twice": _set_lists(kind=b"sprs", sizes=[0, 5, 0, 5, 1, 10, 2, 10, 3, 10]),
    "half a sparse list": _set_lists(kind=b"sprs", sizes=[0, 10, 1]),
    "sparse lists that descend": _set_lists(kind=b"sprs", sizes=[3, 10, 2, 10, 1, 10, 0, 10]),
}
for _name, _make in IVF_FLAT.items():
    _add(_name, _make, "IVF4,Flat")

IDS: Mapping[str, list[int]] = {
    "a row beyond the shard": [N],
    "a row of 2^62": [HUGE],
    "a row below -1": [-2],
}
for _name, _ids in IDS.items():
    _add(
        f"ids with {_name}",
        _list(lambda index, ids=_ids: vars(index.lists).update(ids=[ids * 10] * 4)),  # type: ignore[misc]
        "IVF4,Flat",
        "rows that its shard does not have",
    )
add(
    "index IVF4,Flat: one row in all places",
    lambda forge: _put(
        forge, _list(lambda index: setattr(index.lists, "ids", [[3] * 10] * 4))(_vectors(forge))
    ),
    error="",
    verified=True,
    spec="IVF4,Flat",
)
add(
    "index IVF4,Flat: rows that are none",
    lambda forge: _put(
        forge, _list(lambda index: setattr(index.lists, "ids", [[-1] * 10] * 4))(_vectors(forge))
    ),
    error="",
    verified=True,
    spec="IVF4,Flat",
)

IVF_SCALAR: Mapping[str, Data] = {
    "residuals": lambda v: inverted_scalar(v, residual=1).to_bytes(),
    "a quantizer of 8 bits": _list(
        lambda index: setattr(index, "own", scalar_quantizer(EIGHT_BITS, _SQ8) + struct.pack("<Q?", DIM, 0)),
        inverted_scalar,
    ),
    "codes of one byte": _list(
        lambda index: setattr(index, "own", scalar_quantizer(FP16, code=1) + struct.pack("<Q?", 1, 0)),
        inverted_scalar,
    ),
    "two code sizes": _list(
        lambda index: setattr(index, "own", scalar_quantizer(FP16) + struct.pack("<Q?", DIM, 0)),
        inverted_scalar,
    ),
    "another dimension": _list(
        lambda index: setattr(
            index, "own", scalar_quantizer(FP16, dim=DIM // 2) + struct.pack("<Q?", DIM, 0)
        ),
        inverted_scalar,
    ),
}
for _name, _make in IVF_SCALAR.items():
    _add(_name, _make, "IVF4,SQfp16")

_PQ = make_state("IVF2,PQ4").tables


def _product(**said: Any) -> Data:
    return lambda v: inverted_product(N, **{"centroids": _PQ, **said}).to_bytes()


IVF_PRODUCT: Mapping[str, Data] = {
    "residuals": _product(residual=1),
    "more parts than the code has bytes": _product(parts=16),
    "fewer parts": _product(parts=2),
    "a part that does not divide": _product(parts=7),
    "no parts": _product(parts=0),
    "2^62 parts": _product(parts=HUGE),
    "16 bits a part": _product(bits=16),
    "63 bits a part": _product(bits=63),
    "2^62 dimensions": _product(dim=HUGE),
    "a code of one byte": _product(code=1),
    "other centroids": _product(centroids=_PQ + 1),
    "a centroid less": _product(centroids=_PQ[:-1]),
    "two quantizers": lambda v: inverted_product(N, _PQ).to_bytes() + product_quantizer(_PQ, 4),
}
for _name, _make in IVF_PRODUCT.items():
    _add(_name, _make, "IVF2,PQ4")


def _graph(forge: Forge, change: Callable[[Graph], object]) -> None:
    graph = Graph.of(forge.data(forge.shard()["index"]))
    change(graph)
    _put(forge, graph.to_bytes())


def _low(graph: Graph) -> int:
    """A row that is on the lowest level only; the last, whose neighbors end the array."""
    return int(np.flatnonzero(graph.levels == 1)[-1])


def _put_neighbor(row: int, value: int) -> Callable[[Graph], object]:
    return lambda graph: graph.neighbors.__setitem__(graph.slots(row, 0).start, value)


def _lower_neighbor(graph: Graph) -> None:
    """On the upper level of the entry point, a neighbor that has no upper level."""
    graph.neighbors[graph.slots(graph.entry, 1)] = _low(graph)


def _higher_top(graph: Graph) -> None:
    """An entry point that is not on the level where the search begins."""
    graph.entry = _low(graph)


def _self_loops(graph: Graph) -> None:
    for row in range(graph.rows):
        graph.neighbors[graph.slots(row, 0)] = row


_DISK_STORAGE = _set(stored=_on_disk(CANARY))
GRAPHS: Mapping[str, Callable[[Graph], object]] = {
    "a neighbor beyond the rows": _put_neighbor(0, N),
    "a neighbor of 2^31 - 1": _put_neighbor(0, 2**31 - 1),
    "a neighbor below -1": _put_neighbor(0, -2),
    "a neighbor without that level": _lower_neighbor,
    "an entry point without the top level": _higher_top,
    "an entry point beyond the rows": lambda graph: setattr(graph, "entry", N),
    "an entry point below -1": lambda graph: setattr(graph, "entry", -2),
    "no entry point": lambda graph: setattr(graph, "entry", -1),
    "a top level too high": lambda graph: setattr(graph, "top", 7),
    "a top level of 2^31 - 1": lambda graph: setattr(graph, "top", 2**31 - 1),
    "a top level below zero": lambda graph: setattr(graph, "top", -1),
    "a row on no level": lambda graph: graph.levels.__setitem__(3, 0),
    "a row on level 2^31 - 1": lambda graph: graph.levels.__setitem__(3, 2**31 - 1),
    "a row below the levels": lambda graph: graph.levels.__setitem__(3, -1),
    "offsets that run backwards": lambda graph: graph.offsets.__setitem__(3, 1 << 40),
    "an offset less": lambda graph: setattr(graph, "offsets", graph.offsets[:-1]),
    "no neighbors": lambda graph: setattr(graph, "neighbors", graph.neighbors[:0]),
    "levels of no neighbors": lambda graph: graph.cumulative.__imul__(0),
    "levels of 2^31 - 1 neighbors": lambda graph: graph.cumulative.__setitem__(slice(1, None), 2**31 - 1),
    "a level less": lambda graph: setattr(graph, "cumulative", graph.cumulative[:1]),
    "a row less": lambda graph: setattr(graph, "rows", N - 1),
    "storage that is none": lambda graph: setattr(graph, "storage", b"null"),
    "storage of short codes": lambda graph: setattr(graph, "storage", scalar(b"", N)),
    "storage of fewer rows": lambda graph: setattr(graph, "storage", flat(np.zeros((1, DIM)))),
    "storage of other dimensions": lambda graph: setattr(graph, "storage", flat(np.zeros((N, 1)), dim=1)),
    "storage of another metric": lambda graph: setattr(graph, "storage", flat(np.zeros((N, DIM)), metric=1)),
    "storage on disk": lambda graph: setattr(graph, "storage", _DISK_STORAGE(np.zeros((N, DIM)))),
    "not trained": lambda graph: setattr(graph, "said", {"trained": 0}),
}  # fmt: skip
for _name, _change in GRAPHS.items():
    add(
        f"index HNSW4: {_name}",
        lambda forge, change=_change: _graph(forge, change),  # type: ignore[misc]
        step="search",
        words="index",
        verified=True,
        spec="HNSW4",
    )

for _name, _change in {
    "every row its own neighbor": _self_loops,
    "no one a neighbor": lambda graph: graph.neighbors.__setitem__(slice(None), -1),
    "an effort of 2^31 - 1": lambda graph: setattr(graph, "search", 2**31 - 1),
    "odd probabilities": lambda graph: setattr(graph, "probabilities", np.full(3, np.nan)),
}.items():
    add(
        f"index HNSW4: {_name}",
        lambda forge, change=_change: _graph(forge, change),  # type: ignore[misc]
        error="",
        verified=True,
        spec="HNSW4",
    )


@each(
    {
        "another type": {"type": "IVF4,Flat"},
        "another metric": {"metric": "l2"},
        "the type of a megabyte": {"type": "x" * (1 << 20)},
    },
    step="search",
    words="index",
    verified=True,
)
def index_facts_with(forge: Forge, facts: dict[str, object]) -> None:
    """What ``info`` says of the index is not what a search finds."""
    forge.manifest["index"].update(facts)


@case(step="search", words="index", verified=True)
def an_index_of_the_other_shard(forge: Forge) -> None:
    """The right type and digest, other rows."""
    _put(forge, forge.data(forge.shard(1)["index"]))


@case(error="", verified=True)
def an_index_of_other_vectors(forge: Forge) -> None:
    """What cannot be told without the embeddings: candidates are worse, texts and scores are still true."""
    _put(forge, scalar(_vectors(forge)[::-1].copy().tobytes(), N))
