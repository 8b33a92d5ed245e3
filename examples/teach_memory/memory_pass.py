"""One differentiable forward pass of a model that writes memories and reads them: both through the functions
that compiling and reading a bank use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from examples.teach_memory.corpus import PIECE
from m3build.chunk_memories import chunk_memories
from m3build.encode import padded_length, write_memories
from m3build.model.causal import CausalModel
from m3build.read_context import encode_reference_bos, read_context
from m3build.selection import get_selector
from m3build_formats.layout import UNUSED_SLOT

IGNORED = -100


@dataclass(frozen=True, slots=True)
class Batch:
    """Contexts and what they read.

    ``ids`` and ``labels`` int64 (B, T): a label is the id itself where its loss counts, else −100.
    ``references`` are token ids; ``reads`` int64 (B, C, R) says which of them each query chunk reads, −1 for
    none. ``plain``: an ordinary pass, without reference BOS.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    references: Sequence[Sequence[int]] = ()
    reads: torch.Tensor | None = None
    plain: bool = False


def token_losses(model: CausalModel, batch: Batch) -> torch.Tensor:
    """Loss of every token, float32 (B, T), in nats; 0 where it does not count."""
    ids, labels = batch.ids.to(model.device), batch.labels.to(model.device)
    logits = (
        model.model(input_ids=ids, use_cache=False).logits
        if batch.plain
        else _reading_logits(model, batch, ids)
    )
    # Flat, without a copy of the logits: on a CPU that is a fifth of a step.
    following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
    losses = cross_entropy(
        logits.float().flatten(0, 1), following.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view_as(ids).roll(1, dims=1)


def mean_loss(model: CausalModel, batch: Batch) -> torch.Tensor:
    """The mean over all tokens that count."""
    return token_losses(model, batch).sum() / (batch.labels[:, 1:] != IGNORED).sum()


def _reading_logits(model: CausalModel, batch: Batch, ids: torch.Tensor) -> torch.Tensor:
    shape, device, bos = model.shape, model.device, model.reference_bos
    memories = {}
    if batch.references and batch.reads is not None:
        lengths = torch.tensor([len(reference) for reference in batch.references])
        rows = torch.zeros(len(lengths), padded_length(int(lengths.max()), len(bos)), dtype=torch.int64)
        for row, reference in zip(rows, batch.references, strict=True):
            row[: len(bos) + len(reference)] = torch.tensor([*bos, *reference])
        keys, values, positions = write_memories(
            model.base, rows.to(device), lengths, len(bos), shape, get_selector(shape.selection)
        )
        layers = shape.memory_layers
        # The flat list of memory heads becomes a grid of all heads of the memory layers.
        at = [layers.index(layer) for layer, _ in shape.heads], [head for _, head in shape.heads]
        grid = (len(lengths), len(layers), shape.kv_heads, shape.sparse_tokens)
        all_keys, all_values = keys.new_zeros(*grid, shape.head_dim), values.new_zeros(*grid, shape.head_dim)
        used = torch.zeros(grid, dtype=torch.bool, device=device)
        all_keys[:, at[0], at[1]], all_values[:, at[0], at[1]] = keys, values
        used[:, at[0], at[1]] = positions != UNUSED_SLOT
        memories = chunk_memories(layers, all_keys, all_values, used, batch.reads.to(device))
    return read_context(
        model.model,
        ids,
        bos=encode_reference_bos(model.base, bos),
        interval=shape.reference_tokens,
        memories=memories,
        chunk_of=torch.arange(ids.shape[1], device=device).expand_as(ids) // PIECE,
    ).logits
