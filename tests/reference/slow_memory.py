"""A slow oracle: writing a Memory³ explicit memory, transcribed token by token in float64 numpy.

It shares no code with any implementation. It takes a model's numbers (state dict and config) and computes
the forward pass itself, for the nine architectures of ``tests/models.py``, up to the key and value
projections of the deepest memory layer; then it scores, chooses and keeps (§3.1 to §3.3 of arXiv
2407.01178). Every linear map is applied to one token and every logit is one dot product, so equal inputs give
bit-equal outputs and ties are exact. ``test_slow_memory.py`` holds it against transformers' own models.

Two things follow from computing in float64 throughout. Rotary angles are those of the formula; transformers
computes them in float32, so its keys differ by up to 5e-6 within 128 tokens even after ``model.double()``.
And Gemma's embedding scale is the square root itself, not its rounding to the dtype of the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = dict[str, Floats]

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt_neox")
RULES = ("memory3", "memory3-exp", "value-norm", "observed", "key-norm")


@dataclass(frozen=True)
class LayerRecord:
    """What one layer computed. H query heads, K key-value heads, T tokens, d dimensions per head."""

    hidden: Floats  # (T, width): what entered the layer
    queries: Floats  # (H, T, d): after any query norm, before RoPE
    keys: Floats  # (K, T, d): after any key norm, before RoPE
    values: Floats  # (K, T, d)
    rotated_queries: Floats  # (H, T, d)
    rotated_keys: Floats  # (K, T, d)
    attention: Floats  # (H, T, T): causal attention weights, row = query


# --- The model's numbers


def load(model: Any, arch: str) -> tuple[Any, Weights]:
    """Config and weights in float64, from a transformers directory with safetensors or from a model."""
    if arch not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {arch!r}")
    if isinstance(model, str | Path):
        from safetensors.torch import load_file
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model)
        state: dict[str, Any] = {}
        for file in sorted(Path(model).glob("*.safetensors")):
            state.update(load_file(file))
    else:
        config = model.config
        state = model.state_dict()
    expected = "gemma3_text" if arch == "gemma3" else arch
    if config.model_type != expected:
        raise ValueError(f"the model is a {config.model_type}, not a {arch}")
    if getattr(config, "use_bidirectional_attention", None):
        raise ValueError("bidirectional attention is not transcribed")
    prefix = "gpt_neox." if arch == "gpt_neox" else "model."
    weights = {name.removeprefix(prefix): tensor.double().cpu().numpy() for name, tensor in state.items()}
    return config, weights


def head_dimensions(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def key_value_heads(config: Any, arch: str) -> int:
    return int(config.num_attention_heads if arch == "gpt_neox" else config.num_key_value_heads)


def scale_of(config: Any, arch: str) -> float:
    """What a query-key product is multiplied by."""
    if arch in ("gemma2", "gemma3"):
        return 1.0 / math.sqrt(config.query_pre_attn_scalar)
    return 1.0 / math.sqrt(head_dimensions(config))


def soft_cap_of(config: Any, arch: str) -> float | None:
    """The cap on attention logits. Gemma 3's config has the field, but its attention does not read it."""
    cap = config.attn_logit_softcapping if arch == "gemma2" else None
    return None if cap is None else float(cap)


def window_of(config: Any, arch: str, layer: int) -> int | None:
    """How many tokens, itself included, a token of this layer may look back on; None for all."""
    if arch in ("mistral", "phi3"):
        window = config.sliding_window
    elif arch in ("qwen2", "qwen3", "gemma2", "gemma3"):
        window = config.sliding_window if config.layer_types[layer] == "sliding_attention" else None
    else:
        window = None
    return None if window is None else int(window)


def rotary_of(config: Any, arch: str, layer: int) -> tuple[float, int]:
    """The base of the rotary embedding, and how many dimensions of a head it turns."""
    parameters = config.rope_parameters
    if arch == "gemma3":
        parameters = parameters[config.layer_types[layer]]
    if parameters["rope_type"] != "default":
        raise ValueError(f"rotary embedding of type {parameters['rope_type']!r} is not transcribed")
    fraction = parameters.get("partial_rotary_factor", 1.0) if arch in ("phi3", "gpt_neox") else 1.0
    return float(parameters["rope_theta"]), int(head_dimensions(config) * fraction)


# --- The parts of a layer, each for one token or one head


