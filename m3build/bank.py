"""An open bank, as a program uses it: search, read memories, look at a chunk, read the manifest. Needs no
transformers, and torch only for memories on a device.

Every file of the version is opened with the bank, so it stays readable while newer versions are written; what
is parsed is checked first.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, overload

import numpy as np
import numpy.typing as npt

from m3build.embed import Embedder
from m3build.memories import Memories
from m3build.memory_cache import CacheInfo
from m3build.memory_reader import DEFAULT_CACHE_BYTES, MemoryReader
from m3build.search import Hit, Searcher, Source, sources_of
from m3build_formats import bank as bank_format
from m3build_formats.errors import UsageError
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.manifest import Manifest
from m3build_formats.open_bank import BankFiles

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Hits:
    """What a search found: ``hits[i]`` for query i, best first; the other attributes are the same lists field
    by field."""

    hits: tuple[tuple[Hit, ...], ...]

    @property
    def ids(self) -> list[list[str]]:
        """Text hashes in hex."""
        return [[hit.id for hit in some] for some in self.hits]

    @property
    def scores(self) -> list[list[float]]:
        """The embedder's scores; larger is better."""
        return [[hit.score for hit in some] for some in self.hits]

    @property
    def texts(self) -> list[list[str]]:
        """The chunks' own texts, without the titles put before them."""
        return [[hit.text for hit in some] for some in self.hits]

    @property
    def titles(self) -> list[list[str]]:
        """What ``--title`` put before the texts, else ""."""
        return [[hit.title for hit in some] for some in self.hits]

    @property
    def sources(self) -> list[list[tuple[Source, ...]]]:
        """Where each chunk stands; more than one place for duplicates."""
        return [[hit.sources for hit in some] for some in self.hits]

    def __len__(self) -> int:
        return len(self.hits)

    def __iter__(self) -> Iterator[tuple[Hit, ...]]:
        return iter(self.hits)

    def __getitem__(self, query: int) -> tuple[Hit, ...]:
        return self.hits[query]


@dataclass(frozen=True, slots=True, eq=False)
class ChunkFacts:
    """All that a bank knows of one chunk.

    ``token_ends[i]``: character offset in the reference text (title, line feed, text; or text alone) at which
    token i ends. ``heads``: the (layer, key-value head) pairs that hold memory; ``kept``: uint8 (heads,
    slots), positions of the kept tokens, counted from the reference's first token, ascending, 255 = unused
    slot; None for a chunk that has no memory yet.
    """

    id: str
    text: str
    title: str
    token_ends: tuple[int, ...]
    sources: tuple[Source, ...]
    shard: int
    row: int
    heads: tuple[tuple[int, int], ...]
    kept: npt.NDArray[np.uint8] | None

    def kept_tokens(self, layer: int, head: int) -> list[int]:
        """Positions of the tokens that a memory head kept, ascending. KeyError for a head that holds no
        memory."""
        # Heads ascend, and there may be many thousands of them.
        place = bisect_left(self.heads, (layer, head))
        if self.kept is None or self.heads[place : place + 1] != ((layer, head),):
            raise KeyError((layer, head))
        positions = self.kept[place].tolist()
        return [position for position in positions if position != UNUSED_SLOT]


