"""A slow oracle: reading Memory³ explicit memories, transcribed token by token in float64 numpy.

It shares no code with any implementation. The parts of layers come from ``slow_memory``; the one softmax over
memories, reference BOS and context (eq. 4, §3.1 and §3.2 of arXiv 2407.01178) is written out here, one query
at a time and vectorized over keys only. So are the query chunks that say which token reads what, the overlap
of the leak filter (eq. 6) and cross entropy. ``test_slow_reading.py`` holds all of it against transformers
and torch.

One context without padding, of T tokens; b reference BOS tokens; token i of the context stands at position
b + R + i, where R is the length of the memory interval. How a memory came to be is the caller's; ``kept`` and
``whole`` are two ways. What ``slow_memory`` says about float32 rotary angles holds here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from reference.slow_memory import (
    Floats,
    LayerRecord,
    Weights,
    after_attention,
    embed,
    final_norm,
    forward_layers,
    linear,
    norm,
    projections,
    rotary_of,
    rotate,
    scale_of,
    soft_cap_of,
    window_of,
)

MODES = ("prompt", "generation", "previous")


# --- Memories


@dataclass(frozen=True)
class SlowMemory:
    """What one reference left: for (layer, key-value head) its keys after RoPE and its values, (S, d) each.

    S may differ from head to head; where a pair is absent, the head reads nothing of this memory.
    """

    parts: dict[tuple[int, int], tuple[Floats, Floats]]


def kept(written: dict[int, dict[str, Any]]) -> SlowMemory:
    """The memory that ``slow_memory.slow_memory`` returned."""
    parts: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    for layer, part in written.items():
        for head in range(len(part["keys"])):
            parts[layer, head] = (part["keys"][head], part["values"][head])
    return SlowMemory(parts)


def whole(
    config: Any, arch: str, weights: Weights, bos_ids: list[int], reference_ids: list[int], layers: list[int]
) -> SlowMemory:
    """All tokens of a reference, encoded after the reference BOS, in every key-value head of these layers."""
    parts: dict[tuple[int, int], tuple[Floats, Floats]] = {}
    records = forward_layers(config, arch, weights, [*bos_ids, *reference_ids], max(layers))
    for layer in layers:
        record = records[layer]
        for head in range(len(record.keys)):
            parts[layer, head] = (
                record.rotated_keys[head, len(bos_ids) :],
                record.values[head, len(bos_ids) :],
            )
    return SlowMemory(parts)


# --- Which token reads what


def query_chunks(
    tokens: int, mode: str = "prompt", query_tokens: int = 64, prompt_length: int | None = None
) -> tuple[list[tuple[int, int]], list[int | None]]:
    """The stretches of a context that retrieve, and for each token the one whose memories it reads.

    A stretch is (first token, token after the last); they are numbered in the order in which they are first
    read, and one that no token reads is not listed. ``prompt``: each query chunk reads its own. ``previous``:
    each reads that of the chunk before, the first none. ``generation``: the first ``prompt_length`` tokens
    are the prompt and read as such; a later one reads the last query chunk complete before it, as the tokens
    now stand, or, while there is none, what the whole of the prompt retrieved.
    """
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}")
    if (mode == "generation") != (prompt_length is not None):
        raise ValueError("prompt_length goes with generation")
    if prompt_length is not None and not 0 <= prompt_length <= tokens:
        raise ValueError(f"a prompt of {prompt_length} tokens in a context of {tokens}")
    stretches: list[tuple[int, int]] = []
    chunk_of: list[int | None] = []
    for i in range(tokens):
        c = i // query_tokens
        own, before = c * query_tokens, (c - 1) * query_tokens
        stretch: tuple[int, int] | None
        if mode == "prompt":
            stretch = (own, min(own + query_tokens, tokens))
        elif prompt_length is not None and i < prompt_length:
            stretch = (own, min(own + query_tokens, prompt_length))
        elif c > 0:
            stretch = (before, own)
        elif prompt_length:
            stretch = (0, prompt_length)
        else:
            stretch = None
        if stretch is not None and stretch not in stretches:
            stretches.append(stretch)
        chunk_of.append(None if stretch is None else stretches.index(stretch))
    return stretches, chunk_of


def retrieve_for(
    ids: list[int],
    retrieve: Callable[[list[int]], list[SlowMemory]],
    mode: str = "prompt",
    query_tokens: int = 64,
    prompt_length: int | None = None,
) -> tuple[list[list[SlowMemory]], list[int | None]]:
    """``chunks`` and ``chunk_of`` for ``slow_logits``, given what a stretch of the context retrieves."""
    stretches, chunk_of = query_chunks(len(ids), mode, query_tokens, prompt_length)
    return [retrieve(ids[first:stop]) for first, stop in stretches], chunk_of


# --- Reading


def slow_logits(
    config: Any,
    arch: str,
    weights: Weights,
    bos_ids: list[int],
    ids: list[int],
    chunks: Sequence[Sequence[SlowMemory]] = (),
    chunk_of: Sequence[int | None] | None = None,
    reference_tokens: int = 128,
) -> Floats:
    """Next-token logits, (T, vocab), of the context ``ids``; token i reads ``chunks[chunk_of[i]]``.

    Raises ValueError where a sliding window would hide a part of the memory interval from a token that reads
    memory in that layer.
    """
    if chunk_of is None:
        chunk_of = [None] * len(ids)
    if len(chunk_of) != len(ids):
        raise ValueError(f"chunk_of speaks of {len(chunk_of)} tokens, the context has {len(ids)}")
    read: list[Sequence[SlowMemory]] = [() if chunk is None else chunks[chunk] for chunk in chunk_of]
    layers, first = int(config.num_hidden_layers), len(bos_ids) + reference_tokens
    bos_records = forward_layers(config, arch, weights, bos_ids, layers - 1) if bos_ids else [None] * layers
    hidden = embed(config, arch, weights, ids)
    for layer in range(layers):
        x = hidden  # OLMo 2 norms what attention and MLP give, not what they get
        if arch != "olmo2":
            x = norm(config, arch, weights, f"layers.{layer}.input_layernorm", hidden)
        queries, keys, values = projections(config, arch, weights, layer, x)
        theta, turned = rotary_of(config, arch, layer)
        queries, keys = rotate(queries, theta, turned, first), rotate(keys, theta, turned, first)
        mixed = attend_to_all(config, arch, layer, queries, keys, values, bos_records[layer], read, first)
        hidden = after_attention(config, arch, weights, layer, hidden, mixed)
    return head_logits(config, arch, weights, final_norm(config, arch, weights, hidden))


def attend_to_all(
    config: Any,
    arch: str,
    layer: int,
    queries: Floats,
    keys: Floats,
    values: Floats,
    bos: LayerRecord | None,
    read: list[Sequence[SlowMemory]],
    first: int,
) -> Floats:
    """Eq. 4 in every head, side by side: (T, H · d).

    ``queries`` (H, T, d) and ``keys`` (K, T, d) are after RoPE, their token 0 at position ``first``;
    ``values`` are (K, T, d). ``bos`` is this layer of the reference BOS run alone, None without one.
    """
    heads, tokens, d = queries.shape
    scale, cap, window = scale_of(config, arch), soft_cap_of(config, arch), window_of(config, arch, layer)
    bos_tokens = 0 if bos is None else bos.keys.shape[1]
    mixed = np.zeros((tokens, heads * d))
    for h in range(heads):
        group = h // (heads // len(keys))
        for i in range(tokens):
            position = first + i
            seen_keys: list[Floats] = []
            seen_values: list[Floats] = []
            for memory in read[i]:
                if (layer, group) in memory.parts and len(memory.parts[layer, group][0]) > 0:
                    if window is not None and position - bos_tokens >= window:
                        raise ValueError(f"layer {layer} sees {window} tokens: too few for memory")
                    seen_keys.append(memory.parts[layer, group][0])
                    seen_values.append(memory.parts[layer, group][1])
            # A key at position q is seen when position - q < window.
            oldest = 0 if window is None else max(0, position - window + 1)
            if bos is not None and oldest < bos_tokens:
                seen_keys.append(bos.rotated_keys[group, oldest:])
                seen_values.append(bos.values[group, oldest:])
            from_context = max(0, oldest - first)
            seen_keys.append(keys[group, from_context : i + 1])
            seen_values.append(values[group, from_context : i + 1])
            logits = np.concatenate(seen_keys) @ queries[h, i] * scale
            if cap is not None:
                logits = cap * np.tanh(logits / cap)
            powers = np.exp(logits - logits.max())
            mixed[i, h * d : (h + 1) * d] = powers / powers.sum() @ np.concatenate(seen_values)
    return mixed


def head_logits(config: Any, arch: str, weights: Weights, hidden: Floats) -> Floats:
    """The language-model head, (T, vocab), on what the final norm gave."""
    if config.tie_word_embeddings:
        name = "embed_in" if arch == "gpt_neox" else "embed_tokens"
    else:  # GPT-NeoX's head has another name in files than in a live model
        name = "embed_out" if "embed_out.weight" in weights else "lm_head"
    logits = linear(weights, name, hidden)
    cap = config.final_logit_softcapping if arch in ("gemma2", "gemma3") else None
    return logits if cap is None else cap * np.tanh(logits / cap)


# --- What evaluation adds


def token_losses(logits: Floats, ids: list[int]) -> Floats:
    """(T - 1,) nats: entry i is the loss of token i + 1, predicted after token i."""
    losses = np.zeros(len(ids) - 1)
    for i in range(len(ids) - 1):
        top = float(logits[i].max())
        losses[i] = top + float(np.log(np.exp(logits[i] - top).sum())) - float(logits[i, ids[i + 1]])
    return losses


def cross_entropy(logits: Floats, ids: list[int], first: int = 1) -> float:
    """Mean loss, in nats per token, of the tokens from ``first`` on; token 0 is never predicted."""
    if not 1 <= first < len(ids):
        raise ValueError(f"no token from {first} on is predicted in a context of {len(ids)}")
    return float(token_losses(logits, ids)[first - 1 :].mean())


def longest_match(text: list[int], reference: list[int]) -> int:
    """N of eq. 6: the most tokens of the reference found in the text, in order but not necessarily adjacent
    in either, the first and the last at most twice the reference's length apart in the text.

    Tries every choice of the reference's tokens, longest first: for references of a dozen tokens.
    """
    for n in range(len(reference), 0, -1):
        for chosen in combinations(reference, n):
            for start in range(len(text)):
                if text[start] == chosen[0] and found_within(text, start, chosen, 2 * len(reference)):
                    return n
    return 0


def found_within(text: list[int], start: int, wanted: tuple[int, ...], span: int) -> bool:
    """Is ``wanted`` in the text in order, its first token at ``start``, its last at most ``span`` later?"""
    found = 1  # taking the earliest place for each next token leaves the most room for the others
    for i in range(start + 1, min(start + span, len(text) - 1) + 1):
        if found < len(wanted) and text[i] == wanted[found]:
            found += 1
    return found == len(wanted)


def overlap(text: list[int], reference: list[int]) -> float:
    """Eq. 6: the longest match over the reference's length; a reference leaks when it is over 2/3."""
    if not reference:
        raise ValueError("an empty reference overlaps with nothing")
    return longest_match(text, reference) / len(reference)
