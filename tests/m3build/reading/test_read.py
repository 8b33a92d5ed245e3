"""``bank.read``: the stored memories, whatever is cached, repeated, mixed or read at the same time."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_bank import reference, write_memory_bank

from m3build import Memories, open_bank
from m3build.bank import Bank
from m3build.codec.codec import Codec
from m3build.memory_blocks import MemoryShape
from m3build_formats.errors import CorruptError, MismatchError, ResourceError, UsageError

ROWS = (9, 5, 7)
SHAPES: dict[str, dict[str, Any]] = {
    # Every head of both layers, and the paper's kind of codec.
    "full": {"memory_heads": {0: [0, 1], 1: [0, 1]}, "kv_heads": 2, "spec": "OPQ2_8,Residual2x4,PQ2x5"},
    # Some heads, not as many in each layer, and layers that do not begin at 0.
    "partial": {"memory_heads": {1: [0, 2], 4: [1]}, "kv_heads": 3, "spec": "SQ6", "scope": "head"},
    "raw": {"memory_heads": {2: [1]}, "kv_heads": 2, "spec": "none"},
}
GOLDEN = sorted(path.parent for path in (Path(__file__).parents[2] / "golden").glob("*/expected.json"))


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("banks")
    return {
        name: write_memory_bank(place / name, ROWS, head_dim=8, slots=3, **shape)
        for name, shape in SHAPES.items()
    }


@pytest.fixture(scope="module", params=SHAPES)
def bank(request: pytest.FixtureRequest, banks: dict[str, Path]) -> Iterator[Bank]:
    with open_bank(banks[request.param]) as opened:
        yield opened


def every_id(bank: Bank) -> list[str]:
    """Ids of all rows in file order; the one that stands in all shards comes once for each."""
    return [bytes(one).hex() for shard in bank.files.shards for ids in shard.chunk_ids() for one in ids]


def slowly(bank: Bank, identity: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys, values and positions of one memory, vector by vector with ``Codec.decode``."""
    manifest = bank.manifest
    codec = Codec.from_arrays(bank.files.codec_arrays(), manifest.codec)
    place = bank.files.locate([bytes.fromhex(identity)])[bytes.fromhex(identity)]
    row = bank.files.shards[place.shard].memories([place.row])[0]
    stored = row[manifest.row_codes_bytes :].reshape(-1, codec.slots)
    codes = row[: manifest.row_codes_bytes].reshape(-1, codec.bytes_per_vector)
    layers = manifest.memory["memory_layers"]
    shape = (len(layers), manifest.model["kv_heads"], codec.slots)
    sides = np.zeros((2, *shape, codec.head_dim), np.float32)
    positions = np.full(shape, 255, np.uint8)
    for number, (layer, head) in enumerate(codec.heads):
        for slot in range(codec.slots):
            if stored[number, slot] == 255:
                continue
            positions[layers.index(layer), head, slot] = stored[number, slot]
            for side, kind in enumerate(("key", "value")):
                code = codes[codec.places[side, number, slot]]
                sides[side, layers.index(layer), head, slot] = codec.decode(code, kind, number)
    return sides[0], sides[1], positions


