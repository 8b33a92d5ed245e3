"""Memories for a reader: those that the bank holds, and, where it has none yet, encoded now with the model
that reads them (cold start, Memory³ §3.1)."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from m3build.bank import Bank
from m3build.cold import ColdMemories, Place, WarmMemory
from m3build.memories import Memories
from m3build.model.load import LoadedModel
from m3build.reader_state import Reference
from m3build_formats.layout import UNUSED_SLOT


class ReaderMemories:
    """Thread-safe. What was encoded is kept, unquantized, until :meth:`close`, for :meth:`persist` to
    write."""

    def __init__(self, bank: Bank, model: LoadedModel) -> None:
        self._bank, self._model = bank, model
        self._cold = ColdMemories(bank, model)
        self._encoded: dict[Place, WarmMemory] = {}
        self._lock = threading.Lock()

    def read(
        self, references: Sequence[Reference], device: torch.device, dtype: torch.dtype
    ) -> Memories[torch.Tensor]:
        """As :meth:`m3build.bank.Bank.read`, and encodes what the bank has no memory of."""
        if not self._bank.manifest.cold:
            return self._bank.read(references, device=device, dtype=dtype)
        places = [self._bank.place(reference) for reference in references]
        cold = [
            number
            for number, (place, is_cold) in enumerate(zip(places, self._bank.cold(places), strict=True))
            if is_cold
        ]
        self._encode([places[number] for number in cold])
        shape = self._model.shape
        layers, kv_heads, d = shape.memory_layers, shape.kv_heads, shape.head_dim
        sizes = (len(references), len(layers) * kv_heads, shape.sparse_tokens)
        keys = torch.zeros(*sizes, d, device=device, dtype=dtype)
        values = torch.zeros_like(keys)
        positions = torch.full(sizes, UNUSED_SLOT, device=device, dtype=torch.uint8)
        # Where each pair of the head list stands in (layers, key-value heads).
        at = [layers.index(layer) * kv_heads + head for layer, head in shape.heads]
        for number in cold:
            memory = self._encoded[places[number]]
            keys[number, at], values[number, at] = memory.keys.to(keys), memory.values.to(keys)
            positions[number, at] = memory.positions.to(device)
        by_layer = (len(references), len(layers), kv_heads, shape.sparse_tokens)
        keys, values = keys.view(*by_layer, d), values.view(*by_layer, d)
        positions = positions.view(by_layer)
        warm = [number for number in range(len(references)) if number not in set(cold)]
        if warm:
            stored = self._bank.read([references[number] for number in warm], device=device, dtype=dtype)
            keys[warm], values[warm], positions[warm] = stored.keys, stored.values, stored.positions
        ids = tuple(self._bank.files.shards[shard].chunk_id(row).hex() for shard, row in places)
        return Memories(ids, layers, keys, values, positions, positions != UNUSED_SLOT)

    def persist(self) -> int:
        """See :meth:`m3build.reader.Reader.persist`."""
        from m3build.persist import persist

        with self._lock:
            encoded = dict(self._encoded)
        return persist(self._bank.files.path, self._bank, self._model, encoded).version

    def close(self) -> None:
        """Forget what was encoded."""
        with self._lock:
            self._encoded.clear()

    def _encode(self, places: Sequence[Place]) -> None:
        with self._lock:
            missing = [place for place in dict.fromkeys(places) if place not in self._encoded]
            if missing:
                made = self._cold.encode(missing)
                for number, place in enumerate(missing):
                    self._encoded[place] = made[number]
