"""What a codec loses, measured on memories that it was not trained on.

Reconstruction error alone says little about what a model will read, so four things are measured, by layer:
keys, values, the attention logits of the model's own queries against the kept keys, and the attention output
over the kept tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.codec.codec import Codec

Array = npt.NDArray[Any]
_BLOCK = 64


def measure_errors(
    codec: Codec,
    codes: npt.NDArray[np.uint8],
    keys: Array,
    values: Array,
    positions: npt.NDArray[np.uint8],
    queries: Array,
    scaling: Sequence[float],
    softcap: Sequence[float | None] | None = None,
) -> dict[str, Any]:
    """Errors of R held-out references, as JSON values.

    ``codes`` (R, row_bytes) uint8 are those of ``keys``, ``values`` (R, N_heads, S, d), ``positions`` (R,
    N_heads, S) uint8 with 255 for unused; ``queries`` (R, Q, G, N_heads, d) with the same rotation as the
    keys, all-zero ones are left out; ``scaling`` and ``softcap`` one number for each layer of the head list,
    in its order.

    ``key_error``, ``value_error``: squared error over the squared distance to the mean of each layer and
    head. ``logit_error``: squared error of the logits of one query over the kept tokens, both taken about
    their mean (a shift changes no softmax), over all queries. ``output_error``: squared error of softmax ·
    values over the squared output. ``errors_by_layer`` has the four for each layer, with its number;
    ``errors_by_head`` the first two for each entry of the head list. None where nothing could be measured.
    """
    heads = codec.heads
    layers = sorted({layer for layer, _ in heads})
    rank = [layers.index(layer) for layer, _ in heads]
    scales = np.array([scaling[r] for r in rank])
    caps = [None if softcap is None else softcap[r] for r in rank]
    # [what, error or reference, head]
    sums = np.zeros((4, 2, len(heads)))
    centres = [_means(vectors, positions != 255) for vectors in (keys, values)]
    for at in range(0, len(keys), _BLOCK):
        part = slice(at, at + _BLOCK)
        used = positions[part] != 255
        exact = (keys[part].astype(np.float64), values[part].astype(np.float64))
        decoded = [side.astype(np.float64) for side in codec.decode_rows(codes[part], positions[part])]
        for side in range(2):
            weight = used[..., None]
            sums[side, 0] += _per_head(weight * (decoded[side] - exact[side]) ** 2)
            sums[side, 1] += _per_head(weight * (exact[side] - centres[side][None, :, None]) ** 2)
        for head in range(len(heads)):
            # (references, slots, dim) and (references, queries · query heads, dim)
            asked = queries[part, :, :, head].astype(np.float64).reshape(used.shape[0], -1, codec.head_dim)
            of_head = [(exact[side][:, head], decoded[side][:, head]) for side in range(2)]
            sums[2:, :, head] += _attention(
                asked, of_head[0], of_head[1], used[:, head], scales[head], caps[head]
            )
    names = ("key_error", "value_error", "logit_error", "output_error")
    by_layer = []
    for r, layer in enumerate(layers):
        members = [i for i, other in enumerate(rank) if other == r]
        of_layer = {name: _ratio(sums[i][:, members].sum(1)) for i, name in enumerate(names)}
        by_layer.append({"layer": layer, **of_layer})
    by_head = [
        {"layer": layer, "head": head, **{name: _ratio(sums[j][:, i]) for j, name in enumerate(names[:2])}}
        for i, (layer, head) in enumerate(heads)
    ]
    overall = {name: _ratio(sums[i].sum(1)) for i, name in enumerate(names)}
    return {**overall, "held_out": len(keys), "errors_by_layer": by_layer, "errors_by_head": by_head}


def _attention(
    queries: Array,
    keys: tuple[Array, Array],
    values: tuple[Array, Array],
    used: Array,
    scale: float,
    cap: float | None,
) -> Array:
    """Sums of one head, (logits, output) × (error, reference): queries (R, Q, d), exact and decoded keys
    and values (R, S, d), used (R, S).
    """
    asked = np.any(queries != 0, axis=2, keepdims=True) & np.any(used, axis=1)[:, None, None]
    slots = used[:, None, :]
    count = np.maximum(used.sum(1), 1)[:, None, None]
    exact, decoded = (_capped(queries @ side.transpose(0, 2, 1) * scale, cap) for side in keys)
    outputs = [_softmax(logits, slots) @ side for logits, side in zip((exact, decoded), values, strict=True)]

    def about_mean(numbers: Array) -> Array:
        mean = (numbers * slots).sum(2, keepdims=True) / count
        return np.where(slots & asked, numbers - mean, 0)

    return np.array(
        [
            [np.square(about_mean(decoded - exact)).sum(), np.square(about_mean(exact)).sum()],
            [(asked * np.square(outputs[1] - outputs[0])).sum(), (asked * np.square(outputs[0])).sum()],
        ]
    )


def _capped(logits: Array, cap: float | None) -> Array:
    return logits if cap is None else np.multiply(np.tanh(logits / cap), cap)


def _softmax(logits: Array, slots: Array) -> Array:
    masked = np.where(slots, logits, -np.inf)
    # a reference without used slots has nothing to attend to: all weights are zero
    top = np.max(masked, axis=2, keepdims=True)
    weights = np.exp(masked - np.where(np.isfinite(top), top, 0))
    total: Array = np.maximum(weights.sum(2, keepdims=True), np.finfo(np.float64).tiny)
    return np.asarray(weights / total)


def _means(vectors: Array, used: npt.NDArray[np.bool_]) -> Array:
    """(R, N_heads, S, d) → mean over references and used slots (N_heads, d), float64."""
    total = np.zeros((vectors.shape[1], vectors.shape[3]))
    for at in range(0, len(vectors), _BLOCK):
        part = slice(at, at + _BLOCK)
        total += (vectors[part].astype(np.float64) * used[part][..., None]).sum((0, 2))
    return np.asarray(total / np.maximum(used.sum((0, 2)), 1)[:, None])


def _per_head(squares: Array) -> Array:
    return np.asarray(squares.sum((0, 2, 3)))


def _ratio(sums: Array) -> float | None:
    error, reference = float(sums[0]), float(sums[1])
    return error / reference if reference > 0 else None
