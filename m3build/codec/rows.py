"""Where the code of a vector lies in a memory row, and which codebook it belongs to.

A row holds the codes of one reference in the order (memory layer, key/value, head, slot), each
``bytes_per_vector`` bytes. The *head list* (layer, key-value head), layers ascending and heads ascending
within a layer, numbers the heads of all layers; layers may have different numbers of heads.
"""

from __future__ import annotations

from itertools import groupby
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Kind = Literal["key", "value"]
KINDS: tuple[Kind, Kind] = ("key", "value")
Scope = Literal["all", "kind", "layer", "head"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
Heads = tuple[tuple[int, int], ...]


def vector_places(heads: Heads, slots: int) -> npt.NDArray[np.int64]:
    """(2, N_heads, slots) int64: index of the vector of (kind, head-list index, slot) among the vectors of
    a row.
    """
    places = np.empty((2, len(heads), slots), np.int64)
    at = 0
    # One pass over the list: a bank may have thousands of layers.
    for _, of_layer in groupby(range(len(heads)), key=lambda i: heads[i][0]):
        members = list(of_layer)
        for kind in range(2):
            for head in members:
                places[kind, head] = np.arange(at, at + slots)
                at += slots
    return places


def codebook_numbers(scope: Scope, heads: Heads) -> npt.NDArray[np.int64]:
    """(2, N_heads) int64: number of the codebook of (kind, head-list index).

    ``all``: 0. ``kind``: 0 for keys, 1 for values. ``layer``: 2 · (rank of the layer) + kind. ``head``: 2 ·
    (head-list index) + kind.
    """
    kind = np.arange(2)[:, None]
    if scope == "all":
        return np.zeros((2, len(heads)), np.int64)
    if scope == "kind":
        return np.broadcast_to(kind, (2, len(heads))).astype(np.int64)
    if scope == "head":
        return 2 * np.arange(len(heads))[None, :] + kind
    rank = {layer: i for i, layer in enumerate(sorted({layer for layer, _ in heads}))}
    return 2 * np.array([rank[layer] for layer, _ in heads], np.int64)[None, :] + kind


def codebook_count(scope: Scope, heads: Heads) -> int:
    """How many codebooks a scope has for a head list."""
    layers = len({layer for layer, _ in heads})
    return {"all": 1, "kind": 2, "layer": 2 * layers, "head": 2 * len(heads)}[scope]
