"""Codec and embedder files: arrays that are none, and arrays that no codec, embedder or index has."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pyarrow as pa
from case import add, case, each
from forge import JSON, Forge
from good_bank import DIM, make_codec
from good_bank import ROWS as ROWS_OF_SHARDS

from m3build_formats.shard_schema import embeddings_schema

Arrays = dict[str, np.ndarray]
Rows = list[JSON]


def _largest(rows: Rows) -> JSON:
    return max(rows, key=lambda row: len(row["data"]))


ROWS: Mapping[str, Callable[[Rows], object]] = {
    "dtype object": lambda rows: rows[0].update(dtype="object"),
    "dtype complex64": lambda rows: rows[0].update(dtype="complex64"),
    "dtype of text": lambda rows: rows[0].update(dtype="U1000000"),
    "dtype of a record": lambda rows: rows[0].update(dtype="f4,f4"),
    "dtype big-endian": lambda rows: rows[0].update(dtype=">f4"),
    "dtype of a megabyte": lambda rows: rows[0].update(dtype="f" * (1 << 20)),
    "no dtype": lambda rows: rows[0].update(dtype=""),
    "a dimension below zero": lambda rows: rows[0].update(shape=[-2, -3, 4]),
    "a product that overflows": lambda rows: rows[0].update(shape=[1 << 32, 1 << 32]),
    "2^62 items": lambda rows: rows[0].update(shape=[1 << 62]),
    "nothing of 2^62 times nothing": lambda rows: rows[0].update(shape=[0, 1 << 62], data=b""),
    "nine dimensions": lambda rows: rows[0].update(shape=[2, 3, 4, 1, 1, 1, 1, 1, 1]),
    "a hundred thousand dimensions": lambda rows: rows[0].update(shape=[1] * 100_000),
    "a byte too few": lambda rows: _largest(rows).update(data=_largest(rows)["data"][:-1]),
    "a byte too many": lambda rows: rows[0].update(data=rows[0]["data"] + b"\0"),
    "no shape": lambda rows: rows[0].update(shape=[]),
    "a name twice": lambda rows: rows.insert(1, dict(rows[0])),
    "names out of order": lambda rows: rows.reverse(),
    "an empty name": lambda rows: rows[0].update(name=""),
    "a name of a megabyte, twice": lambda rows: [row.update(name="x" * (1 << 20)) for row in rows],
}


def _array_rows(forge: Forge, kind: str, change: Callable[[Rows], object]) -> None:
    rows = forge.array_rows(kind)
    change(rows)
    forge.put_array_rows(kind, rows)


for _name, _change in ROWS.items():
    for _kind, _step in (("codec", "codec"), ("embedder", "embedder arrays")):
        add(
            f"a {_kind} array with {_name}",
            lambda forge, kind=_kind, change=_change: _array_rows(forge, kind, change),  # type: ignore[misc]
            step=_step,
            words="array|arrays",
        )


@case(step="codec", words="format 1 allows 65536")
def more_arrays_than_the_format_allows(forge: Forge) -> None:
    """Refused by the count alone."""
    entry = forge.manifest["files"]["codec"]
    batches, rows = entry["batches"], 65_537
    table = forge.table(entry)
    table.tail += bytes(rows)
    forge.put_table(entry, table)
    first = entry["batches"]["head"]["bytes"] + 1
    batches = entry["batches"]
    batches.update(ends=list(range(first, first + rows)), digests=["0" * 32] * rows)
    entry["rows"] = rows


def _codec(forge: Forge, change: Callable[[Arrays], object]) -> None:
    arrays = forge.arrays("codec")
    change(arrays)
    forge.put_arrays("codec", dict(sorted(arrays.items())))


def _set(name: str, value: np.ndarray) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: value})


def _spoilt(name: str, value: float) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        arrays[name] = arrays[name].copy()
        arrays[name].flat[-1] = value

    return change


CODEC: Mapping[str, Callable[[Arrays], object]] = {
    "NaN": _spoilt("product", np.nan),
    "infinity": _spoilt("mean", np.inf),
    "a scale of zero": _spoilt("scale", 0),
    "a scale below zero": _spoilt("scale", -1),
    "float64": lambda arrays: arrays.update(mean=arrays["mean"].astype(np.float64)),
    "integers": lambda arrays: arrays.update(mean=arrays["mean"].astype(np.int32)),
    "another shape": lambda arrays: arrays.update(product=arrays["product"].reshape(2, 2, 512, 1)),
    "a flat array": lambda arrays: arrays.update(product=arrays["product"].reshape(-1)),
    "fewer centroids": lambda arrays: arrays.update(product=arrays["product"][:, :, :255]),
    "one array less": lambda arrays: arrays.pop("scale"),
    "one array more": _set("transform", np.eye(4, dtype=np.float32)[None]),
    "no arrays": lambda arrays: arrays.clear(),
}
for _name, _alter in CODEC.items():
    add(
        f"codec arrays with {_name}",
        lambda forge, change=_alter: _codec(forge, change),  # type: ignore[misc]
        step="codec",
        words="codec",
        verified=True,
    )

FACTS: Mapping[str, JSON] = {
    "a spec of no grammar": {"spec": "LSH"},
    "a spec of a megabyte": {"spec": "PQ" * (1 << 19)},
    "a spec of many bits": {"spec": "PQ2x99"},
    "a spec of many parts": {"spec": "PQ9999x16"},
    "a spec with a transform to more": {"spec": "PCA4096,PQ2x8"},
    "a spec in Arabic digits": {"spec": "PQ٢x٨"},
    "another spec": {"spec": "SQ8"},
    "no codebooks": {"spec": "none"},
    "an unknown scope": {"scope": "world"},
    "a scope that is a list": {"scope": ["kind"]},
    "a scope of a megabyte": {"scope": "x" * (1 << 20)},
    "a head that is true": {"heads": [[False, 0], [0, True], [2, True]]},
    "a head of floats": {"heads": [[0.0, 0.0], [0, 1], [2, 1]]},
    "a head dimension that is a float": {"head_dim": 4.0},
    "slots that are a float": {"slots": 3.0},
}
UNLIKE_MEMORY: Mapping[str, JSON] = {
    "no heads": {"heads": []},
    "heads that are a string": {"heads": "0,1"},
    "heads twice": {"heads": [[0, 0], [0, 0], [2, 1]]},
    "heads that descend": {"heads": [[2, 1], [0, 1], [0, 0]]},
    "a head of a megabyte": {"heads": [["x" * (1 << 20)], [0, 1], [2, 1]]},
    "more heads": {"heads": [[0, 0], [0, 1], [2, 1], [3, 0]]},
    "a head dimension of zero": {"head_dim": 0},
    "a head dimension of 2^53 - 1": {"head_dim": 2**53 - 1},
    "a head dimension of a megabyte": {"head_dim": "4" * (1 << 20)},
    "256 slots": {"slots": 256},
    "slots as a string": {"slots": "3"},
}


@each(UNLIKE_MEMORY, step="manifest", words="codec")
def codec_facts_unlike_those_of_memory_with(forge: Forge, facts: JSON) -> None:
    """What a decoder is told twice must be the same twice."""
    forge.manifest["codec"].update(facts)


@each(FACTS, step="codec", words="codec", verified=True)
def codec_facts_with(forge: Forge, facts: JSON) -> None:
    """The manifest's codec object is open: its keys are the codec's to check."""
    forge.manifest["codec"].update(facts)


@each(
    {key: key for key in ("heads", "head_dim", "scope", "slots")}, step="codec", words="lacks", verified=True
)
def codec_facts_without(forge: Forge, key: str) -> None:
    """Nothing is assumed."""
    del forge.manifest["codec"][key]


@case(step="codec", words="bytes", verified=True)
def a_codec_whose_codes_have_another_width(forge: Forge) -> None:
    """The codes in the rows take two bytes, this codec's four."""
    forge.put_arrays("codec", dict(sorted(make_codec("SQ8").to_arrays().items())))
    forge.manifest["codec"]["spec"] = "SQ8"


