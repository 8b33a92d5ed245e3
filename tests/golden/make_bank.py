"""Makes the golden bank of format 1: a small bank that every later m3build must still open and read alike.

    python tests/golden/make_bank.py tests/golden/format-1

Run once for a released format, never again: the point of a golden bank is that it was written by the m3build
of its time. The model has random weights; what the bank's memories mean does not matter here, that they
decode to the same numbers does.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import m3build
from m3build.codec.codec import Codec

CORPUS = Path(__file__).resolve().parents[2] / "examples" / "corpus"
QUERY = "a flipped bit is found before anything parses the block"


def main() -> None:
    """Write the bank and, beside it, what must be read from it."""
    from models import save_tiny_model

    place = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as directory, contextlib.chdir(directory):
        # Named by a relative path, since a bank records the model as it was named.
        model = save_tiny_model(Path("golden-model"))
        # Three spec parts at once: a transform, a first level and a product quantizer of odd bit width.
        m3build.compile(
            CORPUS,
            place / "bank",
            model=str(model),
            codec="OPQ4_16,Residual2x4,PQ4x5",
            memory_heads="0:0,1;2:1",
            sparse_tokens="3",
            dtype="float32",
            title=True,
            shard_chunks=16,
            keep_fields=("id",),
        )
    with m3build.open_bank(place / "bank") as bank:
        manifest, shard = bank.manifest, bank.files.shards[1]
        codec = Codec.from_arrays(bank.files.codec_arrays(), manifest.codec)
        row = shard.memories([2])
        positions = row[:, manifest.row_codes_bytes :].reshape(1, len(codec.heads), codec.slots)
        keys, values = codec.decode_rows(row[:, : manifest.row_codes_bytes], positions)
        hits = bank.search(QUERY, k=3)
        expected = {
            "sha256": manifest.sha256,
            "chunks": manifest.counts["chunks"],
            "shard": 1,
            "row": 2,
            "text": shard.chunk(2).text,
            "positions": positions[0].tolist(),
            "keys": keys[0].tolist(),
            "values": values[0].tolist(),
            "query": QUERY,
            "hits": hits.ids[0],
            "scores": hits.scores[0],
        }
    (place / "bank" / "writer.lock").unlink()
    (place / "expected.json").write_text(
        json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
