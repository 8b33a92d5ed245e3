"""The JavaScript reader, written from SPEC.md alone, and the Python reader read the same numbers."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from any_codec_bank import build
from node_reader import ROOT, facts, needs_node, node, refused

from m3build.codec.codec import Codec
from m3build.codec.rows import Scope
from m3build_formats import shard_tables
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.cold_rows import empty_rows
from m3build_formats.commit import BankWriter
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.open_bank import BankFiles
from m3build_formats.verify import verify

GOLDEN = sorted(path.parent for path in (ROOT / "tests" / "golden").glob("*/expected.json"))

pytestmark = needs_node


def floats(text: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(text), ">f4").astype(np.float32)


def assert_same(got: str, expected: np.ndarray, exact: bool) -> None:
    if exact:
        assert floats(got).tobytes() == expected.astype(np.float32).tobytes()
    else:
        # The sum of a transform is as exact as its largest terms, so the whole vector sets the scale.
        np.testing.assert_allclose(floats(got), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def compare(path: Path) -> int:
    """Compares everything that the JavaScript reader tells of a bank; returns how many vectors there were."""
    vectors = 0
    with open_bank(path) as bank:
        listed, manifest = facts(path), bank.manifest
        assert (listed["version"], listed["sha256"]) == (manifest.version, manifest.sha256)
        assert listed["counts"] == dict(manifest.counts)
        files = [file for shard in listed["shards"] for file in shard["files"]] + listed["files"]
        assert {file["name"]: file["bytes"] for file in files} == {
            name: entry.bytes for name, (_, entry) in manifest.all_files().items()
        }
        chunks = [(shard, chunk) for shard in bank.shards for chunk in shard.chunks()]
        assert listed["chunks"] == [
            {
                "id": chunk.id.hex(),
                "source": shard.document(chunk.occurrences[0].row).source,
                "text": chunk.text[:60],
            }
            for shard, chunk in chunks
        ]
        codec = Codec.from_arrays(bank.codec_arrays(), manifest.codec)
        ids = sorted({chunk.id.hex() for _, chunk in chunks})
        shown = node(path, "show", *ids, "--json").stdout.splitlines()
        for identity, line in zip(ids, shown, strict=True):
            vectors += compare_chunk(bank, codec, json.loads(line), identity)
    return vectors


def test_a_cold_row_is_told_from_a_memory_of_no_tokens(bank: Path) -> None:
    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        first, second = base.shards
        with open_bank(bank) as opened:
            rows = opened.shards[0].memories(range(first.rows))
            ids = [key.tobytes().hex() for block in opened.shards[0].chunk_ids() for key in block]
            cold, warm = {ids[0]}, set(ids[1:])
            cold |= {key.tobytes().hex() for block in opened.shards[1].chunk_ids() for key in block} - warm
        rows[0] = empty_rows(1, base.row_bytes, base.row_codes_bytes)
        first = replace(first, memories=shard_tables.write_memories(writer, [rows], base.row_bytes))
        shards, count = (first, replace(second, memories=None)), second.rows + 1
        writer.commit(replace(base.contents, shards=shards, counts={**base.counts, "cold": count}), base)
    assert not verify(bank).problems
    for some, is_cold in ((cold, True), (warm, False)):
        shown = node(bank, "show", *sorted(some), "--json").stdout.splitlines()
        assert [json.loads(line)["memory"] is None for line in shown] == [is_cold] * len(some)
        assert ("this chunk has no memory yet" in node(bank, "show", min(some)).stdout) == is_cold
    assert facts(bank)["counts"]["cold"] == count


def compare_chunk(bank: BankFiles, codec: Codec, shown: Any, identity: str) -> int:
    places = bank.find(identity)
    shard, row = bank.shards[places[0].shard], places[0].row
    chunk = shard.chunk(row)
    assert (shown["id"], shown["text"], shown["title"]) == (identity, chunk.text, chunk.title)
    assert (shown["tokens"], shown["token_ends"]) == (chunk.tokens, list(chunk.token_ends))
    assert shown["places"] == [
        {
            "shard": place.shard,
            "row": place.row,
            "occurrences": [
                {
                    "document": at.document,
                    "row": at.row,
                    "start": at.start,
                    "end": at.end,
                    "source": bank.shards[place.shard].document(at.row).source,
                }
                for at in bank.shards[place.shard].chunk(place.row).occurrences
            ],
        }
        for place in places
    ]
    assert_same(shown["embedding"], np.concatenate(list(shard.embeddings()))[row], exact=True)
    memory = shard.memories([row])
    codes = memory[:, : codec.row_bytes]
    positions = memory[:, codec.row_bytes :].reshape(1, len(codec.heads), codec.slots)
    decoded = codec.decode_rows(codes, positions)
    assert [(head["layer"], head["head"]) for head in shown["memory"]] == list(codec.heads)
    for number, head in enumerate(shown["memory"]):
        assert head["positions"] == [at for at in positions[0, number].tolist() if at != UNUSED_SLOT]
        for side, vectors in zip(("keys", "values"), decoded, strict=True):
            assert len(head[side]) == len(head["positions"])
            for slot, text in enumerate(head[side]):
                assert_same(text, vectors[0, number, slot], exact=not codec.spec.transform)
    return 2 * sum(len(head["positions"]) for head in shown["memory"])


@pytest.mark.parametrize("place", GOLDEN, ids=lambda place: place.name)
def test_a_golden_bank_is_read_alike(place: Path) -> None:
    assert compare(place / "bank") > 0


# Every part of the grammar, with numbers of bits that do and do not fill bytes, and every scope.
CODECS: list[tuple[str, Scope]] = [
    ("none", "all"),
    ("PQ3x5", "head"),
    ("PQ2x16", "all"),
    ("SQ4", "layer"),
    ("SQ6", "all"),
    ("SQ8", "kind"),
    ("SQfp16", "head"),
    ("Residual2x3,SQ8", "layer"),
    ("Residual2x5,SQfp16", "all"),
    ("Residual2x9,PQ4x3", "kind"),
    ("PCA7,SQ6", "head"),
    ("RR12,PQ4x11", "kind"),
    ("OPQ3_6,Residual2x4,PQ2x7", "layer"),
]


@pytest.mark.parametrize(("spec", "scope"), CODECS, ids=[f"{spec}-{scope}" for spec, scope in CODECS])
def test_a_bank_of_any_codec_is_read_alike(tmp_path: Path, spec: str, scope: Scope) -> None:
    build(tmp_path / "bank", spec, scope)
    assert not verify(tmp_path / "bank").problems
    assert compare(tmp_path / "bank") > 0


def test_rows_a_batch_are_taken_from_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_tables, "CHUNK_ROWS_PER_BATCH", 2)
    monkeypatch.setattr(shard_tables, "fixed_width_rows_per_batch", lambda width: 3)
    build(tmp_path / "bank", "SQ8")
    entry = read_manifest(tmp_path / "bank").shards[0]
    assert entry.chunks.batches is not None
    assert len(entry.chunks.batches.ends) == 3
    assert compare(tmp_path / "bank") > 0


def test_an_older_version_can_be_read_and_other_names_in_versions_are_ignored(bank: Path) -> None:
    from m3build_formats.commit import BankWriter

    with BankWriter(bank) as writer:
        base = writer.current()
        assert base is not None
        writer.commit(base.contents, base)
    (bank / "versions" / "00000009.json.tmp").write_bytes(b"")
    (bank / "versions" / "9.json").write_bytes(b"")
    assert [facts(bank)["version"], facts(bank, "--version", "1")["version"]] == [2, 1]


def test_wrong_use_is_told_in_one_line(bank: Path, tmp_path: Path) -> None:
    assert "usage" in refused(2)
    refused(2, bank, "--nonsense")
    refused(2, bank, "show")
    refused(2, bank, "--version", "7")
    refused(2, tmp_path)
    assert "no chunk" in refused(2, bank, "show", "0" * 64)
    assert "hex" in refused(2, bank, "show", "xyz")


def test_people_see_texts_kept_tokens_and_no_control_characters(bank: Path) -> None:
    listed = node(bank).stdout
    assert "shard 1: 3 chunks, 1 documents" in listed
    assert "dir/文-0.txt  plain words of a reference" in listed
    identity = hashlib.sha256("Ä ◌́\ntab\tand line\r\nfeed".encode()).hexdigest()
    shown = node(bank, "show", identity[:12].upper()).stdout
    assert "tab\\u0009and line\\u000d\nfeed" in shown
    assert "layer 3, head 1" in shown
