"""Cold start (Memory³ §3.1): memories of a bank of text only, encoded when they are first retrieved.

They go the way that a build's memories go (:mod:`m3build.encode`), with the model that reads them: where its
device class and number type are those of the manifest, they are the ones that a build would have stored, bit
for bit. :mod:`m3build.persist` writes them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

import torch

from m3build.bank import Bank
from m3build.chunking.encoder import Encoder
from m3build.encode import DEFAULT_BATCH_TOKENS, ReferenceEncoder
from m3build.model.load import LoadedModel
from m3build.records import reference_text
from m3build_formats.errors import MismatchError
from m3build_formats.layout import UNUSED_SLOT

Place = tuple[int, int]
"""Shard and row of a chunk in a version of a bank."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmMemories:
    """Memories of n references, unquantized, on the model's device and in its number type.

    Over the head list of the bank (N heads, :class:`m3build.model.MemoryShape`) and its S slots: ``keys``
    (after RoPE) and ``values`` (n, N, S, d), zero in unused slots; ``positions`` uint8 (n, N, S), counted
    from the reference's first token, ascending, 255 in unused slots.
    """

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, number: int) -> WarmMemory:
        """The memory of one reference, as a view."""
        return WarmMemory(self.keys[number], self.values[number], self.positions[number])


class WarmMemory(NamedTuple):
    """The memory of one reference: ``keys``, ``values`` (N, S, d), ``positions`` uint8 (N, S), as in
    :class:`WarmMemories`."""

    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor


class ColdMemories:
    """Encodes chunks of one open bank. A context manager, which keeps its threads until it is left; calls
    must not overlap.

    ``model`` is that of the bank (``m3build.model.load_model`` or, for a model that is in memory already,
    ``loaded_from``) with the bank's shape. ``batch_tokens`` and ``threads`` are those of
    :class:`m3build.encode.ReferenceEncoder` and change no bit.
    """

    def __init__(
        self,
        bank: Bank,
        model: LoadedModel,
        *,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        threads: int | None = None,
    ) -> None:
        self._bank = bank
        self._model = model
        self._tokens = Encoder(model.tokenizer)
        self._references = ReferenceEncoder(model, batch_tokens=batch_tokens, threads=threads)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(self._references)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def encode(self, places: Sequence[Place]) -> WarmMemories:
        """The memories of the chunks in these rows, in their order, whether the bank has them or not.

        Raises IndexError, CorruptError (the bank is damaged), MismatchError (the tokenizer cuts a chunk into
        other tokens than the bank says), ResourceError (out of memory).
        """
        shape, device, dtype = self._model.shape, self._model.device, self._model.dtype
        sizes = (len(places), len(shape.heads), shape.sparse_tokens)
        # Whatever the caller is doing with the model: its memories are those of a build, and tensors that can
        # be kept for any use.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
        ):
            keys = torch.zeros(*sizes, shape.head_dim, device=device, dtype=dtype)
            values = torch.zeros_like(keys)
            positions = torch.full(sizes, UNUSED_SLOT, device=device, dtype=torch.uint8)
            for batch in self._references.encode(self._token_ids(places)):
                at = torch.tensor(batch.indices, device=device)
                keys[at], values[at] = batch.keys, batch.values
                positions[at] = batch.positions.to(device)
        return WarmMemories(keys, values, positions)

    def _token_ids(self, places: Sequence[Place]) -> list[list[int]]:
        shards = self._bank.files.shards
        chunks = [shards[shard].chunk(row) for shard, row in places]
        texts = [reference_text(chunk.title, chunk.text) for chunk in chunks]
        encoded = self._tokens.encode(texts)
        for chunk, found in zip(chunks, encoded, strict=True):
            if tuple(found.ends) != tuple(chunk.token_ends):
                raise MismatchError(
                    f"chunk {chunk.id.hex()[:12]}: the tokenizer cuts it into {len(found.ids)} tokens, and "
                    f"the bank's cut it into {chunk.tokens}, at other places: it is another tokenizer"
                )
        return [found.ids.tolist() for found in encoded]