def linear(weights: Weights, name: str, rows: Floats) -> Floats:
    """Weight and, where there is one, bias; one token at a time."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    result = np.zeros((len(rows), len(weight)))
    for t in range(len(rows)):
        result[t] = np.dot(weight, rows[t])
        if bias is not None:
            result[t] += bias
    return result


def norm(config: Any, arch: str, weights: Weights, name: str, rows: Floats) -> Floats:
    """LayerNorm in GPT-NeoX, RMSNorm elsewhere, times 1 + weight in Gemma."""
    result = np.zeros_like(rows)
    weight = weights[f"{name}.weight"]
    for t in range(len(rows)):
        row = rows[t]
        if arch == "gpt_neox":
            centred = row - row.mean()
            spread = math.sqrt(float(np.mean(centred**2)) + config.layer_norm_eps)
            result[t] = centred / spread * weight + weights[f"{name}.bias"]
        else:
            size = math.sqrt(float(np.mean(row**2)) + config.rms_norm_eps)
            factor = 1.0 + weight if arch in ("gemma2", "gemma3") else weight
            result[t] = row / size * factor
    return result


def activation(name: str, x: float) -> float:
    if name == "silu":
        return x / (1.0 + math.exp(-x)) if x >= 0 else x * math.exp(x) / (1.0 + math.exp(x))
    if name == "gelu":
        return 0.5 * x * (1.0 + math.erf(x / math.sqrt(2.0)))
    if name == "gelu_pytorch_tanh":
        return 0.5 * x * (1.0 + math.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"activation {name!r} is not transcribed")


def activate(config: Any, arch: str, rows: Floats) -> Floats:
    name = config.hidden_activation if arch in ("gemma2", "gemma3") else config.hidden_act
    result = np.zeros_like(rows)
    for index, x in np.ndenumerate(rows):
        result[index] = activation(name, float(x))
    return result


def split_heads(rows: Floats, heads: int) -> Floats:
    """(T, heads · d) to (heads, T, d)."""
    d = rows.shape[1] // heads
    return np.stack([rows[:, h * d : (h + 1) * d] for h in range(heads)])


def projections(
    config: Any, arch: str, weights: Weights, layer: int, x: Floats
) -> tuple[Floats, Floats, Floats]:
    """Queries, keys and values of one layer by head, after any query and key norm, before RoPE."""
    heads, groups, d = config.num_attention_heads, key_value_heads(config, arch), head_dimensions(config)
    if arch == "gpt_neox":
        fused = split_heads(linear(weights, f"layers.{layer}.attention.query_key_value", x), heads)
        return fused[:, :, :d].copy(), fused[:, :, d : 2 * d].copy(), fused[:, :, 2 * d :].copy()
    block = f"layers.{layer}.self_attn"
    if arch == "phi3":
        fused = linear(weights, f"{block}.qkv_proj", x)
        q, k, v = (
            fused[:, : heads * d],
            fused[:, heads * d : (heads + groups) * d],
            fused[:, (heads + groups) * d :],
        )
        return split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    q = linear(weights, f"{block}.q_proj", x)
    k = linear(weights, f"{block}.k_proj", x)
    v = linear(weights, f"{block}.v_proj", x)
    if arch == "olmo2":  # normed over all heads at once
        q = norm(config, arch, weights, f"{block}.q_norm", q)
        k = norm(config, arch, weights, f"{block}.k_norm", k)
    queries, keys, values = split_heads(q, heads), split_heads(k, groups), split_heads(v, groups)
    if arch in ("qwen3", "gemma3"):  # normed head by head
        for h in range(heads):
            queries[h] = norm(config, arch, weights, f"{block}.q_norm", queries[h])
        for h in range(groups):
            keys[h] = norm(config, arch, weights, f"{block}.k_norm", keys[h])
    return queries, keys, values


def rotate(vectors: Floats, theta: float, dimensions: int, first: int = 0) -> Floats:
    """RoPE at positions first, first + 1, …: of the turned dimensions p pairs with p + half; others stay."""
    result = vectors.copy()
    half = dimensions // 2
    for h in range(vectors.shape[0]):
        for t in range(vectors.shape[1]):
            for p in range(half):
                angle = (first + t) * theta ** (-2.0 * p / dimensions)
                a, b = vectors[h, t, p], vectors[h, t, p + half]
                result[h, t, p] = a * math.cos(angle) - b * math.sin(angle)
                result[h, t, p + half] = b * math.cos(angle) + a * math.sin(angle)
    return result


def logit(query: Floats, key: Floats, scale: float, cap: float | None) -> float:
    value = float(np.dot(query, key)) * scale
    return value if cap is None else cap * math.tanh(value / cap)


def softmax(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(value - top) for value in logits]
    total = math.fsum(powers)
    return [power / total for power in powers]


def causal_attention(
    queries: Floats, keys: Floats, scale: float, cap: float | None, window: int | None
) -> Floats:
    """Attention weights of the rotated queries over the rotated keys at or before them, within the window."""
    heads, tokens, _ = queries.shape
    group = heads // len(keys)
    weights = np.zeros((heads, tokens, tokens))
    for h in range(heads):
        for i in range(tokens):
            first = 0 if window is None else max(0, i - window + 1)
            row = softmax(
                [logit(queries[h, i], keys[h // group, j], scale, cap) for j in range(first, i + 1)]
            )
            weights[h, i, first : i + 1] = row
    return weights


def mix(attention: Floats, values: Floats) -> Floats:
    """Each head's weighted values, heads side by side: (T, H · d)."""
    heads, tokens, _ = attention.shape
    group, d = heads // len(values), values.shape[2]
    result = np.zeros((tokens, heads * d))
    for h in range(heads):
        for i in range(tokens):
            for j in range(i + 1):
                result[i, h * d : (h + 1) * d] += attention[h, i, j] * values[h // group, j]
    return result


def mlp(config: Any, arch: str, weights: Weights, layer: int, x: Floats) -> Floats:
    block = f"layers.{layer}.mlp"
    if arch == "gpt_neox":
        inner = activate(config, arch, linear(weights, f"{block}.dense_h_to_4h", x))
        return linear(weights, f"{block}.dense_4h_to_h", inner)
    if arch == "phi3":
        fused = linear(weights, f"{block}.gate_up_proj", x)
        width = fused.shape[1] // 2
        gate, up = fused[:, :width], fused[:, width:]
    else:
        gate, up = linear(weights, f"{block}.gate_proj", x), linear(weights, f"{block}.up_proj", x)
    return linear(weights, f"{block}.down_proj", activate(config, arch, gate) * up)


# --- Layers and the forward pass


def embed(config: Any, arch: str, weights: Weights, ids: list[int]) -> Floats:
    table = weights["embed_in.weight" if arch == "gpt_neox" else "embed_tokens.weight"]
    rows = np.zeros((len(ids), table.shape[1]))
    for t, token in enumerate(ids):
        rows[t] = table[token]
        if arch in ("gemma2", "gemma3"):
            rows[t] *= math.sqrt(config.hidden_size)
    return rows


def attend(config: Any, arch: str, weights: Weights, layer: int, hidden: Floats) -> LayerRecord:
    """A layer's attention up to its weights."""
    x = hidden  # OLMo 2 norms what attention and MLP give, not what they get
    if arch != "olmo2":
        x = norm(config, arch, weights, f"layers.{layer}.input_layernorm", hidden)
    queries, keys, values = projections(config, arch, weights, layer, x)
    theta, turned = rotary_of(config, arch, layer)
    rotated_queries, rotated_keys = rotate(queries, theta, turned), rotate(keys, theta, turned)
    attention = causal_attention(
        rotated_queries,
        rotated_keys,
        scale_of(config, arch),
        soft_cap_of(config, arch),
        window_of(config, arch, layer),
    )
    return LayerRecord(hidden, queries, keys, values, rotated_queries, rotated_keys, attention)


def finish(config: Any, arch: str, weights: Weights, layer: int, record: LayerRecord) -> Floats:
    """The rest of a layer that attends to its own tokens only; gives the next layer's input."""
    return after_attention(config, arch, weights, layer, record.hidden, mix(record.attention, record.values))


def after_attention(
    config: Any, arch: str, weights: Weights, layer: int, hidden: Floats, mixed: Floats
) -> Floats:
    """Output projection, MLP, residuals and norms, from what entered the layer, (T, width), and what its
    heads gave, side by side, (T, H · d); gives the next layer's input.
    """
    block = f"layers.{layer}"
    output = "attention.dense" if arch == "gpt_neox" else "self_attn.o_proj"
    attended = linear(weights, f"{block}.{output}", mixed)

    def normed(name: str, rows: Floats) -> Floats:
        return norm(config, arch, weights, f"{block}.{name}", rows)

    if arch == "gpt_neox" and config.use_parallel_residual:
        beside = mlp(config, arch, weights, layer, normed("post_attention_layernorm", hidden))
        return hidden + attended + beside
    if arch in ("gemma2", "gemma3"):
        middle = hidden + normed("post_attention_layernorm", attended)
        inner = mlp(config, arch, weights, layer, normed("pre_feedforward_layernorm", middle))
        return middle + normed("post_feedforward_layernorm", inner)
    if arch == "olmo2":
        middle = hidden + normed("post_attention_layernorm", attended)
        return middle + normed("post_feedforward_layernorm", mlp(config, arch, weights, layer, middle))
    middle = hidden + attended
    return middle + mlp(config, arch, weights, layer, normed("post_attention_layernorm", middle))


def slow_forward(model: Any, arch: str, ids: list[int], deepest: int) -> list[LayerRecord]:
    """Records of layers 0 to ``deepest``; of the deepest, nothing after its attention weights is computed."""
    config, weights = load(model, arch)
    return forward_layers(config, arch, weights, ids, deepest)


def forward_layers(
    config: Any, arch: str, weights: Weights, ids: list[int], deepest: int
) -> list[LayerRecord]:
    """``slow_forward`` of a model that is loaded already."""
    hidden = embed(config, arch, weights, ids)
    records: list[LayerRecord] = []
    for layer in range(deepest + 1):
        if records:
            hidden = finish(config, arch, weights, layer - 1, records[-1])
        records.append(attend(config, arch, weights, layer, hidden))
    return records


def slow_last_hidden(model: Any, arch: str, records: list[LayerRecord]) -> Floats:
    """The model's output before the LM head, from the records of all of its layers."""
    config, weights = load(model, arch)
    if len(records) != config.num_hidden_layers:
        raise ValueError("needs the records of all layers")
    return final_norm(config, arch, weights, finish(config, arch, weights, len(records) - 1, records[-1]))


def final_norm(config: Any, arch: str, weights: Weights, hidden: Floats) -> Floats:
    return norm(config, arch, weights, "final_layer_norm" if arch == "gpt_neox" else "norm", hidden)


# --- Choosing and keeping


def token_scores(
    record: LayerRecord, bos: int, rule: str, head: int, scale: float, cap: float | None
) -> Floats:
    """A score for each of the reference's own tokens in one key-value head; ``bos`` tokens stand before."""
    tokens = record.keys.shape[1] - bos
    group = len(record.queries) // len(record.keys)
    scores = np.zeros(tokens)
    if rule == "key-norm":
        for j in range(tokens):
            scores[j] = math.sqrt(
                float(np.dot(record.rotated_keys[head, bos + j], record.rotated_keys[head, bos + j]))
            )
        return scores
    for g in range(group):
        h = head * group + g
        for i in range(tokens):
            if rule == "observed":
                received = [float(record.attention[h, bos + i, bos + j]) for j in range(tokens)]
            else:
                query = record.queries[h, bos + i]
                logits = [logit(query, record.keys[head, bos + j], scale, cap) for j in range(tokens)]
                received = [math.exp(x) for x in logits] if rule == "memory3-exp" else softmax(logits)
            for j in range(tokens):
                scores[j] += received[j]
    if rule == "value-norm":
        for j in range(tokens):
            scores[j] *= math.sqrt(float(np.dot(record.values[head, bos + j], record.values[head, bos + j])))
    return scores


def choose(scores: Floats, sparse_tokens: int) -> list[int]:
    """The positions with the highest scores, of equal ones the earlier, in ascending order."""
    best_first = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
    return sorted(best_first[:sparse_tokens])


def slow_memory(
    model: Any,
    arch: str,
    reference_bos_ids: list[int],
    reference_ids: list[int],
    memory_layers: list[int],
    sparse_tokens: int,
    rule: str = "memory3",
) -> dict[int, dict[str, Any]]:
    """Write the memory of one reference.

    ``model`` is a transformers directory or a causal-LM model. For every memory layer the result holds
    ``scores`` (key-value heads, n), ``positions`` (key-value heads, kept) counted from the reference's first
    token and ascending, and at those positions ``keys`` after RoPE and ``values`` (key-value heads, kept, d);
    kept = min(sparse_tokens, n).
    """
    if rule not in RULES:
        raise ValueError(f"unknown rule {rule!r}")
    config, _ = load(model, arch)
    bos, n = len(reference_bos_ids), len(reference_ids)
    kept, heads, d = min(sparse_tokens, n), key_value_heads(config, arch), head_dimensions(config)
    records = slow_forward(model, arch, [*reference_bos_ids, *reference_ids], max(memory_layers))
    memory: dict[int, dict[str, Any]] = {}
    for layer in memory_layers:
        record = records[layer]
        scores = np.zeros((heads, n))
        positions = np.zeros((heads, kept), dtype=np.int64)
        keys, values = np.zeros((heads, kept, d)), np.zeros((heads, kept, d))
        for head in range(heads):
            scores[head] = token_scores(
                record, bos, rule, head, scale_of(config, arch), soft_cap_of(config, arch)
            )
            for slot, j in enumerate(choose(scores[head], kept)):
                positions[head, slot] = j
                keys[head, slot] = record.rotated_keys[head, bos + j]
                values[head, slot] = record.values[head, bos + j]
        memory[layer] = {"scores": scores, "positions": positions, "keys": keys, "values": values}
    return memory
