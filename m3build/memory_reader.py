"""From ids to memories: rows out of the shards, decoded by table look-ups, the last ones kept.

Design choices:

- A memory is found by its row. A ``Hit`` says which that is; only an id given as text needs the index of ids,
  which reads all of them once. A hit is believed only after a look at the id in that row, so one that comes
  from another bank or version is refused instead of answered with a wrong memory.
- What is not in the cache is read in the order of the files, a block of memories at a time, so that decoding
  a large read takes little more than its result.
- The cache holds memories as they are given out: float32 in NumPy, or tensors of the dtype and on the device
  asked for. Serving one is a copy.
- Two threads that miss the same memory both decode it: no thread waits for another's decoding.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from m3build.codec.codec import Codec
from m3build.memories import Array, Memories
from m3build.memory_blocks import Block, Blocks, MemoryShape, NumpyBlocks, Rows
from m3build.memory_cache import CacheInfo, MemoryCache
from m3build.search import Hit
from m3build_formats.cold_rows import cold_rows
from m3build_formats.errors import MismatchError, UsageError
from m3build_formats.id_index import Location
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.open_bank import BankFiles

if TYPE_CHECKING:
    import torch

Wanted: TypeAlias = str | Hit

DEFAULT_CACHE_BYTES = 256 << 20
_BLOCK_BYTES = 64 << 20


class MemoryReader:
    """Reads memories of one version of a bank. Thread-safe."""

    def __init__(self, files: BankFiles, cache_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        """``cache_bytes``: capacity of the cache of decoded memories, on all devices together; 0 for none."""
        if cache_bytes < 0:
            raise UsageError(f"a cache of {cache_bytes} bytes: give 0 or more")
        self._files = files
        self._cache: MemoryCache[Hashable, Block[Any]] = MemoryCache(cache_bytes)
        self._lock = threading.Lock()
        self._codec: tuple[Codec, MemoryShape] | None = None
        self._blocks: dict[Hashable, Blocks[Any]] = {}
        self._decoders: dict[torch.device, Any] = {}

    def read(self, wanted: Wanted | Sequence[Wanted]) -> Memories[npt.NDArray[Any]]:
        """Memories as NumPy arrays; see ``Bank.read``."""
        self._check_memories()
        return self._read(wanted, "numpy", self._numpy_blocks())

    def read_to(
        self, wanted: Wanted | Sequence[Wanted], device: torch.device | str, dtype: torch.dtype | None
    ) -> Memories[torch.Tensor]:
        """Memories as tensors of ``dtype`` (float32 for None) on ``device``; see ``Bank.read``."""
        self._check_memories()
        form, blocks = self._torch_blocks(device, dtype)
        return self._read(wanted, form, blocks)

    def cache_info(self) -> CacheInfo:
        """What the cache holds and did."""
        return self._cache.info()

    def close(self) -> None:
        """Drop the cache and the codebooks."""
        with self._lock:
            self._codec = None
            self._blocks.clear()
            self._decoders.clear()
        self._cache.clear()

    def _read(
        self, wanted: Wanted | Sequence[Wanted], form: Hashable, blocks: Blocks[Array]
    ) -> Memories[Array]:
        listed = [wanted] if isinstance(wanted, str | Hit) else list(wanted)
        found = [self.find(one) for one in listed]
        places = dict(found)
        numbers = {location: number for number, location in enumerate(places)}
        block = self._fetch(list(places), form, blocks)
        used: Any = block.positions != UNUSED_SLOT
        memories = Memories(
            tuple(places.values()),
            tuple(self._files.manifest.memory["memory_layers"]),
            block.keys,
            block.values,
            block.positions,
            used,
        )
        if len(places) == len(found):
            return memories
        return memories[[numbers[location] for location, _ in found]]

    def find(self, wanted: Wanted) -> tuple[Location, str]:
        """Where a memory lies (shard, row), and its id. Raises UsageError, CorruptError."""
        shards = self._files.shards
        if isinstance(wanted, Hit):
            if not (0 <= wanted.shard < len(shards) and 0 <= wanted.row < shards[wanted.shard].rows):
                raise _foreign(wanted)
            if shards[wanted.shard].chunk_id(wanted.row).hex() != wanted.id:
                raise _foreign(wanted)
            return Location(wanted.shard, wanted.row), wanted.id
        if not isinstance(wanted, str):
            raise UsageError(f"read: expected ids in hex or hits of a search, got a {type(wanted).__name__}")
        location = self._files.find(wanted)[0]
        return location, shards[location.shard].chunk_id(location.row).hex()

    def _fetch(self, places: Sequence[Location], form: Hashable, blocks: Blocks[Array]) -> Block[Array]:
        """The memories of distinct rows, in their order."""
        held: list[Block[Array] | None] = self._cache.get([(form, place) for place in places])
        hits = {number: block for number, block in enumerate(held) if block is not None}
        if places and len(hits) == len(places):
            return blocks.stack(list(hits.values()))
        result = blocks.empty(len(places))
        if hits:
            result.put(list(hits), blocks.stack(list(hits.values())))
        misses = sorted(
            (number for number in range(len(places)) if number not in hits), key=places.__getitem__
        )
        step = max(1, _BLOCK_BYTES // self._shape().float32_bytes)
        for start in range(0, len(misses), step):
            some = misses[start : start + step]
            rows = self._rows([places[number] for number in some])
            block = blocks.decode(rows)
            result.put(some, block)
            # Of a read that is larger than the cache, only the end would stay in it.
            most = self._cache.capacity * len(some) // block.nbytes
            first = max(0, len(misses) - start - most)
            self._cache.put(
                [
                    ((form, places[some[number]]), blocks.copy_of(block, number))
                    for number in range(first, len(some))
                ],
                bytes_read=rows.nbytes,
            )
        return result

    def _rows(self, places: Sequence[Location]) -> Rows:
        """Memory rows (n, row_bytes) of places in ascending order. Raises MismatchError for one that is
        cold."""
        rows = np.empty((len(places), self._files.manifest.row_bytes), np.uint8)
        shards = np.array([place.shard for place in places])
        for shard in np.unique(shards).tolist():
            numbers = np.flatnonzero(shards == shard).tolist()
            if not self._files.shards[shard].has_memories:
                raise self._cold(places[numbers[0]])
            rows[numbers] = self._files.shards[shard].memories([places[number].row for number in numbers])
        # By the rows themselves: a manifest that counts them wrongly must not turn one into a memory of no
        # tokens.
        cold = cold_rows(rows, self._files.manifest.row_codes_bytes)
        if cold.any():
            raise self._cold(places[int(cold.argmax())])
        return rows

    def _cold(self, place: Location) -> MismatchError:
        identity = self._files.shards[place.shard].chunk_id(place.row).hex()
        return MismatchError(
            f"chunk {identity[:12]} has no memory yet: m3build.attach encodes it when it is first retrieved"
        )

    def _check_memories(self) -> None:
        shards = self._files.manifest.shards
        if shards and all(shard.memories is None for shard in shards):
            raise MismatchError(
                "this bank holds no memories, only text and its index: m3build.attach encodes them when they "
                "are first retrieved; or compile it without --text-only"
            )

    def _opened_codec(self) -> tuple[Codec, MemoryShape]:
        """The codec and the shape of its rows, opened at the first read. To be called with the lock held."""
        if self._codec is None:
            manifest = self._files.manifest
            codec = Codec.from_arrays(self._files.codec_arrays(), manifest.codec)
            self._codec = codec, MemoryShape.of(manifest, codec)
        return self._codec

    def _shape(self) -> MemoryShape:
        with self._lock:
            return self._opened_codec()[1]

    def _numpy_blocks(self) -> Blocks[npt.NDArray[Any]]:
        with self._lock:
            if "numpy" not in self._blocks:
                self._blocks["numpy"] = NumpyBlocks(*self._opened_codec())
            return self._blocks["numpy"]

    def _torch_blocks(
        self, device: torch.device | str, dtype: torch.dtype | None
    ) -> tuple[Hashable, Blocks[torch.Tensor]]:
        import torch

        from m3build.codec.decoder import TorchDecoder, usable_device
        from m3build.memory_blocks_torch import TorchBlocks

        dtype = torch.float32 if dtype is None else dtype
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise UsageError(f"read: dtype is {dtype}, expected a floating-point dtype of torch")
        place = usable_device(device)
        form = (place, dtype)
        with self._lock:
            codec, shape = self._opened_codec()
            if place not in self._decoders:
                self._decoders[place] = TorchDecoder(codec, place)
            if form not in self._blocks:
                self._blocks[form] = TorchBlocks(self._decoders[place], shape, dtype)
            return form, self._blocks[form]


def _foreign(hit: Hit) -> UsageError:
    return UsageError(
        f"read: the hit {hit.id[:12]} does not lie in row {hit.row} of shard {hit.shard}: it was found in "
        "another bank or version"
    )
