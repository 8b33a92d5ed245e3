"""Memories of some references, to train a codec on, and to see what it loses of others."""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3build.codec.codec import Codec
from m3build.codec.encoder import TorchEncoder
from m3build.codec.errors import measure_errors
from m3build.encode import ReferenceEncoder
from m3build.model import LoadedModel
from m3build.pipeline.memory_stage import WINDOW_REFERENCES
from m3build.pipeline.places import Drawn, by_shard
from m3build.pipeline.shard_stage import ShardedCorpus
from m3build.progress import Progress

# Held-out references on which a codec's errors are measured, and the query tokens of each that look at its
# kept keys.
HELD_OUT_REFERENCES = 256
HELD_OUT_SHARE = 5
ERROR_QUERIES = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """Memories of some references: keys and values float32 (R, heads, S, d), positions uint8 (R, heads, S),
    queries float32 (R, Q, G, heads, d) or None.
    """

    keys: NDArray[np.float32]
    values: NDArray[np.float32]
    positions: NDArray[np.uint8]
    queries: NDArray[np.float32] | None

    def part(self, which: slice) -> Sample:
        """Some of the references."""
        queries = None if self.queries is None else self.queries[which]
        return Sample(self.keys[which], self.values[which], self.positions[which], queries)


def encode_sample(
    model: LoadedModel,
    sharded: ShardedCorpus,
    drawn: Drawn,
    batch_tokens: int,
    queries: int = 0,
) -> Sample:
    """Memories of the references that were drawn, in that order, with ``queries`` of each."""
    shape = model.shape
    heads, slots, dim = len(shape.heads), shape.sparse_tokens, shape.head_dim
    group = shape.query_heads // shape.kv_heads
    keys = np.zeros((len(drawn), heads, slots, dim), np.float32)
    values = np.zeros_like(keys)
    positions = np.full((len(drawn), heads, slots), 255, np.uint8)
    asked = np.zeros((len(drawn), queries, group, heads, dim), np.float32) if queries else None
    layer_of = {layer: i for i, layer in enumerate(shape.memory_layers)}
    layers = [layer_of[layer] for layer, _ in shape.heads]
    with (
        torch.inference_mode(),
        ReferenceEncoder(model, batch_tokens=batch_tokens, queries=queries) as encoder,
    ):
        # The tokens of all would be small objects among the others that are there to stay, and leave holes.
        for first in range(0, len(drawn), WINDOW_REFERENCES):
            for batch in encoder.encode(_tokens(sharded, drawn[first : first + WINDOW_REFERENCES])):
                found = [first + index for index in batch.indices]
                keys[found] = batch.keys.float().cpu().numpy()
                values[found] = batch.values.float().cpu().numpy()
                positions[found] = batch.positions.cpu().numpy()
                if asked is not None and batch.queries is not None:
                    found_queries = batch.queries.float().cpu().numpy()
                    for number, (layer, (_, head)) in enumerate(zip(layers, shape.heads, strict=True)):
                        mine = found_queries[:, layer, head * group : (head + 1) * group]
                        asked[found, :, :, number] = mine.transpose(0, 2, 1, 3)
    return Sample(keys, values, positions, asked)


def _tokens(sharded: ShardedCorpus, drawn: Drawn) -> list[array[int]]:
    """Token ids of references, in the order of ``drawn``."""
    # As Python integers they would take ten times as much.
    tokens = [array("I")] * len(drawn)
    for shard, rows, places in by_shard(drawn):
        for at, ids in zip(places, sharded.shards[shard].references(rows), strict=True):
            tokens[at] = array("I", ids.tobytes())
    return tokens


def held_out_errors(codec: Codec, tested: Sample, model: LoadedModel, progress: Progress) -> dict[str, Any]:
    """What a codec loses on memories that it was not trained on, as ``measure_errors`` has it."""
    if not len(tested.keys) or tested.queries is None:
        progress.note("too few references to hold any out: the codec's errors are not measured")
        return {"key_error": None, "value_error": None}
    return errors_of(codec, codes_of(codec, tested), tested, model)


def codes_of(codec: Codec, tested: Sample) -> NDArray[np.uint8]:
    """The codes of memories, uint8 (R, row bytes of the codec)."""
    codes: NDArray[np.uint8] = (
        TorchEncoder(codec, "cpu")
        .encode(
            torch.from_numpy(tested.keys), torch.from_numpy(tested.values), torch.from_numpy(tested.positions)
        )
        .numpy()
    )
    return codes


def errors_of(codec: Codec, codes: NDArray[np.uint8], tested: Sample, model: LoadedModel) -> dict[str, Any]:
    """What ``codes`` lose of the memories that they stand for, which have queries; as ``measure_errors`` has
    it."""
    if tested.queries is None:
        raise ValueError("the sample has no queries to measure errors with")
    scaling = [fact.scaling for fact in model.layer_facts]
    softcap = [fact.softcap for fact in model.layer_facts]
    return measure_errors(
        codec, codes, tested.keys, tested.values, tested.positions, tested.queries, scaling, softcap
    )
