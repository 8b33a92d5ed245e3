"""Tokens per second of the encode stage, of the bare forward pass under it, and of the plain way, side by
side in one run.

    python tests/benchmarks/encode_stage.py          # a random Llama of over 100M parameters, codec memory3
    python tests/benchmarks/encode_stage.py --small  # a small model, codec auto

- encode stage: what ``compile`` runs: forward to the deepest memory layer, selection, quantizing, rows as
  they are stored.
- bare forward: the same layers, complete, on the same padded batches in the same number type, and nothing
  else; run both with all threads on one batch and with one thread a batch, the faster counts.
- plain way: all layers in float32 with ``output_attentions=True``, kept tokens from those weights, FAISS's
  ``sa_encode``.

The three take turns, so that a machine that slows down slows all of them; the ratio of each round is printed
and the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m3build.codec.codec import Codec
from m3build.codec.presets import resolve_codec
from m3build.codec.train import train_codec
from m3build.encode import ReferenceEncoder, padded_length
from m3build.model import LoadedModel, load_model
from m3build.pipeline.codec_stage import PreparedCodec
from m3build.plan import memory_plan, model_shape, write_flops

LARGE = {
    "hidden_size": 1280,
    "intermediate_size": 1280,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "head_dim": 80,
}
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_model(shape: dict[str, int], directory: Path) -> LoadedModel:
    """A Llama with random weights, loaded as ``compile`` loads it: memory layers only, bfloat16 where "
    "native."""
    from models import tiny_config, tiny_tokenizer
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama", **shape, max_position_embeddings=1024))
    print(f"model: {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M parameters, random weights")
    model.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return load_model(str(directory))


def make_codec(model: LoadedModel, text: str, training: int) -> tuple[Codec, Any]:
    """A codec trained on memories of ``training`` random references, and FAISS's own index with the same
    parameters.
    """
    shape = model.shape
    encoder = ReferenceEncoder(model)
    references = random_references(training, model.facts.vocab_size, seed=1)
    heads, slots, dim = len(shape.heads), shape.sparse_tokens, shape.head_dim
    keys = np.zeros((training, heads, slots, dim), np.float32)
    values, positions = np.zeros_like(keys), np.zeros((training, heads, slots), np.uint8)
    with torch.inference_mode():
        for batch in encoder.encode(references):
            at = list(batch.indices)
            keys[at], values[at] = batch.keys.float().numpy(), batch.values.float().numpy()
            positions[at] = batch.positions.numpy()
    flops = write_flops(
        model_shape(model.facts), memory_plan(shape, len(model.reference_bos_ids)), shape.memory_layers[-1]
    )
    resolved = resolve_codec(
        text, dim, training_vectors=training * heads * slots, forward_flops=flops, vectors=2 * heads * slots
    )
    codec = train_codec(resolved.spec, "kind", shape.heads, keys, values, positions)
    import faiss

    index = None
    if resolved.spec.is_trained:
        index = faiss.index_factory(dim, str(resolved.spec))
        index.train(keys.reshape(-1, dim)[: max(20_000, resolved.spec.centroids())])
    return codec, index


def random_references(count: int, vocabulary: int, seed: int) -> list[list[int]]:
    """References of full length, as nearly all chunks of a corpus are, and a few shorter ones."""
    rng = np.random.default_rng(seed)
    lengths = [128 if i % 8 else int(rng.integers(40, 128)) for i in range(count)]
    return [rng.integers(2, vocabulary, length).tolist() for length in lengths]