def assert_equal(one: Memories[Any], other: Memories[Any]) -> None:
    assert one.ids == other.ids
    for name in ("keys", "values", "positions", "mask"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_every_memory_is_what_its_codes_decode_to_one_by_one(bank: Bank) -> None:
    ids = every_id(bank)
    found = bank.read(ids)
    assert found.ids == tuple(ids)
    assert found.memory_layers == tuple(bank.manifest.memory["memory_layers"])
    kinds = [array.dtype for array in (found.keys, found.values, found.positions, found.mask)]
    assert kinds == [np.float32, np.float32, np.uint8, np.bool_]
    for number, identity in enumerate(ids):
        keys, values, positions = slowly(bank, identity)
        np.testing.assert_allclose(found.keys[number], keys, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.values[number], values, rtol=1e-5, atol=1e-6)
        assert np.array_equal(found.positions[number], positions)
    assert np.array_equal(found.mask, found.positions != 255)
    assert found.mask.any()
    assert not found.mask.all()
    assert not found.keys[~found.mask].any()
    assert not found.values[~found.mask].any()


@pytest.mark.parametrize("dtype", [None, torch.float64, torch.bfloat16])
def test_tensors_hold_the_numbers_of_the_arrays(bank: Bank, dtype: torch.dtype | None) -> None:
    ids = every_id(bank)
    arrays = bank.read(ids)
    for device in ("cpu", torch.device("cpu")):
        tensors = bank.read(ids, device=device, dtype=dtype)
        assert tensors.keys.dtype == tensors.values.dtype == (dtype or torch.float32)
        assert np.array_equal(tensors.positions.numpy(), arrays.positions)
        assert np.array_equal(tensors.mask.numpy(), arrays.mask)
        bound = 8e-3 if dtype == torch.bfloat16 else 1e-5
        for ours, theirs in ((tensors.keys, arrays.keys), (tensors.values, arrays.values)):
            np.testing.assert_allclose(ours.double().numpy(), theirs, rtol=bound, atol=1e-5)


@pytest.mark.parametrize("place", GOLDEN, ids=lambda place: place.name)
def test_the_memory_of_a_golden_bank_is_read_as_it_was(place: Path) -> None:
    expected = json.loads((place / "expected.json").read_text(encoding="utf-8"))
    with open_bank(place / "bank") as bank:
        identity = bank.files.shards[expected["shard"]].chunk_id(expected["row"]).hex()
        heads = bank.manifest.memory["memory_heads"]
        for found in (bank.read(identity), bank.read([identity], device="cpu")):
            assert len(found) == 1
            cells = np.array([(rank, head) for rank, some in enumerate(heads) for head in some]).T
            for name in ("keys", "values", "positions"):
                compact = np.asarray(getattr(found, name))[0][tuple(cells)]
                np.testing.assert_allclose(compact, expected[name], rtol=1e-5, atol=1e-5)
            assert int(found.mask.sum()) == sum(p != 255 for head in expected["positions"] for p in head)


def test_ids_prefixes_and_hits_name_the_same_memory(bank: Bank) -> None:
    hits = bank.search([reference(3), reference(12)], k=2)
    wanted = hits[0][0]
    assert wanted.text == reference(3)
    for names in (wanted.id, wanted.id[:12], wanted.id.upper(), wanted, [wanted], (wanted.id,)):
        assert_equal(bank.read(names), bank.read([wanted.id]))
    assert_equal(bank.read(hits[0]), bank.read(hits.ids[0]))
    mixed = bank.read([hits[1][0], wanted.id, hits[1][0].id[:16], wanted])
    assert mixed.ids == (hits[1][0].id, wanted.id, hits[1][0].id, wanted.id)
    assert_equal(mixed, bank.read([hits[1][0].id, wanted.id])[[0, 1, 0, 1]])


def test_hits_are_read_without_the_index_of_all_ids(banks: dict[str, Path]) -> None:
    with open_bank(banks["full"]) as bank:
        bank.read(bank.search(reference(4), k=3)[0])
        assert bank.files._ids is None


def test_no_ids_give_no_memories(bank: Bank) -> None:
    for found in (bank.read([]), bank.read((), device="cpu", dtype=torch.float16)):
        assert len(found) == 0
        assert found.keys.shape == (0, *bank.read(every_id(bank)[0]).keys.shape[1:])


def test_what_is_given_out_belongs_to_the_caller(bank: Bank) -> None:
    ids = every_id(bank)[:3]
    before = bank.read(ids)
    for _ in range(2):
        for options in ({}, {"device": "cpu"}):
            found: Any = bank.read(ids, **options)
            for array in (found.keys, found.values, found.positions, found.mask):
                array[:] = 1
    assert_equal(bank.read(ids), before)
    np.testing.assert_allclose(bank.read(ids, device="cpu").keys.numpy(), before.keys, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("room", [0, 1, 2.5, 30])
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_a_cache_of_any_size_changes_no_answer(banks: dict[str, Path], room: float, data: Any) -> None:
    with open_bank(banks["partial"], cache_bytes=0) as plain:
        ids = every_id(plain)
        every = plain.read(ids)
        one = (every.keys.nbytes + every.values.nbytes + every.positions.nbytes) // len(ids)
    calls = data.draw(st.lists(st.lists(st.integers(0, len(ids) - 1), max_size=6), min_size=1, max_size=8))
    with open_bank(banks["partial"], cache_bytes=int(room * one)) as bank:
        asked = 0
        for numbers in calls:
            assert_equal(bank.read([ids[number] for number in numbers]), every[numbers])
            asked += len({ids[number] for number in numbers})
            info = bank.cache_info()
            assert info.bytes_held == info.entries * one <= info.capacity
            assert info.hits + info.misses == asked
            assert info.bytes_read == info.misses * bank.manifest.row_bytes
        distinct = len({ids[number] for numbers in calls for number in numbers})
        if room == 0:
            assert info.hits == info.entries == 0
        if room == 30:
            assert info.misses == info.entries == distinct


def test_the_least_recently_used_memory_leaves_first(banks: dict[str, Path]) -> None:
    with open_bank(banks["full"]) as bank:
        a, b, c = every_id(bank)[1:4]
        bank.read(a)
        one = bank.cache_info().bytes_held
    with open_bank(banks["full"], cache_bytes=2 * one) as bank:
        for identity, hits, misses in ((a, 0, 1), (b, 0, 2), (a, 1, 2), (c, 1, 3), (a, 2, 3), (b, 2, 4)):
            bank.read(identity)
            info = bank.cache_info()
            assert (info.hits, info.misses, info.entries, info.bytes_held) == (
                hits,
                misses,
                min(misses, 2),
                min(misses, 2) * one,
            )


def test_each_device_and_number_type_is_cached_by_itself(banks: dict[str, Path]) -> None:
    with open_bank(banks["full"]) as bank:
        identity = every_id(bank)[2]
        for _ in range(2):
            bank.read(identity)
            bank.read(identity, device="cpu")
            bank.read(identity, device=torch.device("cpu"), dtype=torch.float32)
            bank.read(identity, device="cpu", dtype=torch.bfloat16)
        assert (bank.cache_info().misses, bank.cache_info().hits) == (3, 5)


def test_large_reads_are_decoded_block_by_block(
    banks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bank(banks["full"]) as bank:
        ids = every_id(bank)[::-1]
        whole = bank.read(ids)
        one = bank.cache_info().bytes_held // bank.cache_info().entries
    monkeypatch.setattr("m3build.memory_reader._BLOCK_BYTES", 4 * one)
    blocks: list[int] = []
    decode = Codec.decode_rows

    def counted(codec: Codec, codes: Any, positions: Any = None) -> Any:
        blocks.append(len(codes))
        return decode(codec, codes, positions)

    monkeypatch.setattr(Codec, "decode_rows", counted)
    with open_bank(banks["full"], cache_bytes=3 * one) as bank:
        assert_equal(bank.read(ids), whole)
        # 21 rows, of which the one text in all three shards is read once.
        assert blocks == [4, 4, 4, 4, 3]
        assert bank.cache_info().entries == 3


def test_eight_threads_read_what_one_reads(banks: dict[str, Path]) -> None:
    with open_bank(banks["full"], cache_bytes=0) as plain:
        ids = every_id(plain)
        every = plain.read(ids)
        one = every.keys.nbytes * 2 // len(ids)

    def work(seed: int) -> None:
        random = np.random.default_rng(seed)
        for _ in range(40):
            numbers = random.integers(0, len(ids), random.integers(1, 6)).tolist()
            names = [ids[number] for number in numbers]
            assert_equal(bank.read(names), every[numbers])
            if seed % 2:
                tensors = bank.read(names, device="cpu")
                np.testing.assert_allclose(tensors.keys.numpy(), every[numbers].keys, rtol=1e-5, atol=1e-5)

    with open_bank(banks["full"], cache_bytes=6 * one) as bank, ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(8)]:
            done.result()
        info = bank.cache_info()
        assert info.hits
        assert info.bytes_held <= info.capacity
        assert info.bytes_read == info.misses * bank.manifest.row_bytes


def test_reading_arrays_imports_no_torch(banks: dict[str, Path]) -> None:
    program = (
        "import sys, m3build\n"
        "with m3build.open_bank(sys.argv[1]) as bank:\n"
        "    found = bank.read(bank.search('lucky word', k=2)[0])\n"
        "print(len(found), 'torch' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(banks["full"])],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.parametrize("wanted", ["ffffffffffff", "", "no hex", ["0" * 64]])
def test_an_id_that_no_chunk_has_is_a_usage_error(bank: Bank, wanted: Any) -> None:
    with pytest.raises(UsageError):
        bank.read(wanted)


def test_an_ambiguous_id_is_a_usage_error(bank: Bank) -> None:
    firsts = [identity[0] for identity in set(every_id(bank))]
    twice = next(first for first in firsts if firsts.count(first) > 1)
    with pytest.raises(UsageError, match="ambiguous"):
        bank.read([every_id(bank)[0], twice])


def test_a_hit_of_another_bank_or_version_is_a_usage_error(bank: Bank) -> None:
    hit = bank.search(reference(1), k=1)[0][0]
    for other in (
        replace(hit, row=hit.row + 1),
        replace(hit, row=10**6),
        replace(hit, shard=len(ROWS)),
        replace(hit, shard=-1),
        replace(hit, row=-1),
        replace(hit, id="0" * 64),
    ):
        with pytest.raises(UsageError, match="another bank or version"):
            bank.read([hit, other])


def test_calls_that_cannot_be_meant_are_usage_errors(bank: Bank, banks: dict[str, Path]) -> None:
    identity = every_id(bank)[0]
    read: Any = bank.read
    with pytest.raises(UsageError, match="bytes"):
        read([bytes.fromhex(identity)])
    with pytest.raises(UsageError, match="list"):
        read([[identity]])
    with pytest.raises(UsageError, match="device"):
        read(identity, dtype=torch.float16)
    for dtype in (torch.int8, "float16", np.float32):
        with pytest.raises(UsageError, match="floating-point"):
            read(identity, device="cpu", dtype=dtype)
    with pytest.raises(UsageError, match="abacus"):
        read(identity, device="abacus")
    with pytest.raises(UsageError, match="cache"):
        open_bank(banks["raw"], cache_bytes=-1)


def test_a_bank_without_memories_is_a_mismatch(tmp_path: Path) -> None:
    path = write_memory_bank(tmp_path / "bank", ROWS, head_dim=8, slots=3, memories=False, **SHAPES["full"])
    with open_bank(path) as bank:
        for options in ({}, {"device": "cpu"}):
            with pytest.raises(MismatchError, match=r"holds no memories.*--text-only"):
                bank.read(bank.search(reference(1), k=1)[0], **options)


def test_a_flipped_bit_among_the_codes_is_found_before_anything_is_decoded(
    banks: dict[str, Path], tmp_path: Path
) -> None:
    place = tmp_path / "bank"
    shutil.copytree(banks["full"], place)
    with open_bank(place) as bank:
        name = bank.manifest.shards[1].memories
        assert name is not None
        first = [bytes(next(shard.chunk_ids())[1]).hex() for shard in bank.files.shards]
    file = place / "data" / name.name
    file.chmod(0o644)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    with open_bank(place) as bank:
        assert len(bank.read([first[0], first[2]])) == 2
        with pytest.raises(CorruptError, match=name.name):
            bank.read(first)


def test_a_memory_too_large_to_decode_is_refused_before_it_is_allocated(
    banks: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bank(banks["raw"]) as bank:
        codec = Codec.from_arrays(bank.files.codec_arrays(), bank.manifest.codec)
        vast = replace(bank.manifest, model={**bank.manifest.model, "kv_heads": 1 << 26})
        with pytest.raises(ResourceError, match="GiB"):
            MemoryShape.of(vast, codec)
        other = replace(bank.manifest, row_codes_bytes=codec.row_bytes + 1)
        with pytest.raises(CorruptError, match="bytes"):
            MemoryShape.of(other, codec)
