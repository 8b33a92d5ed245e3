"""Attention of every head on repeated passages: to the token after an earlier occurrence (copying), and to
the previous token.

A head that copies finds the place where the current token stood before and attends to the token after it,
which comes next now; it needs a head of an earlier layer that wrote into each token which one stands before
it (Olsson et al., "In-context Learning and Induction Heads", 2022). Reading a memory is the same act on a
passage that stands outside the context.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from m3build.calibration.passages import Repeats
from m3build.capture import LayerCapture, capture_each


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Mean attention weights, from 0 to 1, of every query head, float32 (layers, query heads)."""

    copying: torch.Tensor
    previous: torch.Tensor


def head_scores(base: torch.nn.Module, repeats: Repeats, bos: tuple[int, ...], batch: int = 16) -> HeadScores:
    """Scores of all heads of ``base`` (a model without its head) on repeated passages after ``bos``.

    Copying counts the tokens of the repetition that are followed by what followed them in the passage.
    Raises MismatchError where attention is not the standard causal kind.
    """
    layers: int = base.config.num_hidden_layers  # type: ignore[union-attr, assignment]
    sums: dict[int, list[torch.Tensor]] = {layer: [] for layer in range(layers)}
    weight = 0
    device = next(base.parameters()).device
    first = len(bos)
    for start in range(0, len(repeats.passage), batch):
        some = Repeats(repeats.passage[start : start + batch], repeats.source[start : start + batch])
        source = some.source.to(device)
        # A token counts if the next one is copied; the place to look at is the one after its source.
        counts = torch.nn.functional.pad(some.copied[:, 1:], (0, 1)).to(device)
        after = (first + source + 1).clamp(max=first + source.shape[1] - 1)

        def receive(layer: LayerCapture, after: torch.Tensor = after, counts: torch.Tensor = counts) -> None:
            weights = attention_weights(layer, after.shape[1])
            copying = _at(weights, after) * counts[:, None]
            tokens = weights.shape[-1]
            before = torch.arange(tokens - after.shape[1] - 1, tokens - 1, device=device).expand_as(after)
            sums[layer.layer].append(
                torch.stack([copying.sum((0, 2)), _at(weights, before).mean(2).sum(0)]).cpu()
            )

        capture_each(base, some.rows(bos).to(device), range(layers), receive)
        weight += int(counts.sum())
    total = torch.stack([torch.stack(parts).sum(0) for parts in sums.values()])
    return HeadScores(total[:, 0] / weight, total[:, 1] / len(repeats.passage))


def attention_weights(layer: LayerCapture, last: int) -> torch.Tensor:
    """Causal attention weights of a layer, as its model computes them, of the ``last`` tokens of each row:
    float32 (B, Hq, last, T)."""
    query, key = layer.rotated_query[:, :, -last:].float(), layer.rotated_key.float()
    logits = query @ key.repeat_interleave(layer.group, dim=1).transpose(-1, -2) * layer.scaling
    if layer.softcap is not None:
        logits = torch.tanh(logits / layer.softcap) * layer.softcap
    tokens = key.shape[2]
    places = torch.arange(tokens, device=key.device)
    apart = places[-last:, None] - places
    seen = apart >= 0
    if layer.sliding_window is not None:
        seen &= apart < layer.sliding_window
    return logits.masked_fill(~seen, -torch.inf).softmax(-1)


def _at(weights: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Of weights (B, H, Q, T) those at ``places`` int64 (B, Q): (B, H, Q)."""
    return weights.gather(3, places[:, None, :, None].expand(-1, weights.shape[1], -1, -1))[..., 0]
