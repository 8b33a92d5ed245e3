"""What reading costs: tokens a second with and without memories, and where the time of a retrieval goes.

Design choices:

- The same batch, over and over, in turn: as the model runs by itself, and reading the memories of its
  references, taken from the cache each time and laid out anew. The medians are compared, so that a neighbour
  on the machine disturbs both alike.
- A retrieval is taken apart on a bank opened for this alone, without a cache: embedding the queries, the rest
  of the search, reading rows of codes, decoding them. Each per query chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from m3build.bank import Bank
from m3build.evaluation.losses import LossMeter, padded
from m3build.evaluation.references import Reads
from m3build.model.load import LoadedModel

REPEATS = 5
QUERIES = 64


@dataclass(frozen=True, slots=True)
class Cost:
    """``plain`` and ``reading``: tokens a second without and with memories; milliseconds a query chunk, by
    stage; ``rows`` of memories were read for it."""

    plain: float | None
    reading: float | None
    milliseconds: dict[str, float]
    rows: int

    def to_json(self) -> dict[str, Any]:
        """``tokens_per_second``, ``reading_cost`` (share of the throughput lost), ``retrieval_ms``."""
        lost = None if not self.plain or not self.reading else 1 - self.reading / self.plain
        return {
            "tokens_per_second": {"none": self.plain, "quantized": self.reading},
            "reading_cost": lost,
            "retrieval_ms": self.milliseconds,
        }


def measure_cost(
    meter: LossMeter, bank: Bank, reads: Sequence[Reads], queries: Sequence[str], k: int
) -> Cost:
    """Times a batch of windows with what they read, and the retrieval of ``k`` references for ``queries``."""
    plain, reading = _throughput(meter, reads)
    milliseconds, rows = _retrieval(bank, meter.loaded, list(queries[:QUERIES]), k)
    return Cost(plain, reading, milliseconds, rows)


def _throughput(meter: LossMeter, reads: Sequence[Reads]) -> tuple[float | None, float | None]:
    if not any(some for read in reads for some in read.found):
        return None, None
    ids, mask = padded([read.window.ids for read in reads])
    ids, mask = ids.to(meter.loaded.device), mask.to(meter.loaded.device)
    tokens = int(mask.sum())
    found = [read.found for read in reads]

    def run_plain() -> None:
        meter.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def run_reading() -> None:
        meter.forward(reads, meter.stored, found)

    seconds: dict[str, list[float]] = {"plain": [], "reading": []}
    with torch.no_grad():
        # The first pass of each fills caches.
        run_plain()
        run_reading()
        for _ in range(REPEATS):
            seconds["plain"].append(_timed(run_plain, meter.loaded.device))
            seconds["reading"].append(_timed(run_reading, meter.loaded.device))
    return tokens / median(seconds["plain"]), tokens / median(seconds["reading"])


def _retrieval(bank: Bank, loaded: LoadedModel, queries: list[str], k: int) -> tuple[dict[str, float], int]:
    if not queries or k < 1:
        return {}, 0
    from m3build.bank import open_bank
    from m3build.embed import load_embedder

    manifest = bank.manifest
    with open_bank(bank.files.path, version=manifest.version, cache_bytes=0) as cold:
        embedder = load_embedder(cold.files.embedder_arrays())
        # What is opened at the first search and read is no part of a retrieval.
        cold.search(queries[:1], k)
        embedding = _timed(lambda: embedder.embed_queries(queries))
        hits: list[Any] = []
        searching = _timed(lambda: hits.extend(cold.search(queries, k))) - embedding
        places = sorted({(hit.shard, hit.row) for some in hits for hit in some})

        def load() -> None:
            for shard in {shard for shard, _ in places}:
                cold.files.shards[shard].memories([row for where, row in places if where == shard])

        def read() -> None:
            cold.read([hit for some in hits for hit in some], device=loaded.device, dtype=loaded.dtype)

        read()
        loading = _timed(load)
        decoding = max(0.0, _timed(read, loaded.device) - loading)
    stages = {"embed": embedding, "search": max(0.0, searching), "load": loading, "decode": decoding}
    return {name: seconds * 1e3 / len(queries) for name, seconds in stages.items()}, len(places)


def _timed(work: Callable[[], object], device: torch.device | None = None) -> float:
    start = time.perf_counter()
    work()
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
