"""Reading: attention of a context over explicit memories, the reference BOS and itself, in one softmax
(Memory³ §3.1, eq. 4).

Design:

* The model runs its own code; its attention is taken over by the one function here, as capturing does
  (:mod:`m3build.interception`), for one forward pass in one thread.
* Memories and reference BOS are no part of the cache: its length, positions and masks stay those of the
  context, and whatever transformers does with a cache (beams, chunked prefill, sliding windows) stays right.
* Keys of the context are not copied to be joined with memories. Each part's logits are computed where its
  keys lie; the logits are joined, then one softmax runs over them.
* Query chunks are no loop (Remark 8): tokens are regrouped by chunk with one gather, so that a batched matrix
  product meets each chunk's queries with its own memories.
* Nothing here switches gradients off: training reads through the same function.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.functional import dropout as drop
from transformers.masking_utils import sdpa_mask

from m3build.capture import check_standard, layer_of
from m3build.chunk_memories import LayerMemory
from m3build.interception import Attended, Takeover, attention_taken
from m3build_formats.errors import MismatchError

# Logits of this many (row, head, query, key) at once: 256 MiB in float32. Longer prompts go in blocks of
# queries.
_MOST_LOGITS = 1 << 26


@dataclass(frozen=True, slots=True)
class ReferenceBos:
    """Keys (after RoPE) and values of the reference BOS, of every layer: (1, Hkv, b, d) each. Its tokens have
    positions 0 to b − 1."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def tokens(self) -> int:
        """b, its number of tokens."""
        return int(self.keys[0].shape[2]) if self.keys else 0


