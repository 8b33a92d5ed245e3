"""How many memories a second ``bank.read`` gives, in NumPy and in torch, cold and warm.

    python tests/benchmarks/read_memories.py [--rows 2000] [--reads 20] [--device cpu]

Two banks of random memories: the shape of Memory³-2B (22 layers, 8 heads, 8 tokens, 80 dimensions, codec
`memory3`) and a small one (4 layers, 2 heads, 16 tokens, 32 dimensions,
`OPQ6_30,PQ6x8`). A read asks for 40 hits, as
eight sequences of five references do. *First*: rows whose record batches have not been read since the bank
was opened, so that their digests are checked too. *Cold*: checked before, not in the cache. *Warm*: in the
cache. The files themselves are in the system's page cache.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m3build import open_bank
from m3build.codec.presets import resolve_codec
from m3build.search import Hit

REFERENCES = 40


def main() -> None:
    from memory_bank import write_memory_bank

    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--rows", type=int, default=2000)
    options.add_argument("--reads", type=int, default=20)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    memory3 = str(resolve_codec("memory3", 80, training_vectors=10**6).spec)
    banks: dict[str, dict[str, Any]] = {
        "Memory³-2B": {"spec": memory3, "layers": 22, "kv_heads": 8, "head_dim": 80, "slots": 8},
        "small": {"spec": "OPQ6_30,PQ6x8", "layers": 4, "kv_heads": 2, "head_dim": 32, "slots": 16},
    }
    print(f"{torch.get_num_threads()} threads of torch, memories/s in reads of {REFERENCES}")
    with tempfile.TemporaryDirectory() as place:
        for name, shape in banks.items():
            layers, kv_heads = shape.pop("layers"), shape["kv_heads"]
            path = write_memory_bank(
                Path(place) / name,
                [given.rows // 2, given.rows - given.rows // 2],
                memory_heads={layer: range(kv_heads) for layer in range(layers)},
                **shape,
            )
            for device in (None, given.device):
                print(f"{name}, {shape['spec']}, {'NumPy' if device is None else f'torch on {device}'}:")
                _measure(path, given.reads, device)


def _measure(path: Path, reads: int, device: str | None) -> None:
    with open_bank(path, cache_bytes=0) as bank:
        random = np.random.default_rng(0)
        hits = [
            Hit(shard.chunk_id(row).hex(), 0.0, "", "", (), number, row)
            for number, shard in enumerate(bank.files.shards)
            for row in range(1, shard.rows)
        ]
        asked = [
            [hits[number] for number in random.choice(len(hits), REFERENCES, replace=False)]
            for _ in range(reads)
        ]
        # The codebooks are loaded by this one.
        bank.read(hits[0], device=device)
        for label in ("first", "cold"):
            _print(label, [_seconds(bank, some, device) for some in asked])
    with open_bank(path, cache_bytes=1 << 30) as bank:
        for some in asked[:5]:
            bank.read(some, device=device)
        _print("warm", [_seconds(bank, asked[number % 5], device) for number in range(max(reads, 5))])
        info = bank.cache_info()
        print(f"  {info.bytes_held / info.entries / 1e6:.3f} MB a memory in the cache")


def _seconds(bank: Any, some: list[Hit], device: str | None) -> float:
    start = time.perf_counter()
    bank.read(some, device=device)
    if device is not None and torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _print(label: str, seconds: list[float]) -> None:
    low, middle, high = np.quantile(seconds, [0.1, 0.5, 0.9]) / REFERENCES
    print(f"  {label:5} {1 / middle:10,.0f} (from {1 / high:,.0f} to {1 / low:,.0f} in 80 % of the reads)")


if __name__ == "__main__":
    main()