@case(error="", verified=True)
def a_codec_of_four_thousand_layers(forge: Forge) -> None:
    """As many as the format allows, with 24,576 heads: nothing may go through all heads for each of them."""
    layers, heads = list(range(4096)), list(range(6))
    slots = len(layers) * len(heads)
    manifest = forge.manifest
    manifest["shards"].pop(0)
    manifest["counts"]["chunks"] = manifest["index"]["vectors"] = ROWS_OF_SHARDS[1]
    manifest["model"].update(kv_heads=6, head_dim=1)
    manifest["memory"].update(memory_layers=layers, memory_heads=[heads] * len(layers), sparse_tokens=1)
    manifest["codec"].update(
        spec="none",
        bytes_per_vector=2,
        head_dim=1,
        slots=1,
        heads=[[one, two] for one in layers for two in heads],
    )
    manifest["row_bytes"] = {"codes": 4 * slots, "positions": slots}
    column = pa.array([bytes(5 * slots)] * ROWS_OF_SHARDS[1], pa.binary(5 * slots))
    schema = pa.schema([pa.field("memory", pa.binary(5 * slots), nullable=False)])
    forge.put_rows(forge.shard()["memories"], pa.Table.from_arrays([column], schema=schema))
    forge.put_arrays("codec", {})


def _embedder(forge: Forge, change: Callable[[Arrays], object]) -> None:
    arrays = forge.arrays("embedder")
    change(arrays)
    forge.put_arrays("embedder", dict(sorted(arrays.items())))


