"""What memories in some layers are worth: the loss of a repeated passage whose first occurrence is a
reference, every token of it kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import cross_entropy

from m3build.calibration.passages import Repeats
from m3build.chunk_memories import chunk_memories
from m3build.encode import write_memories
from m3build.model.causal import CausalModel
from m3build.model.shape import ShapeRequest
from m3build.read_context import encode_reference_bos, read_context
from m3build.selection import get_selector

Heads = Mapping[int, Sequence[int]]
"""Key-value heads by memory layer."""


@torch.no_grad()
def losses_in_context(model: CausalModel, repeats: Repeats, batch: int = 16) -> tuple[float, float]:
    """Mean loss (nats a token) of the passages, and of what is copied of them in the repetition, in plain
    context."""
    first = copied = 0.0
    start, tokens = len(model.bos), repeats.passage.shape[1]
    for some in _batches(repeats, batch):
        ids = some.rows(model.bos).to(model.device)
        losses = _token_losses(model.model(input_ids=ids, use_cache=False).logits, ids).cpu()
        # Without a BOS nothing predicts the first token.
        first += float(losses[:, max(start - 1, 0) : start + tokens - 1].mean(1).sum())
        copied += float(losses[:, -tokens:][some.copied].sum())
    return first / len(repeats.passage), copied / int(repeats.copied.sum())


@dataclass(frozen=True, slots=True)
class Passages:
    """What is read and what is predicted with it: ``references`` int64 (B, P), ``contexts`` int64 (B, T),
    and ``counted`` bool (B, T), the tokens of a context whose loss counts (never the first)."""

    references: torch.Tensor
    contexts: torch.Tensor
    counted: torch.Tensor

    @classmethod
    def repeated(cls, repeats: Repeats) -> Passages:
        """The passage is the reference, its pieces are the context; what is copied counts."""
        return cls(repeats.passage, repeats.repetition, repeats.copied)

    @classmethod
    def continued(cls, passages: torch.Tensor) -> Passages:
        """The first half of each passage is the reference, the second half the context."""
        references, contexts = passages.chunk(2, dim=1)
        return cls(references, contexts, torch.ones_like(contexts, dtype=torch.bool))


def reading_losses(
    model: CausalModel, passages: Passages, choices: Sequence[Heads], shift: int = 0, batch: int = 16
) -> list[torch.Tensor]:
    """For each choice of memory heads, {} for no memory, the mean loss of each context (B,), in nats a token,
    when it reads its reference there, every token of it; or, with ``shift``, the reference that many rows on.

    All of them see the reference BOS and the same positions. Raises MismatchError where a layer's sliding
    window would hide memories.
    """
    layers = sorted({layer for choice in choices for layer in choice})
    tokens = passages.references.shape[1]
    bos = model.reference_bos
    whole = model.shaped(
        ShapeRequest(
            memory_layers=layers or None,
            sparse_tokens=tokens,
            reference_tokens=tokens,
            reference_bos=model.shape.reference_bos,
        )
    ).shape
    selector = get_selector("first")
    before = encode_reference_bos(model.base, bos)
    found: list[list[torch.Tensor]] = [[] for _ in choices]
    references = passages.references.roll(-shift, 0)
    for start in range(0, len(references), batch):
        here = slice(start, start + batch)
        reference, context = references[here], passages.contexts[here]
        rows = len(reference)
        ids = torch.cat([reference.new_tensor(bos).expand(rows, -1), reference], dim=1).to(model.device)
        lengths = torch.full((rows,), tokens)
        keys, values, _ = write_memories(model.base, ids, lengths, len(bos), whole, selector)
        by_head = (rows, len(whole.memory_layers), whole.kv_heads, tokens, whole.head_dim)
        keys, values = keys.view(by_head), values.view(by_head)
        opening = context.new_tensor(model.bos).expand(rows, -1)
        context = torch.cat([opening, context], dim=1).to(model.device)
        own = torch.arange(rows, device=model.device)[:, None, None]
        counted = passages.counted[here, 1:].to(model.device)
        for number, choice in enumerate(choices):
            mask = torch.zeros(by_head[:-1], dtype=torch.bool, device=model.device)
            for layer, heads in choice.items():
                mask[:, layers.index(layer), list(heads)] = True
            memories = chunk_memories(layers, keys, values, mask, own) if choice else {}
            read = {layer: memories[layer] for layer in choice}
            output = read_context(model.model, context, bos=before, interval=tokens, memories=read)
            losses = _token_losses(output.logits, context)[:, -counted.shape[1] :]
            found[number].append(((losses * counted).sum(1) / counted.sum(1)).cpu())
    return [torch.cat(parts) for parts in found]


def _batches(repeats: Repeats, size: int) -> Iterator[Repeats]:
    for start in range(0, len(repeats.passage), size):
        yield replace(
            repeats,
            passage=repeats.passage[start : start + size],
            source=repeats.source[start : start + size],
        )


def _token_losses(logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Loss of every token but the first, float32 (B, T − 1)."""
    return cross_entropy(logits[:, :-1].float().transpose(1, 2), ids[:, 1:], reduction="none")