def padded_batches(model: LoadedModel, references: list[list[int]], batch_tokens: int) -> list[torch.Tensor]:
    """The token batches that the encode stage makes of the references."""
    bos = list(model.reference_bos_ids)
    by_length: dict[int, list[list[int]]] = {}
    for tokens in references:
        by_length.setdefault(padded_length(len(tokens), len(bos)), []).append(bos + tokens)
    batches: list[torch.Tensor] = []
    for length, rows in sorted(by_length.items()):
        padded = torch.tensor([row + [0] * (length - len(row)) for row in rows])
        batches.extend(padded.split(max(1, batch_tokens // length)))
    return batches


def encode_stage(prepared: PreparedCodec, model: LoadedModel) -> Callable[[list[list[int]]], None]:
    """What ``compile`` runs."""

    def run(references: list[list[int]]) -> None:
        with prepared.row_encoder(model, 16384) as encode:
            for _ in encode([np.array(tokens, np.uint32) for tokens in references]):
                pass

    return run


def bare_forward(model: LoadedModel, threads: int) -> tuple[Callable[[list[list[int]]], None], ...]:
    """The same layers on the same batches: all threads on one batch, and one thread a batch."""

    def forward(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            model.base(input_ids=batch, use_cache=False)

    def together(references: list[list[int]]) -> None:
        for batch in padded_batches(model, references, 16384):
            forward(batch)

    def apart(references: list[list[int]]) -> None:
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                list(pool.map(forward, padded_batches(model, references, 16384 // threads)))
        finally:
            torch.set_num_threads(threads)

    return together, apart


def plain_way(directory: Path, model: LoadedModel, index: Any) -> Callable[[list[list[int]]], None]:
    """All layers, float32, attention weights put out, FAISS's encoder."""
    from transformers import AutoModelForCausalLM

    full = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    shape = model.shape
    bos = len(model.reference_bos_ids)
    group = shape.query_heads // shape.kv_heads

    def run(references: list[list[int]]) -> None:
        for batch in padded_batches(model, references, 4096):
            with torch.inference_mode():
                out = full(input_ids=batch, use_cache=True, output_attentions=True)
            for layer in shape.memory_layers:
                weights = out.attentions[layer][:, :, bos:, bos:].sum(2)
                received = weights.unflatten(1, (shape.kv_heads, group)).sum(2)
                kept = (
                    received.topk(min(shape.sparse_tokens, received.shape[-1]), -1).indices.sort(-1).values
                    + bos
                )
                for stored in (
                    out.past_key_values.layers[layer].keys,
                    out.past_key_values.layers[layer].values,
                ):
                    vectors = stored.gather(2, kept[..., None].expand(-1, -1, -1, shape.head_dim))
                    if index is not None:
                        index.sa_encode(np.ascontiguousarray(vectors.reshape(-1, shape.head_dim).numpy()))

    return run


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--small", action="store_true", help="a small model with --codec auto")
    parser.add_argument("--references", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", type=int, default=512, help="references that the codec is trained on")
    arguments = parser.parse_args()
    threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place)
        model = make_model(SMALL if arguments.small else LARGE, directory)
        codec, index = make_codec(model, "auto" if arguments.small else "memory3", arguments.training)
        print(
            f"codec {codec.spec}; {str(model.dtype).removeprefix('torch.')}; layers "
            f"{model.shape.memory_layers}; {threads} threads"
        )
        references = random_references(arguments.references, model.facts.vocab_size, seed=2)
        few = references[: max(16, len(references) // 16)]
        tokens = sum(map(len, references))
        ways: dict[str, Callable[[list[list[int]]], None]] = {
            "encode stage": encode_stage(PreparedCodec(codec, None, {}), model)
        }
        ways["bare forward, batches one by one"], ways["bare forward, one thread a batch"] = bare_forward(
            model, threads
        )
        ways["plain way"] = plain_way(directory, model, index)
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for name, way in ways.items():
            way(few if name == "plain way" else references[:64])
        for _ in range(arguments.rounds):
            for name, way in ways.items():
                given = few if name == "plain way" else references
                began = time.perf_counter()
                way(given)
                rates[name].append(sum(map(len, given)) / (time.perf_counter() - began))
    for name, found in rates.items():
        print(
            f"{name:<34} {statistics.median(found):>12,.0f} tokens/s   ({min(found):,.0f} to "
            f"{max(found):,.0f})"
        )
    best = [max(pair) for pair in zip(*list(rates.values())[1:3], strict=True)]
    ratios = [stage / bare for stage, bare in zip(rates["encode stage"], best, strict=True)]
    gains = [stage / plain for stage, plain in zip(rates["encode stage"], rates["plain way"], strict=True)]
    print(
        f"encode stage / bare forward: {statistics.median(ratios):.2f} ({min(ratios):.2f} to "
        f"{max(ratios):.2f}), {tokens:,} tokens a round"
    )
    print(f"encode stage / plain way:    {statistics.median(gains):.1f}")


if __name__ == "__main__":
    main()
