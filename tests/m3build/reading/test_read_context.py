"""Contexts that read memories, against what the same model does without m3build: a reference of which every
layer keeps every token is the same as its text in the context."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from models import ARCHITECTURES, tiny_model

from m3build.attention import ChunkLayout, ReferenceBos
from m3build.capture import capture
from m3build.chunk_memories import LayerMemory, chunk_memories
from m3build.read_context import check_positions, encode_reference_bos, read_context
from m3build_formats.errors import MismatchError

BOS = (0, 7, 9)
LAYERS = range(4)


def dense(base: torch.nn.Module, reference: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values (L, Hkv, T, d) of all of a reference's tokens at all layers."""
    captured = capture(base, torch.tensor([[*BOS, *reference]]), LAYERS)
    keys = torch.stack([at.rotated_key[0, :, len(BOS) :] for at in captured])
    return keys, torch.stack([at.value[0, :, len(BOS) :] for at in captured])


def memories_of(
    base: torch.nn.Module, references: list[list[int]], table: torch.Tensor
) -> Mapping[int, LayerMemory]:
    """Dense memories of references of one length, read by query chunks as ``table`` (B, C, R) says."""
    pairs = [dense(base, reference) for reference in references]
    keys = torch.stack([keys for keys, _ in pairs])
    mask = torch.ones(keys.shape[:-1], dtype=torch.bool)
    return chunk_memories(LAYERS, keys, torch.stack([values for _, values in pairs]), mask, table)


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(2, 384, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_dense_memory_of_all_layers_is_the_reference_in_the_context(arch: str) -> None:
    model = tiny_model(arch)
    reference, context = ids(20, 1), ids(30, 2)
    with torch.no_grad():
        plain = model(torch.tensor([[*BOS, *reference, *context]])).logits[:, -30:]
        read = read_context(
            model,
            torch.tensor([context]),
            bos=encode_reference_bos(model.base_model, BOS),
            interval=len(reference),
            memories=memories_of(model.base_model, [reference], torch.zeros(1, 1, 1, dtype=torch.long)),
        ).logits
    torch.testing.assert_close(read, plain, atol=2e-5, rtol=0)


def test_each_token_reads_what_its_own_chunk_was_given() -> None:
    model = tiny_model("llama")
    references = [ids(12, seed) for seed in (1, 2, 3)]
    contexts = torch.tensor([ids(40, 4), ids(40, 5)])
    bos = encode_reference_bos(model.base_model, BOS)
    # Chunks of different sizes, one that no token belongs to, tokens that read nothing, rows that differ.
    chunk_of = torch.full((2, 40), -1)
    chunk_of[0, 3:10], chunk_of[0, 10:33], chunk_of[1, 0:1], chunk_of[1, 20:40] = 0, 2, 1, 0
    table = torch.tensor([[[0, 1], [-1, -1], [2, -1]], [[1, 2], [0, 0], [-1, -1]]])
    given: dict[tuple[int, int], list[int]] = {
        (row, at): [n for n in table[row, c].tolist() if n >= 0] if (c := int(chunk_of[row, at])) >= 0 else []
        for row in range(2)
        for at in range(40)
    }
    with torch.no_grad():
        layers = memories_of(model.base_model, references, table)
        first = {0: layers[0]}
        read = read_context(
            model,
            contexts,
            bos=bos,
            interval=16,
            memories=first,
            chunk_of=chunk_of,
            output_hidden_states=True,
        ).hidden_states[1]
        # Memory in the first layer alone: what comes out of it depends on no other token's memories, so it
        # can be computed for each token by a pass in which all tokens read the same.
        for reads in {tuple(reads) for reads in given.values()}:
            one = torch.tensor([[list(reads)]] * 2)
            same = read_context(
                model,
                contexts,
                bos=bos,
                interval=16,
                memories={0: memories_of(model.base_model, references, one)[0]} if reads else None,
                output_hidden_states=True,
            ).hidden_states[1]
            for (row, at), reads_here in given.items():
                if tuple(reads_here) == reads:
                    torch.testing.assert_close(read[row, at], same[row, at], atol=1e-5, rtol=0)


def test_padding_on_either_side_changes_nothing() -> None:
    model = tiny_model("llama")
    reference, context = ids(12, 1), ids(25, 2)
    bos = encode_reference_bos(model.base_model, BOS)

    def logits(row: list[int], real: list[int]) -> torch.Tensor:
        with torch.no_grad():
            return read_context(
                model,
                torch.tensor([row]),
                attention_mask=torch.tensor([real]),
                bos=bos,
                interval=12,
                memories=memories_of(model.base_model, [reference], torch.zeros(1, 1, 1, dtype=torch.long)),
            ).logits

    alone = logits(context, [1] * 25)
    torch.testing.assert_close(logits([5] * 6 + context, [0] * 6 + [1] * 25)[:, 6:], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        logits(context + [5] * 6, [1] * 25 + [0] * 6)[:, :25], alone, atol=1e-5, rtol=0
    )


def test_long_prompts_in_blocks_of_queries_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gemma2")
    context = torch.tensor([ids(60, 2)])
    bos = encode_reference_bos(model.base_model, BOS)
    memories = memories_of(model.base_model, [ids(9, 1)], torch.zeros(1, 1, 1, dtype=torch.long))
    with torch.no_grad():
        whole = read_context(model, context, bos=bos, interval=9, memories=memories).logits
        monkeypatch.setattr("m3build.attention._MOST_LOGITS", 4 * 7 * 72)
        blocks = read_context(model, context, bos=bos, interval=9, memories=memories).logits
    torch.testing.assert_close(blocks, whole, atol=1e-5, rtol=0)


def test_gradients_reach_memories_reference_bos_and_context() -> None:
    model = tiny_model("llama").train()
    reference = torch.tensor([[*BOS, *ids(10, 1)]])
    captured = capture(model.base_model, reference, [1])
    keys, values = captured[0].rotated_key[:, None, :, 3:], captured[0].value[:, None, :, 3:]
    bos = encode_reference_bos(model.base_model, BOS)
    for tensor in (keys, values, bos.keys[2], bos.values[3]):
        tensor.retain_grad()
    mask = torch.ones(keys.shape[:-1], dtype=torch.bool)
    memories = chunk_memories([1], keys, values, mask, torch.zeros(1, 1, 1, dtype=torch.long))
    context = torch.tensor([ids(20, 2)])
    read_context(model, context, bos=bos, interval=10, memories=memories, labels=context).loss.backward()
    for tensor in (keys, values, bos.keys[2], bos.values[3]):
        assert tensor.grad is not None
        assert float(tensor.grad.abs().sum()) > 0


@pytest.mark.parametrize("layer", [0, 1])
def test_a_memory_layer_whose_window_hides_memories_is_refused_by_name(layer: int) -> None:
    model = tiny_model("gemma2", sliding_window=24)
    window = model.config.layer_types[layer] == "sliding_attention"
    bos = encode_reference_bos(model.base_model, BOS)
    memories = memories_of(model.base_model, [ids(10, 1)], torch.zeros(1, 1, 1, dtype=torch.long))

    def read(tokens: int) -> None:
        with torch.no_grad():
            read_context(
                model,
                torch.tensor([ids(tokens, 2)]),
                bos=bos,
                interval=10,
                memories={layer: memories[layer]},
            )

    read(14)
    if window:
        with pytest.raises(MismatchError, match=rf"layer {layer} .* looks back 24 tokens"):
            read(15)
    else:
        read(15)


def test_the_patched_attention_is_gone_after_a_pass_even_a_failed_one() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    context = torch.tensor([ids(20, 2)])
    with torch.no_grad():
        plain = model(context).logits
        bos = encode_reference_bos(model.base_model, BOS)
        broken = ReferenceBos(bos.keys[:2], bos.values[:2])
        with pytest.raises(IndexError):
            read_context(model, context, bos=broken, interval=8)
        read_context(model, context, bos=bos, interval=8)
        assert model.config._attn_implementation == before
        assert torch.equal(model(context).logits, plain)


def test_rope_that_changes_with_length_is_refused_beyond_its_first_length() -> None:
    class Config:
        max_position_embeddings = 4096
        rope_parameters = {"rope_type": "longrope", "original_max_position_embeddings": 256}  # noqa: RUF012

    check_positions(Config, 255)
    with pytest.raises(MismatchError, match=r"longrope RoPE .* from position 256"):
        check_positions(Config, 256)


def test_the_index_tables_of_a_layout_are_inverse_to_each_other() -> None:
    chunk_of = torch.tensor([[-1, 0, 0, 1, -1, 1, 1], [1, 1, 1, 1, 0, 0, -1]])
    layout = ChunkLayout.of(chunk_of, 3)
    assert (layout.chunks, layout.width, layout.plain) == (3, 4, False)
    for row in range(2):
        for token in range(7):
            if chunk_of[row, token] >= 0:
                slot = int(layout.slot_of[row, token])
                assert slot // layout.width == chunk_of[row, token]
                assert layout.token_at[row, slot] == token