class Bank:
    """An open version of a bank. A context manager; thread-safe. ``open_bank`` makes one."""

    def __init__(
        self, files: BankFiles, embedder: Embedder | None = None, cache_bytes: int = DEFAULT_CACHE_BYTES
    ) -> None:
        self._files = files
        self._searcher = Searcher(files, embedder)
        self._reader = MemoryReader(files, cache_bytes)

    @property
    def manifest(self) -> Manifest:
        """All that the version says about itself."""
        return self._files.manifest

    @property
    def files(self) -> BankFiles:
        """The version's files: shards, arrays, rejects."""
        return self._files

    def __len__(self) -> int:
        """Rows of all shards; a text that stands in several of them counts once in each."""
        return self._files.rows

    def search(
        self, queries: str | Sequence[str], k: int = 5, exact: bool = False, continuations: bool = False
    ) -> Hits:
        """The ``k`` best chunks for each query, best first; ``exact`` scans all embeddings instead of asking
        the index; with ``continuations`` each is followed by the chunk with which its document goes on, ``k``
        in all (see ``m3build.search.Searcher.search``).

        Raises UsageError (k under 1), CorruptError, MismatchError.
        """
        listed = [queries] if isinstance(queries, str) else list(queries)
        return Hits(tuple(tuple(some) for some in self._searcher.search(listed, k, exact, continuations)))

    @overload
    def read(
        self, ids: str | Hit | Sequence[str | Hit], *, device: None = None, dtype: None = None
    ) -> Memories[npt.NDArray[Any]]: ...

    @overload
    def read(
        self,
        ids: str | Hit | Sequence[str | Hit],
        *,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
    ) -> Memories[torch.Tensor]: ...

    def read(
        self,
        ids: str | Hit | Sequence[str | Hit],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Memories[Any]:
        """The memories of one or more references, in the order asked for; repeats are allowed.

        ``ids``: text hashes in hex or unambiguous starts of them, hits of a search, or both mixed. Hits are
        quicker: the first id given as text makes the bank read all its ids. NumPy arrays in float32, without
        torch; with ``device``, torch tensors there, decoded there, of ``dtype`` (float32 unless given). The
        arrays are the caller's own. Memories read last stay decoded, within the bytes that ``open_bank`` was
        given, for each device and dtype by themselves.

        Raises UsageError (an id that no chunk or more than one has, a hit of another bank or version, no such
        device), MismatchError (a memory that is not made yet), CorruptError, ResourceError (memories too
        large to decode).
        """
        if device is not None:
            return self._reader.read_to(ids, device, dtype)
        if dtype is not None:
            raise UsageError("read: dtype is for torch tensors; name their device too")
        return self._reader.read(ids)

    def cache_info(self) -> CacheInfo:
        """What the cache of decoded memories holds and did since the bank was opened."""
        return self._reader.cache_info()

    def place(self, reference: str | Hit) -> tuple[int, int]:
        """Shard and row of a reference, given as an id in hex, an unambiguous start of one, or a hit of a
        search. Raises UsageError, CorruptError."""
        found = self._reader.find(reference)[0]
        return found.shard, found.row

    def cold(self, places: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
        """Which rows, given as (shard, row), have no memory yet: bool (len(places),). Raises IndexError,
        CorruptError."""
        return self._files.cold(places)

    def show(self, id_prefix: str) -> ChunkFacts:
        """The chunk whose id in hex starts with ``id_prefix``. Raises UsageError (no chunk has it, or more
        than one), CorruptError."""
        places = [(place.shard, place.row) for place in self._files.find(id_prefix)]
        number, row = places[0]
        shard = self._files.shards[number]
        chunk = shard.chunk(row)
        memory = self.manifest.memory
        heads = tuple(
            (layer, head)
            for layer, heads in zip(memory["memory_layers"], memory["memory_heads"], strict=True)
            for head in heads
        )
        kept = None
        if not self.cold([(number, row)])[0]:
            codes = self.manifest.row_codes_bytes
            kept = shard.memories([row])[0, codes:].reshape(len(heads), -1)
        sources = tuple(sources_of(self._files.shards, places))
        return ChunkFacts(
            chunk.id.hex(),
            chunk.text,
            chunk.title,
            tuple(chunk.token_ends),
            sources,
            number,
            row,
            heads,
            kept,
        )

    def close(self) -> None:
        """Drop the bank's hold on its files."""
        self._reader.close()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_bank(
    path: str | os.PathLike[str],
    version: int | None = None,
    expect: str | None = None,
    *,
    embedder: Embedder | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
) -> Bank:
    """Open the current version of a bank, or ``version``, or the one whose manifest has the digest ``expect``
    ("sha256:…").

    ``embedder`` replaces the one that the bank describes, for instance one on a GPU.
    ``cache_bytes``: how many bytes of decoded memories ``read`` may keep, on all devices together. Raises
    UsageError (no
    bank there, no such version), CorruptError, NewerFormatError, MismatchError, ResourceError.
    """
    return Bank(bank_format.open_bank(path, version, expect), embedder, cache_bytes)
