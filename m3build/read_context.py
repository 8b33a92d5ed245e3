"""One forward pass over a context that reads memories: the reference BOS first, positions after the memory
interval (Memory³ §3.1). For evaluation and training; :mod:`m3build.reader` does the same across the steps of
a generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from m3build.attention import ChunkLayout, Reading, ReferenceBos, reading
from m3build.capture import capture
from m3build.chunk_memories import LayerMemory
from m3build_formats.errors import MismatchError


def encode_reference_bos(base: torch.nn.Module, ids: Sequence[int]) -> ReferenceBos:
    """Keys and values of the reference BOS ``ids`` at every layer of ``base`` (a model without its head).
    Differentiable. Raises MismatchError where the model's attention is not the standard kind."""
    if not ids:
        raise ValueError("the reference BOS has no tokens")
    device = next(base.parameters()).device
    config: Any = base.config
    layers = range(config.num_hidden_layers)
    captured = capture(base, torch.tensor([list(ids)], device=device), layers)
    return ReferenceBos(tuple(at.rotated_key for at in captured), tuple(at.value for at in captured))


def context_positions(index: torch.Tensor, bos: int, interval: int) -> torch.Tensor:
    """Positions of context tokens that are number ``index`` of their row: they come after the reference BOS
    (``bos`` tokens) and the interval that all memories share (``interval``, the most tokens of a
    reference)."""
    return index + (bos + interval)


def check_positions(config: Any, last_position: int) -> None:
    """Raise MismatchError where RoPE would turn keys of long contexts otherwise than those of memories: kinds
    that change all frequencies once a sequence is long."""
    parameters = getattr(config, "rope_parameters", None) or {}
    for of in [parameters, *(value for value in parameters.values() if isinstance(value, dict))]:
        if of.get("rope_type") in ("dynamic", "longrope"):
            limit = int(
                of.get("original_max_position_embeddings")
                or getattr(config, "original_max_position_embeddings", None)
                or config.max_position_embeddings
            )
            if last_position >= limit:
                raise MismatchError(
                    f"{of['rope_type']} RoPE turns keys otherwise from position {limit} on, so that memories"
                    f" no longer fit; this context reaches position {last_position}."
                )


def read_context(
    model: torch.nn.Module,
    input_ids: torch.Tensor,
    *,
    bos: ReferenceBos,
    interval: int,
    memories: Mapping[int, LayerMemory] | None = None,
    chunk_of: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **options: Any,
) -> Any:
    """The output of a transformers ``model`` (with or without its head) over contexts ``input_ids`` (B, T)
    that read ``memories`` (see :func:`m3build.chunk_memories.chunk_memories`).

    ``chunk_of`` int64 (B, T) says which of the C query chunks each token belongs to, −1 for none; by default
    all belong to chunk 0. ``interval`` is the most tokens of a reference. ``attention_mask`` (B, T) is 0 on
    padding, on either side. ``options`` go to the model. No cache is made. Differentiable.

    Raises MismatchError (see :func:`m3build.attention.reading`, :func:`check_positions`).
    """
    config: Any = model.base_model.config  # type: ignore[union-attr]
    real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    index = (real.long().cumsum(1) - 1).clamp(min=0)
    positions = context_positions(index, bos.tokens, interval)
    last = bos.tokens + interval + input_ids.shape[1] - 1
    check_positions(config, last)
    memories = memories or {}
    layout = None
    if memories:
        chunks = next(iter(memories.values())).keys.shape[1]
        layout = ChunkLayout.of(torch.zeros_like(input_ids) if chunk_of is None else chunk_of, chunks)
    with reading(config, Reading(bos, positions, last, memories, layout)):
        return model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            use_cache=False,
            **options,
        )
