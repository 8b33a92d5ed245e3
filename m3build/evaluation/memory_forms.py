"""The memories of references in the forms that an evaluation compares: as stored, unquantized, and dense.

Each form gives the same arrays over memory layers and all key-value heads, so that one attention reads them
all: keys (after RoPE) and values (n, L, Hkv, S, d), and a mask (n, L, Hkv, S) that is True where a slot holds
a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from m3build.bank import Bank
from m3build.capture import capture
from m3build.encode import ReferenceEncoder, padded_length
from m3build.evaluation.references import Reference
from m3build.model.load import LoadedModel
from m3build_formats.layout import UNUSED_SLOT


@dataclass(frozen=True, slots=True, eq=False)
class FormedMemories:
    """Memories of n references (see the module)."""

    keys: torch.Tensor
    values: torch.Tensor
    mask: torch.Tensor


Form: TypeAlias = Callable[[Sequence[Reference]], FormedMemories]


def stored(bank: Bank, model: LoadedModel) -> Form:
    """As the bank has them: decoded from codes."""

    def form(references: Sequence[Reference]) -> FormedMemories:
        ids = [reference.id for reference in references]
        memories = bank.read(ids, device=model.device, dtype=model.dtype)
        return FormedMemories(memories.keys, memories.values, memories.mask)

    return form


def unquantized(model: LoadedModel, batch_tokens: int) -> Form:
    """What compiling encodes, before any codec: the same kept tokens in the model's own numbers."""
    shape = model.shape

    def form(references: Sequence[Reference]) -> FormedMemories:
        with ReferenceEncoder(model, batch_tokens=batch_tokens) as encoder:
            empty = _empty(model, len(references), shape.sparse_tokens)
            for batch in encoder.encode([reference.ids for reference in references]):
                rows = torch.tensor(batch.indices, device=model.device)
                for number, (layer, head) in enumerate(shape.heads):
                    place = shape.memory_layers.index(layer)
                    empty.keys[rows, place, head] = batch.keys[:, number]
                    empty.values[rows, place, head] = batch.values[:, number]
                    empty.mask[rows, place, head] = batch.positions[:, number] != UNUSED_SLOT
        return empty

    return form


def dense(model: LoadedModel, batch_tokens: int) -> Form:
    """All tokens of the references, at the memory layers and heads: what keeping every token would give.
    ``batch_tokens`` of them, padding included, are in flight at once (one reference always is)."""
    shape, bos = model.shape, model.reference_bos_ids

    def form(references: Sequence[Reference]) -> FormedMemories:
        longest = max(len(reference.ids) for reference in references)
        empty = _empty(model, len(references), longest)
        length = padded_length(longest, len(bos))
        rows = max(1, batch_tokens // length)
        for first in range(0, len(references), rows):
            some = references[first : first + rows]
            ids = torch.zeros(len(some), length, dtype=torch.int64)
            for own, reference in zip(ids, some, strict=True):
                own[: len(bos) + len(reference.ids)] = torch.tensor([*bos, *reference.ids])
            # Padding comes after a reference's own tokens, which do not see it.
            captured = capture(model.base, ids.to(model.device), shape.memory_layers)
            lengths = torch.tensor([len(reference.ids) for reference in some], device=model.device)
            there = torch.arange(longest, device=model.device) < lengths[:, None]
            at, kept = slice(first, first + len(some)), slice(len(bos), len(bos) + longest)
            for place, layer in enumerate(captured):
                for head in shape.heads_of(layer.layer):
                    own_keys, own_values = layer.rotated_key[:, head, kept], layer.value[:, head, kept]
                    empty.keys[at, place, head] = own_keys.masked_fill(~there[..., None], 0)
                    empty.values[at, place, head] = own_values.masked_fill(~there[..., None], 0)
                    empty.mask[at, place, head] = there
        return empty

    return form


def _empty(model: LoadedModel, references: int, slots: int) -> FormedMemories:
    shape = model.shape
    size = (references, len(shape.memory_layers), shape.kv_heads, slots)
    keys, values = (
        torch.zeros((*size, shape.head_dim), dtype=model.dtype, device=model.device) for _ in range(2)
    )
    return FormedMemories(keys, values, torch.zeros(size, dtype=torch.bool, device=model.device))