def _int64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _text(value: bytes) -> np.ndarray:
    return np.frombuffer(value, np.uint8)


def _neural(name: bytes) -> Callable[[Arrays], object]:
    def change(arrays: Arrays) -> None:
        for key in [key for key in arrays if key.startswith("lexical.")]:
            del arrays[key]
        arrays["sentence-transformers.model"] = _text(name)
        arrays["sentence-transformers.probe"] = np.ones(DIM, np.float32)

    return change


def _cut(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: change(arrays[name])})


def _without(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.pop(name)


EMBEDDER: Mapping[str, Callable[[Arrays], object]] = {
    "no shape": _without("lexical.shape"),
    "no buckets": _without("lexical.buckets"),
    "dimensions not a multiple of 4": _set("lexical.shape", _int64(66, 20)),
    "2^62 dimensions": _set("lexical.shape", _int64(1 << 62, 20)),
    "dimensions below zero": _set("lexical.shape", _int64(-64, 20)),
    "no candidates": _set("lexical.shape", _int64(DIM, 0)),
    "a shape of three": _set("lexical.shape", _int64(DIM, 20, 1)),
    "a shape of floats": _set("lexical.shape", np.array([64.0, 20.0])),
    "BM25 of NaN": _set("lexical.bm25", np.array([np.nan, 0.75])),
    "BM25 of infinity": _set("lexical.bm25", np.array([np.inf, 0.75])),
    "totals below zero": _set("lexical.totals", _int64(-1, -1)),
    "no texts": _set("lexical.totals", _int64(0, 0)),
    "2^62 n-grams": _set("lexical.totals", _int64(47, 1 << 62)),
    "a bucket of 2^32 - 1": _cut("lexical.buckets", lambda array: np.append(array[:-1], ~np.uint32(0))),
    "a bucket twice": _cut("lexical.buckets", lambda array: np.append(array[:-1], array[-2])),
    "buckets that descend": _cut("lexical.buckets", lambda array: array[::-1]),
    "frequencies of zero": _cut("lexical.frequencies", np.zeros_like),
    "frequencies above the texts": _cut("lexical.frequencies", lambda array: np.full_like(array, 2**32 - 1)),
    "a frequency less": _cut("lexical.frequencies", lambda array: array[1:]),
    "buckets in two dimensions": _cut("lexical.buckets", lambda array: array[None]),
    "other dimensions": _set("lexical.shape", _int64(128, 20)),
    "an unknown embedder": lambda arrays: [arrays.pop(name) for name in list(arrays) if "lexical" in name],
    "no arrays": lambda arrays: arrays.clear(),
    "a model of an absolute path": _neural(b"/etc"),
    "a model up and out": _neural(b"../outside"),
    "a model of dots": _neural(b"..."),
    "a model of three parts": _neural(b"a/b/c"),
    "a model without a name": _neural(b""),
    "a model that is not UTF-8": _neural(b"\xff\xfe"),
    "a model of NUL": _neural(b"a\0b"),
    "a model of escapes": _neural(b"\x1b[2J/\x07"),
    "a model of a URL": _neural(b"https://example.org"),
    "a model of backslashes": _neural(b"..\\..\\x"),
    "a model of spaces": _neural(b" / "),
    "a model of a long name": _neural(b"x" * 255),
    "a model of a longer name": _neural(b"x" * 256),
    "a model that is somewhere": _neural(b"sentence-transformers/all-MiniLM-L6-v2"),
    "a model of a megabyte": _neural(b"x" * (1 << 20)),
    "no index": _without("index.spec"),
    "an index of another kind": _set("index.spec", _text(b"LSH")),
    "an index of the automatic kind": _set("index.spec", _text(b"auto")),
    "an index of 2^60 lists": _set("index.spec", _text(b"IVF999999,Flat")),
    "an index that is not ASCII": _set("index.spec", _text("IVF٤,Flat".encode())),
    "an index of a megabyte": _set("index.spec", _text(b"Flat" * (1 << 18))),
    "an index shape of one": _set("index.shape", _int64(DIM)),
    "2^62 index dimensions": _set("index.shape", _int64(1 << 62, 0)),
    "index dimensions below zero": _set("index.shape", _int64(-1, 0)),
    "probes without lists": _set("index.shape", _int64(DIM, 1)),
    "centroids without lists": _set("index.centroids", np.zeros((4, DIM), np.float32)),
    "tables without a quantizer": _set("index.tables", np.zeros(2 * DIM, np.float32)),
    "centroids of float64": _set("index.centroids", np.zeros((0, DIM))),
}  # fmt: skip
# Names that may be a model's, which takes the extra for such models; the reading process does without it.
MODELS = ("a model of backslashes", "a model of a long name", "a model that is somewhere")
for _name, _alter in EMBEDDER.items():
    add(
        f"embedder arrays with {_name}",
        lambda forge, change=_alter: _embedder(forge, change),  # type: ignore[misc]
        error="UsageError" if _name in MODELS else "CorruptError",
        step="search",
        words="embedder|index",
        verified=True,
    )

IVF: Mapping[str, Callable[[Arrays], object]] = {
    "centroids of NaN": _set("index.centroids", np.full((4, DIM), np.nan, np.float32)),
    "a centroid less": _set("index.centroids", np.zeros((3, DIM), np.float32)),
    "centroids of other dimensions": _set("index.centroids", np.zeros((4, DIM - 1), np.float32)),
    "no probes": _set("index.shape", _int64(DIM, 0)),
    "more probes than lists": _set("index.shape", _int64(DIM, 5)),
    "2^62 probes": _set("index.shape", _int64(DIM, 1 << 62)),
    "tables of NaN": _set("index.tables", np.full(2 * DIM, np.nan, np.float32)),
    "a table less": _set("index.tables", np.ones(2 * DIM - 1, np.float32)),
    "other tables than the parts": _set("index.tables", np.ones(2 * DIM, np.float32)),
    "other centroids than the parts": _set("index.shape", _int64(DIM * 2, 2)),
}
for _name, _alter in IVF.items():
    add(
        f"index arrays with {_name}",
        lambda forge, change=_alter: _embedder(forge, change),  # type: ignore[misc]
        step="search",
        words="index",
        verified=True,
        spec="IVF4,SQ8",
    )

HARMLESS: Mapping[str, Callable[[Arrays], object]] = {
    "2^62 candidates": _set("lexical.shape", _int64(DIM, 1 << 62)),
    "2^63 - 1 texts": _set("lexical.totals", _int64(2**63 - 1, 1)),
    "2^53 n-grams": _set("lexical.totals", _int64(47, 2**53)),
    "arrays of no meaning": _set("x" * 1000, np.zeros((0, 7), np.float16)),
}
for _name, _alter in HARMLESS.items():
    add(
        f"embedder arrays with {_name}",
        lambda forge, change=_alter: _embedder(forge, change),  # type: ignore[misc]
        error="",
        verified=True,
    )


@each({"fewer": 32, "more": 128}, step="search", words="dimensions", verified=True)
def embeddings_of_other_dimensions_than_the_embedder(forge: Forge, dim: int) -> None:
    """Manifest and tables agree with each other, and neither with the embedder and index."""
    forge.manifest["embedder"]["dim"] = dim
    for shard in forge.manifest["shards"]:
        rows = [{"embedding": [np.float16(1)] * dim}] * shard["rows"]
        forge.put_rows(shard["embeddings"], pa.Table.from_pylist(rows, embeddings_schema(dim)))
