"""A model's keys and values on a fixed text, small enough for a manifest, by which a live model is
recognised.

The fingerprint needs the model's files; a model that someone has in memory (loaded elsewhere, on a GPU, in
bfloat16) has none. So a bank also keeps, for each memory layer, 32 random projections of its keys (after
RoPE) and 32 of its values on the text below. Random signs keep relative distances (Johnson and
Lindenstrauss): another model is about as far off as the numbers are large, the same model in another number
type or on another device a few percent at most.

The probe is also the first forward pass after loading: whatever :mod:`m3build.capture` refuses is refused
here.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from m3build.capture import LayerCapture, capture_each
from m3build.model.shape import MemoryShape, ModelFacts
from m3build_formats.errors import MismatchError

PROBE_TEXT = (
    "The river rises in the hills and reaches the sea after 346 kilometres. 这条河发源于山区，流入大海。"
)
PROBE_TOKENS = 32
PROJECTIONS = 32
# Relative distance up to which numbers count as the same model's, by the coarser number type of the two.
TOLERANCE = {"float64": 2e-3, "float32": 2e-3, "float16": 2e-2, "bfloat16": 1e-1}


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """Attention settings of one memory layer as the model runs it."""

    layer: int
    scaling: float
    softcap: float | None
    sliding_window: int | None

    def record(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "layer": self.layer,
            "scaling": self.scaling,
            "softcap": self.softcap,
            "sliding_window": self.sliding_window,
        }


def probe_ids(tokenizer: Any) -> list[int]:
    """Token ids of the probe text after the tokenizer's BOS, at most ``PROBE_TOKENS``."""
    bos = [] if tokenizer.bos_token_id is None else [int(tokenizer.bos_token_id)]
    return (bos + [int(token) for token in tokenizer.encode(PROBE_TEXT, add_special_tokens=False)])[
        :PROBE_TOKENS
    ]


def probe(
    base: torch.nn.Module, tokenizer: Any, facts: ModelFacts, shape: MemoryShape, device: torch.device
) -> tuple[tuple[LayerFacts, ...], list[list[float]]]:
    """Attention settings of the memory layers, and for each of them 64 numbers: projections of its keys, then
    of its values.

    Raises MismatchError if the model cannot write memories or is not shaped as its config says.
    """
    ids = probe_ids(tokenizer)
    settings: list[LayerFacts] = []
    numbers: list[list[float]] = []

    def receive(layer: LayerCapture) -> None:
        found = (layer.query.shape[1], layer.key.shape[1], layer.key.shape[3])
        if found != (facts.query_heads, facts.kv_heads, facts.head_dim):
            raise MismatchError(
                f"{facts.name} ({facts.architecture}): layer {layer.layer} has {found[0]} query heads,"
                f" {found[1]} key-value heads and head dimension {found[2]}; its config says"
                f" {facts.query_heads}, {facts.kv_heads} and {facts.head_dim}."
            )
        settings.append(LayerFacts(layer.layer, layer.scaling, layer.softcap, layer.sliding_window))
        numbers.append(_project(layer.rotated_key) + _project(layer.value))

    with torch.no_grad():
        # Run to the end: attention that is called twice in the deepest layer shows only after its first call.
        capture_each(base, torch.tensor([ids], device=device), shape.memory_layers, receive, stop=False)
    return tuple(settings), numbers


def matches_probe(live: list[list[float]], stored: list[list[float]], *dtypes: str) -> bool:
    """Whether two probes are of one model, given the names of the number types that they were computed in.

    Compared layer by layer; keys and values apart. False as well if they differ in shape or hold anything but
    finite numbers.
    """
    tolerance = max(TOLERANCE[dtype] for dtype in dtypes)
    if len(live) != len(stored):
        return False
    for ours, theirs in zip(live, stored, strict=True):
        if len(ours) != 2 * PROJECTIONS or len(theirs) != 2 * PROJECTIONS:
            return False
        for part in (slice(0, PROJECTIONS), slice(PROJECTIONS, None)):
            apart = math.dist(ours[part], theirs[part])
            size = max(math.hypot(*ours[part]), math.hypot(*theirs[part]))
            if not (math.isfinite(apart) and apart <= tolerance * size):
                return False
    return True


def _project(vectors: torch.Tensor) -> list[float]:
    """Random signs times (1, H, T, d), scaled to the root mean square of its elements; six digits."""
    flat = vectors.detach().to("cpu", torch.float64).numpy().ravel()
    # The signs come from SHAKE-256, so they are the same for good, whatever generators numpy or torch will
    # have.
    width = -(-flat.size // 8)
    stream = hashlib.shake_256(b"m3build probe").digest(width * PROJECTIONS)
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8).reshape(PROJECTIONS, width), axis=1)
    signs = bits[:, : flat.size].astype(np.float64) * 2 - 1
    return [float(f"{x:.6g}") for x in (signs @ flat) / math.sqrt(flat.size)]
