"""SPEC.md is a contract: what it quotes is what the code has."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np

from m3build_formats import layout
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.manifest import DIGEST_TAIL_BYTES
from m3build_formats.shard_schema import CHUNKS_SCHEMA, DOCUMENTS_SCHEMA

SPEC = (Path(__file__).parents[2] / "formats" / "SPEC.md").read_text()


def test_every_limit_stands_in_the_table_with_its_value() -> None:
    table = {
        name: int(value) for name, value in re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|$", SPEC, re.MULTILINE)
    }
    limits = {
        name: value
        for name, value in vars(layout).items()
        if name.isupper() and type(value) is int and name not in ("FORMAT_VERSION", "ZSTD_LEVEL")
    }
    assert table == limits


def test_every_limit_that_the_text_names_exists() -> None:
    assert {name for name in re.findall(r"`([A-Z]+_[A-Z_]+)`", SPEC) if name != "F_FULLFSYNC"} <= set(
        vars(layout)
    )


def test_suffixes_index_types_and_dtypes_are_those_of_the_code() -> None:
    for kind, suffix in layout.SUFFIXES.items():
        assert f"| {kind} | `{suffix}` |" in SPEC
    assert set(re.findall(r"`(I[xwH][A-Za-z0-9]{2})`", SPEC)) == {
        code.decode() for code in layout.FAISS_FOURCC
    }
    assert f"`{' '.join(layout.ARRAY_DTYPES)}`" in SPEC


def test_the_columns_are_those_of_the_code() -> None:
    for schema in (DOCUMENTS_SCHEMA, CHUNKS_SCHEMA):
        for name in schema.names:
            assert re.search(rf"^\| `{name}` \| ", SPEC, re.MULTILINE)
        assert not any(field.nullable for field in schema)
    assert f"takes off the last {DIGEST_TAIL_BYTES} bytes" in SPEC


def test_a_memory_can_be_found_by_the_offsets_in_the_specification_alone(shared_bank: Path) -> None:
    """Reads a row with nothing but the manifest's numbers and the rules of sections 4 and 7."""
    manifest = read_manifest(shared_bank)
    entry = manifest.shards[0].memories
    assert entry is not None
    assert entry.batches is not None
    data = (shared_bank / "data" / entry.name).read_bytes()
    start = entry.batches.head_bytes
    length = struct.unpack_from("<i", data, start + 4)[0]
    body = data[start + 8 + length : entry.batches.ends[0]]
    row = 17
    memory = body[row * manifest.row_bytes : (row + 1) * manifest.row_bytes]
    with open_bank(shared_bank) as opened:
        assert memory == opened.shards[0].memories([row]).tobytes()
    heads = [len(of_layer) for of_layer in manifest.memory["memory_heads"]]
    slots, vector = manifest.memory["sparse_tokens"], manifest.codec["bytes_per_vector"]
    ordered = np.frombuffer(memory, np.uint8)
    expected = 0
    for layer, count in enumerate(heads):
        for part in range(2):
            for head in range(count):
                for slot in range(slots):
                    place = (
                        2 * slots * vector * sum(heads[:layer])
                        + ((part * count + head) * slots + slot) * vector
                    )
                    assert place == expected
                    expected += vector
    assert expected == manifest.row_codes_bytes
    positions = ordered[expected:].reshape(sum(heads), slots)
    assert (positions[0, -1], positions[0, 0] < 255) == (255, True)