@dataclass(frozen=True, slots=True)
class ChunkLayout:
    """Which query chunk each token of a pass belongs to, as index tables.

    ``chunk_of`` int64 (B, T): a chunk from 0 to ``chunks`` − 1, or −1 for a token that reads no memory;
    ``slot_of`` int64 (B, T): the token's place in the regrouped order; ``token_at`` int64 (B, chunks ·
    width): the reverse, with any token in places that stay empty.
    """

    chunk_of: torch.Tensor
    slot_of: torch.Tensor
    token_at: torch.Tensor
    chunks: int
    width: int
    # One chunk and every token in it, as in decoding: nothing needs regrouping.
    plain: bool

    @classmethod
    def of(cls, chunk_of: torch.Tensor, chunks: int) -> ChunkLayout:
        """The tables for ``chunk_of`` (see above). Tokens of a chunk may stand anywhere in their row."""
        rows, tokens = chunk_of.shape
        device = chunk_of.device
        if chunks == 1 and bool((chunk_of == 0).all()):
            own = torch.arange(tokens, device=device).expand(rows, tokens)
            return cls(chunk_of, own, own, 1, tokens, True)
        member = chunk_of[:, :, None] == torch.arange(chunks, device=device)
        rank = (member.cumsum(1) - 1).gather(2, chunk_of.clamp(min=0)[:, :, None])[:, :, 0]
        width = max(1, int(member.sum(1).max())) if member.numel() else 1
        reads = chunk_of >= 0
        slot_of = torch.where(reads, chunk_of * width + rank, 0)
        token_at = torch.zeros(rows, chunks * width + 1, dtype=torch.int64, device=device)
        # Tokens that read nothing go to a place of their own, which is cut off.
        places = torch.where(reads, slot_of, chunks * width)
        token_at.scatter_(1, places, torch.arange(tokens, device=device).expand(rows, tokens))
        return cls(chunk_of, slot_of, token_at[:, :-1], chunks, width, False)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one forward pass over a context reads beside it.

    ``positions`` int64 (B, T): those of the pass's tokens, which the model is given as ``position_ids`` too;
    ``last_position`` is their maximum. ``memories`` maps memory layers to what each query chunk reads there;
    empty, or ``layout`` None, for no memories.
    """

    bos: ReferenceBos
    positions: torch.Tensor
    last_position: int
    memories: Mapping[int, LayerMemory]
    layout: ChunkLayout | None
    # By mask and number of keys: what is hidden, which is the same in all layers that share them.
    _hidden: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor | None]] = field(default_factory=dict)

    def hidden(self, attention_mask: torch.Tensor, seen: int) -> torch.Tensor | None:
        """Bool (B, 1, 1, T, S), True where a token may not attend to one of the ``seen`` context tokens; None
        where nothing is hidden."""
        # The mask is kept too, so that its identity is not given to another.
        mask, found = self._hidden.get((id(attention_mask), seen), (None, None))
        if mask is None:
            own = attention_mask[:, :, None, :, :seen]
            found = None if bool(own.all()) else ~own
            self._hidden[id(attention_mask), seen] = attention_mask, found
        return found


@contextmanager
def reading(config: Any, what: Reading) -> Iterator[None]:
    """While inside, a forward pass (in this thread) of the model that has this config reads ``what``.

    The pass raises MismatchError where a layer's attention is not the standard causal kind, or where a memory
    layer's sliding window hides memories from a token of the pass.
    """
    with attention_taken(config, Takeover(partial(_attention, what), _mask)):
        yield


def _attention(
    what: Reading,
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> Attended:
    """In place of the model's attention. ``attention_mask`` is bool (B, 1, T, S), True = attend."""
    layer = layer_of(module)
    check_standard(module, query, key, value, rest)
    if attention_mask is None:
        raise MismatchError(f"{type(module).__name__} builds no mask that m3build can read with.")
    scale = float(query.shape[-1]) ** -0.5 if scaling is None else float(scaling)
    window = rest.get("sliding_window")
    _check_window(module, layer, window, what)
    rows, heads, tokens, d = query.shape
    kv_heads = key.shape[1]
    grouped = query.view(rows, kv_heads, heads // kv_heads, tokens, d)
    parts: list[_MemoryPart | _BosPart] = [_bos_part(what, layer, grouped, window)]
    memory = what.memories.get(layer)
    if memory is not None and what.layout is not None:
        parts.insert(0, _MemoryPart(memory, what.layout, grouped))
    logits = _Logits(scale, rest.get("softcap"), dropout if module.training else 0.0)
    hidden = what.hidden(attention_mask, key.shape[2])
    out = _one_softmax(grouped, parts, key, value, hidden, logits)
    return out.view(rows, heads, tokens, d).transpose(1, 2).contiguous(), None


@dataclass(frozen=True, slots=True)
class _Logits:
    """The attention module's own settings."""

    scaling: float
    softcap: float | None
    dropout: float


class _MemoryPart:
    """Logits of queries over the memories that their chunk reads, and the values those weigh."""

    def __init__(self, memory: LayerMemory, layout: ChunkLayout, grouped: torch.Tensor) -> None:
        self._memory, self._layout = memory, layout
        keys = memory.keys.to(grouped.dtype)
        # (B, C, Hkv, N, d) against queries (B, C, Hkv, G·W, d).
        queries = self._regroup(grouped)
        rows, chunks, kv_heads, group, width, d = queries.shape
        products = queries.reshape(rows, chunks, kv_heads, group * width, d) @ keys.transpose(-1, -2)
        n = keys.shape[3]
        self.logits = self._back(products.view(rows, chunks, kv_heads, group, width, n))
        # (B, Hkv, 1, T, N): all but used slots of the memories that the token's chunk reads.
        if layout.plain:
            self.hidden = ~memory.mask[:, 0, :, None, None, :]
        else:
            # (B, 1, 1, T, 1): tokens that read nothing.
            self._idle = (layout.chunk_of < 0)[:, None, None, :, None]
            at = layout.chunk_of.clamp(min=0)[:, :, None, None].expand(-1, -1, *memory.mask.shape[2:])
            self.hidden = ~memory.mask.gather(1, at).permute(0, 2, 1, 3)[:, :, None] | self._idle

    def weighed(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights (B, Hkv, G, T, N) times values: (B, Hkv, G, T, d)."""
        queries = self._regroup(weights)
        rows, chunks, kv_heads, group, width, n = queries.shape
        values = self._memory.values.to(weights.dtype)
        products = queries.reshape(rows, chunks, kv_heads, group * width, n) @ values
        found = self._back(products.view(rows, chunks, kv_heads, group, width, values.shape[-1]))
        # A token that reads nothing was given another's sum.
        return found if self._layout.plain else found.masked_fill(self._idle, 0)

    def _regroup(self, by_token: torch.Tensor) -> torch.Tensor:
        """(B, Hkv, G, T, x) → (B, C, Hkv, G, W, x)."""
        if self._layout.plain:
            return by_token[:, None]
        rows, kv_heads, group, _, x = by_token.shape
        at = self._layout.token_at[:, None, None, :, None].expand(-1, kv_heads, group, -1, x)
        found = by_token.gather(3, at)
        shape = (rows, kv_heads, group, self._layout.chunks, self._layout.width, x)
        return found.view(shape).permute(0, 3, 1, 2, 4, 5)

    def _back(self, by_chunk: torch.Tensor) -> torch.Tensor:
        """(B, C, Hkv, G, W, x) → (B, Hkv, G, T, x); a token that reads nothing gets any other's
        numbers."""
        if self._layout.plain:
            return by_chunk[:, 0]
        rows, chunks, kv_heads, group, width, x = by_chunk.shape
        flat = by_chunk.permute(0, 2, 3, 1, 4, 5).reshape(rows, kv_heads, group, chunks * width, x)
        at = self._layout.slot_of[:, None, None, :, None].expand(-1, kv_heads, group, -1, x)
        return flat.gather(3, at)


class _BosPart:
    """The same over the reference BOS."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, grouped: torch.Tensor, hidden: torch.Tensor | None
    ) -> None:
        self._values = values.to(grouped.dtype)
        self.logits = _times(grouped, keys.to(grouped.dtype).transpose(-1, -2))
        self.hidden = hidden

    def weighed(self, weights: torch.Tensor) -> torch.Tensor:
        """Weights (B, Hkv, G, T, b) times values."""
        return _times(weights, self._values)


def _bos_part(what: Reading, layer: int, grouped: torch.Tensor, window: int | None) -> _BosPart:
    hidden = None
    if window is not None and what.last_position >= window:
        places = torch.arange(what.bos.tokens, device=grouped.device)
        hidden = (what.positions[:, :, None] - places >= window)[:, None, None]
    return _BosPart(what.bos.keys[layer], what.bos.values[layer], grouped, hidden)


def _times(grouped: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """(B, Hkv, G, T, x) times (B or 1, Hkv, x, y): (B, Hkv, G, T, y). The query heads of a group stand beside
    its tokens, as rows of one product; broadcast, a product would copy the matrix for each of them."""
    rows, kv_heads, group, tokens, x = grouped.shape
    product = grouped.reshape(rows, kv_heads, group * tokens, x) @ matrix
    return product.view(rows, kv_heads, group, tokens, matrix.shape[-1])


def _one_softmax(
    grouped: torch.Tensor,
    parts: Sequence[_MemoryPart | _BosPart],
    key: torch.Tensor,
    value: torch.Tensor,
    hidden: torch.Tensor | None,
    how: _Logits,
) -> torch.Tensor:
    """(B, Hkv, G, T, d): the values of all parts and of the context, weighed by one softmax."""
    rows, kv_heads, group, tokens, _ = grouped.shape
    beside = [_visible(part.logits, part.hidden, how) for part in parts]
    sizes = [part.shape[-1] for part in beside]
    count, seen = sum(sizes), key.shape[2]
    block = max(1, _MOST_LOGITS // max(1, rows * kv_heads * group * (seen + count)))
    keys = key.transpose(-1, -2)
    blocks: list[torch.Tensor] = []
    weights_beside: list[torch.Tensor] = []
    for start in range(0, tokens, block):
        here = slice(start, start + block)
        own_hidden = None if hidden is None else hidden[:, :, :, here]
        own = _visible(_times(grouped[:, :, :, here], keys), own_hidden, how)
        logits = torch.cat([*(part[:, :, :, here] for part in beside), own], dim=-1)
        weights = logits.softmax(-1)
        if how.dropout:
            weights = drop(weights, how.dropout)
        weights = weights.to(grouped.dtype)
        weights_beside.append(weights[..., :count])
        blocks.append(_times(weights[..., count:], value))
    out = torch.cat(blocks, dim=3) if len(blocks) > 1 else blocks[0]
    weights = torch.cat(weights_beside, dim=3) if len(weights_beside) > 1 else weights_beside[0]
    for part, own_weights in zip(parts, torch.split(weights, sizes, dim=-1), strict=True):
        out = out + part.weighed(own_weights)
    return out


def _visible(products: torch.Tensor, hidden: torch.Tensor | None, how: _Logits) -> torch.Tensor:
    """Float32 logits of products of queries and keys (B, Hkv, G, T, n)."""
    logits = products.float() * how.scaling
    if how.softcap is not None:
        logits = torch.tanh(logits / how.softcap) * how.softcap
    if hidden is None:
        return logits
    # A finite floor: a padding token may see nothing at all, and must not become NaN.
    return logits.masked_fill(hidden, torch.finfo(torch.float32).min)


def _check_window(module: torch.nn.Module, layer: int, window: int | None, what: Reading) -> None:
    """Refuse a memory layer that cannot look back as far as the memory interval, which starts after the
    reference BOS."""
    if window is None or layer not in what.memories or what.layout is None:
        return
    if what.last_position - what.bos.tokens >= window:
        raise MismatchError(
            f"layer {layer} ({type(module).__name__}) looks back {window} tokens, so that a token at"
            f" position {what.last_position} cannot read the memories, which start at {what.bos.tokens}:"
            " keep memory in layers without a sliding window (--memory-layers), or the context shorter."
        )


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """SDPA's mask, always built."""
    kwargs["allow_is_causal_skip"] = False
    built: torch.Tensor | None = sdpa_mask(*args, **kwargs)
    return built
