"""Banks of released formats still open, verify, search and decode to the numbers that were read when they
were made.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m3build.bank import open_bank
from m3build.codec.codec import Codec
from m3build_formats.verify import verify

GOLDEN = sorted(path.parent for path in Path(__file__).parent.glob("*/expected.json"))


def test_there_is_a_golden_bank() -> None:
    assert GOLDEN


@pytest.mark.parametrize("place", GOLDEN, ids=lambda place: place.name)
def test_a_golden_bank_is_sound_and_read_as_it_was(place: Path) -> None:
    expected = json.loads((place / "expected.json").read_text(encoding="utf-8"))
    report = verify(place / "bank")
    assert not report.problems
    assert not report.unreachable
    with open_bank(place / "bank", expect=f"sha256:{expected['sha256']}") as bank:
        assert len(bank) == expected["chunks"]
        shard = bank.files.shards[expected["shard"]]
        assert shard.chunk(expected["row"]).text == expected["text"]
        codec = Codec.from_arrays(bank.files.codec_arrays(), bank.manifest.codec)
        row = shard.memories([expected["row"]])
        codes = bank.manifest.row_codes_bytes
        positions = row[:, codes:].reshape(1, len(codec.heads), codec.slots)
        assert positions[0].tolist() == expected["positions"]
        keys, values = codec.decode_rows(row[:, :codes], positions)
        np.testing.assert_allclose(keys[0], expected["keys"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(values[0], expected["values"], rtol=1e-5, atol=1e-6)
        hits = bank.search(expected["query"], k=3)
        assert hits.ids[0] == expected["hits"]
        np.testing.assert_allclose(hits.scores[0], expected["scores"], rtol=1e-4)
