"""Builds without a model's arithmetic: milliseconds instead of a second, for laws that need hundreds.

Everything of a build runs as it is, but for two things: the model is loaded once, and its keys, values and
positions come from a hash of the reference's token ids instead of a forward pass. So they depend on the
reference alone, as the encoder promises (which its own tests check), and every difference in bytes that a
build makes otherwise still shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from m3build.encode import EncodedBatch
from m3build.model import load_model
from m3build.pipeline import build as build_module
from m3build.pipeline import codec_stage


class CheapEncoder:
    """Stands in for ``ReferenceEncoder``; ``encoded`` counts references over all of its objects."""

    encoded = 0

    def __init__(self, model: Any, *, batch_tokens: int = 16384, queries: int = 0, **_: Any) -> None:
        self._shape = model.shape
        self._batch_tokens = batch_tokens
        self._queries = queries

    def __enter__(self) -> CheapEncoder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def encode(self, references: Sequence[Sequence[int]]) -> Iterator[EncodedBatch]:
        """Batches under the budget, the longest references first, as the real encoder gives them."""
        order = sorted(range(len(references)), key=lambda index: -len(references[index]))
        while order:
            step = max(1, self._batch_tokens // len(references[order[0]]))
            yield self._batch(references, tuple(order[:step]))
            del order[:step]

    def _batch(self, references: Sequence[Sequence[int]], indices: tuple[int, ...]) -> EncodedBatch:
        shape = self._shape
        heads, slots, dim = len(shape.heads), shape.sparse_tokens, shape.head_dim
        vectors = np.stack([self._numbers(references[index], 2 * heads * slots * dim) for index in indices])
        keys, values = torch.from_numpy(vectors.reshape(len(indices), 2, heads, slots, dim)).unbind(1)
        lengths = torch.tensor([len(references[index]) for index in indices])[:, None, None]
        positions = torch.arange(slots).expand(len(indices), heads, slots)
        positions = positions.masked_fill(positions >= lengths, 255).to(torch.uint8)
        unused = (positions == 255)[..., None]
        queries = None
        if self._queries:
            queries = torch.ones(
                len(indices), len(shape.memory_layers), shape.query_heads, self._queries, dim
            )
        CheapEncoder.encoded += len(indices)
        return EncodedBatch(
            indices, keys.masked_fill(unused, 0), values.masked_fill(unused, 0), positions, queries, 0
        )

    @staticmethod
    def _numbers(ids: Sequence[int], count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        raw = hashlib.shake_256(np.asarray(ids, np.uint32).tobytes()).digest(count)
        return np.frombuffer(raw, np.uint8).astype(np.float32) / 64 - 2


@contextmanager
def cheap_builds() -> Iterator[None]:
    """Within, builds use the cheap encoder, load each model once, and do not wait for the disk."""

    def load(settings: Any, run: Any) -> Any:
        return _loaded(settings.model, repr(build_module.shape_request(settings)), settings, run)

    with (
        patch.object(build_module, "_load", load),
        patch.object(codec_stage, "ReferenceEncoder", CheapEncoder),
        patch("os.fsync", lambda _: None),
    ):
        yield


_models: dict[tuple[str, str, str, str], Any] = {}


def _loaded(name: str, shape: str, settings: Any, run: Any) -> Any:
    key = (name, shape, settings.dtype, run.device)
    if key not in _models:
        _models[key] = load_model(
            name, build_module.shape_request(settings), device=run.device, dtype=settings.dtype
        )
    return _models[key]


def count_encoded() -> int:
    """References that went through the cheap encoder since the last call, samples for codecs included."""
    found, CheapEncoder.encoded = CheapEncoder.encoded, 0
    return found


def directory_of(files: dict[str, str], place: Path) -> Path:
    """Make ``place`` hold exactly these files."""
    place.mkdir(exist_ok=True)
    for path in [path for path in place.rglob("*") if path.is_file()]:
        if str(path.relative_to(place)) not in files:
            path.unlink()
    for name, text in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    return place
