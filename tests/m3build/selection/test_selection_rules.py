"""The selection rules against a slow transcription of their formulas in float64, written here and sharing no
code with them.

The transcription gets queries and keys by another way as well: from hooks on the projections and the
query/key norms of each architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, tiny_model

from m3build.capture import LayerCapture, capture
from m3build.selection import get_selector, selection_names
from m3build.selection.base import References, keep_best
from m3build_formats.errors import UsageError

BOS = 3
LENGTHS = (17, 1, 26, 7)
ATTENTION_RULES = ("memory3", "memory3-exp", "value-norm", "observed", "key-norm")


def rows_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 1) -> References:
    """Rows of BOS, a reference and padding up to the longest, with random ids; padding is an ordinary token,
    to be noticed if used."""
    generator = torch.Generator().manual_seed(seed)
    width = BOS + max(lengths) + 5
    ids = torch.randint(2, 384, (len(lengths), width), generator=generator)
    places = torch.arange(width)
    mask = (places >= BOS) & (places < torch.tensor(lengths)[:, None] + BOS)
    return References(ids, mask, BOS)


def model_of(arch: str, **over: Any) -> Any:
    """Weights large enough that attention is far from uniform."""
    over.setdefault("initializer_range", 0.3)
    return tiny_model(arch, seed=3, **over).base_model


def hooked(base: Any, ids: torch.Tensor, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (B, Hq, T, d), keys, values (B, Hkv, T, d) of a layer before RoPE, float64, from what its
    submodules put out."""
    kind, config = base.config.model_type, base.config
    seen: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: seen.__setitem__(name, output.detach().double())

    block = base.layers[layer]
    attention = block.attention if kind == "gpt_neox" else block.self_attn
    names = {n for n, _ in attention.named_children()}
    hooks = [
        getattr(attention, n).register_forward_hook(keep(n))
        for n in names & {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "q_norm", "k_norm"}
    ]
    with torch.no_grad():
        base(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    heads = config.num_attention_heads
    d = getattr(config, "head_dim", None) or config.hidden_size // heads
    if kind == "gpt_neox":
        whole = seen["query_key_value"].reshape(*ids.shape, heads, 3, d)
        parts = [whole[:, :, :, i] for i in range(3)]
    elif kind == "phi3":
        kv = config.num_key_value_heads
        q, k, v = seen["qkv_proj"].split([heads * d, kv * d, kv * d], dim=-1)
        parts = [x.reshape(*ids.shape, -1, d) for x in (q, k, v)]
    else:
        q = seen["q_norm"] if "q_norm" in seen else seen["q_proj"]
        k = seen["k_norm"] if "k_norm" in seen else seen["k_proj"]
        # qwen3 normalizes (B, T, H, d), gemma3 (B, H, T, d), olmo2 the flat projection.
        if kind == "gemma3_text":
            q, k = q.transpose(1, 2), k.transpose(1, 2)
        parts = [x.reshape(*ids.shape, -1, d) for x in (q, k, seen["v_proj"])]
    q, k, v = (x.transpose(1, 2).numpy() for x in parts)
    return q, k, v


def transcribed(
    rule: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    own: list[int],
    scale: float,
    softcap: float | None,
    seen: Callable[[int, int], bool],
) -> np.ndarray:
    """Scores (Hkv, len(own)) of one row by the formulas, one number at a time. q, k (H, T, d): rotated for
    ``observed``."""
    group = q.shape[0] // k.shape[0]

    def logit(head: int, i: int, j: int) -> float:
        product = math.fsum(a * b for a, b in zip(q[head, i], k[head // group, j], strict=True)) * scale
        return softcap * math.tanh(product / softcap) if softcap else product

    result = np.zeros((k.shape[0], len(own)))
    for h in range(k.shape[0]):
        for place, j in enumerate(own):
            if rule == "key-norm":
                result[h, place] = -math.sqrt(math.fsum(x * x for x in k[h, j]))
        if rule == "key-norm":
            continue
        for head in range(h * group, (h + 1) * group):
            for i in own:
                others = range(i + 1) if rule == "observed" else own
                logits = {j: logit(head, i, j) for j in others if rule != "observed" or seen(i, j)}
                if rule == "memory3-exp":
                    for place, j in enumerate(own):
                        result[h, place] += math.exp(logits[j])
                    continue
                top = max(logits.values())
                total = math.fsum(math.exp(x - top) for x in logits.values())
                for place, j in enumerate(own):
                    if j in logits:
                        result[h, place] += math.exp(logits[j] - top) / total
        if rule == "value-norm":
            for place, j in enumerate(own):
                result[h, place] *= math.sqrt(math.fsum(x * x for x in v[h, j]))
    return result


def best(scores: np.ndarray, n: int) -> list[int]:
    """Places of the n highest scores, the earlier of equal ones, ascending."""
    return sorted(sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:n])


def check_rows(rule: str, base: Any, layer: int, slots: int = 4) -> None:
    """The rule's scores and kept positions equal the transcription's on every row and head, near ties
    aside."""
    references = rows_of()
    with torch.no_grad():
        found = capture(base, references.token_ids, [layer])[0]
    selector = get_selector(rule)
    scores = selector.scores(found, references)
    kept = selector.keep(found, references, slots)
    assert scores.dtype == torch.float32
    assert kept.dtype == torch.uint8
    assert kept.shape == (len(LENGTHS), found.kv_heads, slots)
    q, k, v = hooked(base, references.token_ids, layer)
    assert np.abs(q - found.query.double().numpy()).max() < 1e-4 * np.abs(q).max()
    assert np.abs(k - found.key.double().numpy()).max() < 1e-4 * np.abs(k).max()
    if rule == "observed":
        q, k = found.rotated_query.double().numpy(), found.rotated_key.double().numpy()
    window = found.sliding_window
    for row, length in enumerate(LENGTHS):
        own = list(range(BOS, BOS + length))
        expected = transcribed(
            rule, q[row], k[row], v[row], own, found.scaling, found.softcap,
            lambda i, j: window is None or i - j < window,
        )  # fmt: skip
        got = scores[row, :, own].double().numpy()
        if rule == "memory3-exp":
            got = np.exp(got)
        assert np.allclose(got, expected, rtol=2e-4, atol=1e-6), (rule, row)
        for head in range(found.kv_heads):
            want = best(expected[head], slots)
            have = [int(p) for p in kept[row, head] if p != 255]
            assert list(kept[row, head][len(have) :]) == [255] * (slots - len(have))
            assert have == sorted(set(have))
            assert len(have) == min(slots, length)
            for other in set(want) ^ set(have):
                boundary = min(expected[head][j] for j in want)
                assert abs(expected[head][other] - boundary) < 1e-5 * abs(boundary), "not a near tie"


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("rule", ATTENTION_RULES)
def test_a_rule_equals_its_float64_transcription_on_every_architecture(arch: str, rule: str) -> None:
    check_rows(rule, model_of(arch), layer=1)


@pytest.mark.parametrize("kv_heads", [1, 4])
def test_a_rule_equals_its_transcription_with_one_shared_key_value_head_and_with_none_shared(
    kv_heads: int,
) -> None:
    check_rows("memory3", model_of("llama", num_key_value_heads=kv_heads), layer=2)


@pytest.mark.parametrize("arch", ["gemma2", "gemma3", "mistral"])
def test_observed_attention_ends_at_the_sliding_window(arch: str) -> None:
    check_rows("observed", model_of(arch, sliding_window=9), layer=0)


def test_the_soft_cap_takes_part_in_the_ranking() -> None:
    references = rows_of()
    with torch.no_grad():
        found = capture(model_of("gemma2", attn_logit_softcapping=0.5), references.token_ids, [1])[0]
    assert found.softcap == 0.5
    check_rows("memory3", model_of("gemma2", attn_logit_softcapping=0.5), layer=1)


@pytest.mark.parametrize("rule", [name for name in ATTENTION_RULES if name != "observed"])
@pytest.mark.parametrize("length", [5, 31, 48, 67, 128])
def test_equal_tokens_of_the_first_layer_tie_exactly_and_the_earlier_is_kept(rule: str, length: int) -> None:
    """Without positions, the first layer sees two occurrences of a token as the same; the scores must agree
    to the last bit."""
    base = model_of("llama")
    ids = torch.full((2, BOS + length + 2), 7)
    ids[:, BOS + 1 :: 3] = 11
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, BOS : BOS + length] = True
    references = References(ids, mask, BOS)
    with torch.no_grad():
        found = capture(base, ids, [0])[0]
    scores = get_selector(rule).scores(found, references)
    own = ids[0, BOS : BOS + length]
    for token in (7, 11):
        equal = scores[:, :, BOS : BOS + length][:, :, own == token]
        assert torch.equal(equal, equal[..., :1].expand_as(equal))
    kept = get_selector(rule).keep(found, references, 3)
    for head in range(2):
        ranked = best(scores[0, head, BOS : BOS + length].numpy(), 3)
        assert kept[0, head].tolist() == ranked


@pytest.mark.parametrize("rule", selection_names())
def test_neither_padding_nor_neighbours_nor_the_bos_change_what_is_kept(rule: str) -> None:
    base = model_of("qwen3")
    references = rows_of()
    with torch.no_grad():
        together = get_selector(rule).keep(capture(base, references.token_ids, [1])[0], references, 6)
        for row, length in enumerate(LENGTHS):
            ids = references.token_ids[row : row + 1].clone()
            ids[:, BOS + length :] = 0
            alone = References(ids, references.mask[row : row + 1], BOS)
            found = capture(base, ids, [1])[0]
            assert torch.equal(get_selector(rule).keep(found, alone, 6)[0], together[row])


def test_logits_that_overflow_exp_keep_their_ranking_under_the_exp_variant() -> None:
    keys = torch.tensor([[3.0], [900.0], [2.0], [901.0], [899.0]]).reshape(1, 1, 5, 1)
    layer = LayerCapture(0, torch.ones(1, 1, 5, 1), keys, keys, keys, keys, scaling=1.0)
    references = References(torch.zeros(1, 5, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool), 0)
    assert get_selector("memory3-exp").keep(layer, references, 2).tolist() == [[[1, 3]]]
    assert get_selector("memory3-exp").keep(layer, references, 4).tolist() == [[[0, 1, 3, 4]]]


def fake_layer(rows: int, tokens: int) -> LayerCapture:
    vectors = torch.zeros(rows, 2, tokens, 4)
    return LayerCapture(1, vectors, vectors, vectors, vectors, vectors, scaling=1.0)


def test_first_and_last_keep_the_ends_of_a_reference() -> None:
    references = rows_of((6, 2))
    layer = fake_layer(2, references.mask.shape[1])
    assert get_selector("first").keep(layer, references, 3)[:, 0].tolist() == [[0, 1, 2], [0, 1, 255]]
    assert get_selector("last").keep(layer, references, 3)[:, 0].tolist() == [[3, 4, 5], [0, 1, 255]]


def test_random_depends_on_the_references_own_tokens_alone() -> None:
    one, other = rows_of((40, 40), seed=1), rows_of((40, 40), seed=2)
    mixed = References(torch.stack([other.token_ids[0], one.token_ids[0]]), one.mask, BOS)
    layer = fake_layer(2, one.mask.shape[1])
    rule = get_selector("random")
    kept = rule.keep(layer, one, 8)
    assert torch.equal(rule.keep(layer, mixed, 8)[1], kept[0])
    assert not torch.equal(kept[0], kept[1])
    assert not torch.equal(kept[0, 0], kept[0, 1])
    another_bos = References(one.token_ids.clone(), one.mask, BOS)
    another_bos.token_ids[:, :BOS] = 5
    assert torch.equal(rule.keep(layer, another_bos, 8), kept)


def test_random_draws_every_token_about_equally_often() -> None:
    counts = np.zeros(40)
    for seed in range(60):
        references = rows_of((40, 40), seed=seed)
        kept = get_selector("random").keep(fake_layer(2, references.mask.shape[1]), references, 10)
        counts += np.bincount(kept.flatten().numpy(), minlength=40)
    # 240 draws of 10 of 40: 60 each, with a standard deviation of 6.7.
    assert counts.min() > 30
    assert counts.max() < 95


def test_of_equal_scores_the_earlier_tokens_are_kept() -> None:
    scores = torch.tensor([[[9.0, 1.0, 2.0, 2.0, 2.0, 9.0]]])
    mask = torch.tensor([[False, True, True, True, True, False]])
    assert keep_best(scores, mask, 1, 2).tolist() == [[[1, 2]]]


def test_more_slots_than_tokens_leaves_slots_unused() -> None:
    scores, mask = torch.zeros(1, 2, 3), torch.ones(1, 3, dtype=torch.bool)
    assert keep_best(scores, mask, 0, 5).tolist() == [[[0, 1, 2, 255, 255]] * 2]


def test_an_unknown_rule_is_refused_with_the_names_that_exist() -> None:
    with pytest.raises(UsageError, match="memory3-exp"):
        get_selector("memory4")


@pytest.mark.parametrize("name", selection_names())
def test_every_rule_is_found_under_the_name_it_gives_itself(name: str) -> None:
    assert get_selector(name).name == name
