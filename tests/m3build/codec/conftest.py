"""Small trained codecs and the FAISS index that each must agree with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import pytest

from m3build.codec.codec import Codec
from m3build.codec.spec import parse_spec
from m3build.codec.train import train_codec

HEADS = ((0, 0), (0, 1), (2, 0))
SLOTS = 4


def draw_memories(references: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys of unlike scale and mean by head, values, positions with some unused slots."""
    rng = np.random.default_rng(seed)
    shape = (references, len(HEADS), SLOTS, dim)
    mix = np.random.default_rng(7).standard_normal((dim, dim)) / dim**0.5
    keys = rng.standard_normal(shape) @ mix * np.array([3.0, 1.0, 0.05])[:, None, None]
    keys += np.random.default_rng(8).standard_normal((len(HEADS), 1, dim)) * 2
    values = rng.standard_normal(shape)
    positions = np.tile(np.arange(0, 3 * SLOTS, 3, dtype=np.uint8), (references, len(HEADS), 1))
    positions[3, 1, 2:] = 255
    positions[4] = 255
    for side in (keys, values):
        side[positions == 255] = 0
    return keys.astype(np.float32), values.astype(np.float32), positions


@pytest.fixture(scope="session")
def memories() -> Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]:
    return draw_memories


@pytest.fixture(scope="session")
def trained() -> Callable[..., Codec]:
    """Train a codec on 60 drawn references; equal calls share it."""
    made: dict[tuple[str, int, str], Codec] = {}

    def train(text: str, dim: int = 16, scope: Any = "kind") -> Codec:
        if (text, dim, scope) not in made:
            made[text, dim, scope] = train_codec(parse_spec(text), scope, HEADS, *draw_memories(60, dim))
        return made[text, dim, scope]

    return train


def set_vector(array: np.ndarray, vector: Any) -> None:
    faiss.copy_array_to_vector(np.ascontiguousarray(array, np.float32).ravel(), vector)


def faiss_index(codec: Codec, book: int) -> Any:
    """FAISS's own index of the same string, with the parameters of one of the codec's codebooks."""
    spec, arrays = codec.spec, codec.arrays
    # FAISS spells a first level before a scalar quantizer as an inverted multi-index; the code is the same
    text = str(spec) if spec.fine == "PQ" else str(spec).replace("Residual", "IMI")
    if spec.fine == "PQ" and not spec.first_level_bits:
        # without "np" FAISS reorders the centroids for another kind of search, slowly
        text += "np"
    index = faiss.index_factory(codec.head_dim, text)
    rng = np.random.default_rng(0)
    index.train(rng.standard_normal((max(300, 2 * spec.centroids()), codec.head_dim)).astype(np.float32))
    inner = index
    if spec.transform:
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        set_vector(arrays["transform"][book], transform.A)
        set_vector(arrays["transform_bias"][book], transform.b)
        transform.have_bias = True
        inner = faiss.downcast_index(index.index)
    if spec.first_level_bits:
        quantizer = inner.q1.quantizer if spec.fine == "PQ" else inner.quantizer
        set_vector(arrays["first_level"][book], faiss.downcast_index(quantizer).pq.centroids)
    if spec.fine == "PQ":
        set_vector(arrays["product"][book], inner.pq.centroids)
    elif spec.fine != "SQfp16":
        set_vector(arrays["scalar_range"][book], inner.sq.trained)
    return index


@pytest.fixture(scope="session")
def index_of() -> Callable[[Codec, int], Any]:
    return faiss_index
