"""Slow reading is what transformers computes on one row with everything in it, masked as eq. 4 says."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import ARCHITECTURES, save_tiny_model, tiny_model
from reference.exact_transformers import exact_copy, exact_logits, masked_logits, wild_model
from reference.slow_memory import (
    Floats,
    Weights,
    forward_layers,
    key_value_heads,
    load,
    slow_memory,
    window_of,
)
from reference.slow_reading import (
    SlowMemory,
    cross_entropy,
    kept,
    longest_match,
    overlap,
    query_chunks,
    retrieve_for,
    slow_logits,
    token_losses,
    whole,
)

BOS = [0, 50, 69, 70]
REFERENCES = [[17, 301, 17, 254, 9, 88, 88, 133], [205, 42, 7, 310, 17], [91, 12, 254]]
CONTEXT = [0, 17, 301, 99, 9, 88, 133, 42, 7, 310, 17, 17, 254, 88, 61]
INTERVAL = 9  # positions between reference BOS and context

PARTIAL = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
REACH = INTERVAL + len(CONTEXT)  # the shortest window in which every query sees the whole memory interval

# Windows that hide some of the context or only some of the reference BOS, soft-caps that bite, tied heads.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True, "mlp_bias": True, "head_dim": 24, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 5}),
    ("mistral", {"sliding_window": REACH}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": REACH + 1, "max_window_layers": 2}),
    (
        "gemma2",
        {
            "sliding_window": 5,
            "attn_logit_softcapping": 0.7,
            "query_pre_attn_scalar": 9,
            "final_logit_softcapping": 0.8,
        },
    ),
    ("gemma2", {"sliding_window": REACH, "attn_logit_softcapping": 0.7, "tie_word_embeddings": False}),
    (
        "gemma3",
        {
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 0.8,
            "tie_word_embeddings": False,
        },
    ),
    ("phi3", {"sliding_window": REACH + 2, "rope_parameters": PARTIAL}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "rope_parameters": PARTIAL}),
    ("gpt_neox", {"tie_word_embeddings": True}),
]
NAMED: dict[str, tuple[str, dict[str, Any]]] = {arch: (arch, {}) for arch in ARCHITECTURES} | {
    f"{arch}-{'-'.join(over)}-{over.get('sliding_window', '')}": (arch, over) for arch, over in VARIANTS
}


@dataclass(frozen=True)
class Case:
    arch: str
    config: Any
    weights: Weights
    exact: Any  # transformers' model in float64

    @property
    def layers(self) -> list[int]:
        """Those in which every query of CONTEXT sees the whole memory interval."""
        windows = [window_of(self.config, self.arch, layer) for layer in range(self.config.num_hidden_layers)]
        return [layer for layer, window in enumerate(windows) if window is None or window >= REACH]

    @property
    def kv_heads(self) -> int:
        return key_value_heads(self.config, self.arch)

    def logits(
        self,
        bos: list[int],
        ids: list[int],
        chunks: Sequence[Sequence[SlowMemory]] = (),
        chunk_of: Sequence[int | None] | None = None,
        reference_tokens: int = INTERVAL,
    ) -> Floats:
        return slow_logits(self.config, self.arch, self.weights, bos, ids, chunks, chunk_of, reference_tokens)


@functools.cache
def case_of(name: str) -> Case:
    arch, over = NAMED[name]
    model = wild_model(arch, **over)
    config, weights = load(model, arch)
    return Case(arch, config, weights, exact_copy(model))


Choice = dict[
    tuple[int, int], list[int]
]  # for (layer, key-value head) the tokens of a reference that are kept


def some_choice(case: Case, tokens: int, seed: int) -> Choice:
    """Different tokens, and differently many, in every memory layer and head; none at all in some."""
    rng = np.random.default_rng(seed)
    choice: Choice = {}
    for layer in case.layers:
        for head in range(case.kv_heads):
            size = int(rng.integers(0, min(tokens, 4) + 1))
            choice[layer, head] = sorted(rng.choice(tokens, size, replace=False).tolist())
    return choice


def memory_of(case: Case, bos: list[int], reference: list[int], choice: Choice) -> SlowMemory:
    records = forward_layers(case.config, case.arch, case.weights, [*bos, *reference], 3)
    return SlowMemory(
        {
            (layer, head): (
                records[layer].rotated_keys[head, [len(bos) + j for j in chosen]],
                records[layer].values[head, [len(bos) + j for j in chosen]],
            )
            for (layer, head), chosen in choice.items()
        }
    )


def one_row(
    case: Case,
    bos: list[int],
    references: list[list[int]],
    choices: list[Choice],
    ids: list[int],
    read: list[list[int]],
    interval: int,
    monkeypatch: pytest.MonkeyPatch,
) -> Floats:
    """The context's logits in one row of transformers that also holds the reference BOS and all references,
    at the positions they have in reading. ``read[i]`` are the references that token i of the context reads;
    one that is read n times has log n added to its attention logits.
    """
    row, positions, owner, place = list(bos), list(range(len(bos))), [-1] * len(bos), list(range(len(bos)))
    for number, reference in enumerate(references):
        row += reference
        positions += range(len(bos), len(bos) + len(reference))
        owner += [number] * len(reference)
        place += range(len(reference))
    context = len(references)
    row += ids
    positions += range(len(bos) + interval, len(bos) + interval + len(ids))
    owner += [context] * len(ids)
    place += range(len(ids))
    masks = []
    heads = case.config.num_attention_heads
    for layer in range(case.config.num_hidden_layers):
        window = window_of(case.config, case.arch, layer)
        mask = np.full((heads, len(row), len(row)), -np.inf)
        for i in range(len(row)):
            for j in range(i + 1):
                near = window is None or positions[i] - positions[j] < window
                if owner[j] in (-1, owner[i]) and near:
                    mask[:, i, j] = 0.0
                elif owner[i] == context:
                    times = read[place[i]].count(owner[j])
                    for h in range(heads):
                        head = h // (heads // case.kv_heads)
                        if times and place[j] in choices[owner[j]].get((layer, head), []):
                            mask[h, i, j] = math.log(times)
        masks.append(mask)
    logits = masked_logits(case.exact, row, positions, masks, monkeypatch)
    return logits[len(row) - len(ids) :]


def assert_same(actual: Floats, expected: Floats, tolerance: float = 1e-9) -> None:
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def differ(a: Floats, b: Floats) -> bool:
    return bool(np.abs(a - b).max() > 1e-4)


# --- Against transformers


@pytest.mark.parametrize("name", NAMED)
def test_without_memories_logits_are_those_of_transformers(name: str) -> None:
    case = case_of(name)
    plain = exact_logits(case.exact, CONTEXT)
    assert_same(case.logits([], CONTEXT, reference_tokens=0), plain)
    # a reference BOS with no interval behind it is plain context
    after_bos = case.logits(BOS, CONTEXT, reference_tokens=0)
    assert_same(after_bos, exact_logits(case.exact, BOS + CONTEXT)[len(BOS) :])
    assert differ(after_bos, plain)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt_neox"])
def test_without_memories_and_reference_bos_the_interval_changes_nothing(name: str) -> None:
    case = case_of(name)  # RoPE knows only how far apart two tokens are
    assert_same(case.logits([], CONTEXT, reference_tokens=128), exact_logits(case.exact, CONTEXT))


@pytest.mark.parametrize("name", NAMED)
def test_reading_is_one_masked_row_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(name)
    choices = [some_choice(case, len(r), seed) for seed, r in enumerate(REFERENCES)]
    memories = [memory_of(case, BOS, r, c) for r, c in zip(REFERENCES, choices, strict=True)]
    chunks = [[0], [2, 0, 1], [], [1, 1]]
    chunk_of = [0] * 4 + [1] * 4 + [None] * 2 + [2] * 2 + [3] * 3
    read = [[] if c is None else chunks[c] for c in chunk_of]
    expected = one_row(case, BOS, REFERENCES, choices, CONTEXT, read, INTERVAL, monkeypatch)
    actual = case.logits(BOS, CONTEXT, [[memories[k] for k in chunk] for chunk in chunks], chunk_of)
    assert_same(actual, expected)
    if case.layers:
        nothing = case.logits(BOS, CONTEXT)
        assert all(differ(actual[rows], nothing[rows]) for rows in (slice(0, 4), slice(4, 8), slice(12, 15)))


@pytest.mark.parametrize("name", [name for name in NAMED if not name.endswith("-5")])
def test_a_whole_memory_of_all_layers_right_before_the_context_is_plain_context(name: str) -> None:
    case = case_of(name)
    reference = [*REFERENCES[0], 5]
    assert len(reference) == INTERVAL
    assert case.layers == [0, 1, 2, 3]
    memory = whole(case.config, case.arch, case.weights, BOS, reference, [0, 1, 2, 3])
    expected = exact_logits(case.exact, BOS + reference + CONTEXT)[-len(CONTEXT) :]
    assert_same(case.logits(BOS, CONTEXT, [[memory]], [0] * len(CONTEXT)), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])  # its own head, a tied one, another name
def test_a_model_read_from_files_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    config, weights = load(save_tiny_model(tmp_path, name), name)
    live_config, live_weights = load(tiny_model(name), name)
    a = slow_logits(config, name, weights, BOS, CONTEXT)
    np.testing.assert_array_equal(a, slow_logits(live_config, name, live_weights, BOS, CONTEXT))


def test_the_trained_llama_reads_what_slow_memory_wrote_as_transformers_reads_it(
    stories260k: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(stories260k)
    tokenizer = AutoTokenizer.from_pretrained(stories260k)
    texts = [
        "Once upon a time, there was a little girl named Lily.",
        "One day, Tim found a big red ball in the park.",
        "One day, Tim found a big red ball in the park. He was very happy.",
    ]
    *references, ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    bos, ids = [1, *tokenizer.encode("Reference:", add_special_tokens=False)], [1, *ids]
    layers = [1, 3]
    written = [slow_memory(stories260k, "llama", bos, r, layers, 8) for r in references]
    config, weights = load(stories260k, "llama")
    stretches, chunk_of = query_chunks(len(ids), query_tokens=16)
    chunks = [[0], [1, 0]]
    assert len(stretches) == len(chunks)
    actual = slow_logits(
        config, "llama", weights, bos, ids, [[kept(written[k]) for k in c] for c in chunks], chunk_of
    )
    choices: list[Choice] = [
        {(layer, head): row.tolist() for layer in layers for head, row in enumerate(w[layer]["positions"])}
        for w in written
    ]
    case = Case("llama", config, weights, exact_copy(model))
    read = [[] if c is None else chunks[c] for c in chunk_of]
    assert_same(actual, one_row(case, bos, references, choices, ids, read, 128, monkeypatch))
    assert cross_entropy(actual, ids) < 2.0, "a trained model knows such text (uniform: 6.2 nats)"


# --- Laws of reading

LAWS = [
    "qwen3",
    "gemma2-sliding_window-attn_logit_softcapping-query_pre_attn_scalar-final_logit_softcapping-5",
]


@pytest.mark.parametrize("name", LAWS)
def test_order_of_memories_empty_memories_and_cuts_between_them_change_nothing(name: str) -> None:
    case = case_of(name)
    a, b, c = (
        memory_of(case, BOS, r, some_choice(case, len(r), seed)) for seed, r in enumerate(REFERENCES, start=4)
    )
    everyone = [0] * len(CONTEXT)
    expected = case.logits(BOS, CONTEXT, [[a, b, c]], everyone)
    assert differ(expected, case.logits(BOS, CONTEXT, [[a, b]], everyone))
    assert_same(case.logits(BOS, CONTEXT, [[c, a, b]], everyone), expected, 1e-12)
    empty = SlowMemory({at: (keys[:0], values[:0]) for at, (keys, values) in a.parts.items()})
    for more in ([empty], [SlowMemory({})]):
        np.testing.assert_array_equal(case.logits(BOS, CONTEXT, [[a, b, c, *more]], everyone), expected)
    head = SlowMemory({at: (keys[:1], values[:1]) for at, (keys, values) in a.parts.items()})
    tail = SlowMemory({at: (keys[1:], values[1:]) for at, (keys, values) in a.parts.items()})
    assert_same(case.logits(BOS, CONTEXT, [[head, b, tail, c]], everyone), expected, 1e-12)
    # reading no memory is not the same as having no reference BOS and no interval
    np.testing.assert_array_equal(case.logits(BOS, CONTEXT, [[]], everyone), case.logits(BOS, CONTEXT))
    assert differ(case.logits(BOS, CONTEXT), case.logits([], CONTEXT))
    assert differ(case.logits(BOS, CONTEXT), case.logits(BOS, CONTEXT, reference_tokens=0))


@pytest.mark.parametrize("name", LAWS)
def test_a_token_knows_nothing_of_later_tokens_or_of_what_they_read(name: str) -> None:
    case = case_of(name)
    a, b = (memory_of(case, BOS, r, some_choice(case, len(r), 8)) for r in REFERENCES[:2])
    chunk_of = [0] * 5 + [1] * 5 + [2] * 5
    logits = case.logits(BOS, CONTEXT, [[a], [b], [a, b]], chunk_of)
    other = case.logits(BOS, CONTEXT, [[a], [b], [b]], chunk_of)
    np.testing.assert_array_equal(logits[:10], other[:10])
    assert all(differ(logits[i], other[i]) for i in range(10, 15))
    # so the first chunk is as if all read what it reads, and the second as if only two chunks were
    np.testing.assert_array_equal(logits[:5], case.logits(BOS, CONTEXT, [[a]], [0] * 15)[:5])
    np.testing.assert_array_equal(logits[:10], case.logits(BOS, CONTEXT[:10], [[a], [b]], chunk_of[:10]))
    # but not so the other way round: what earlier tokens read reaches later ones through the context
    assert differ(logits[5:10], case.logits(BOS, CONTEXT, [[b]], [0] * 15)[5:10])


@pytest.mark.parametrize("name", LAWS)
def test_in_the_deepest_layer_alone_each_chunk_reads_as_if_all_read_the_same(name: str) -> None:
    case = case_of(name)
    deepest = {(3, head): [0, 2, 1 + head] for head in range(case.kv_heads)}
    assert 3 in case.layers
    chunks = [[memory_of(case, BOS, r, deepest)] for r in REFERENCES]
    chunk_of = [0] * 5 + [1] * 5 + [2] * 5
    logits = case.logits(BOS, CONTEXT, chunks, chunk_of)
    same = [case.logits(BOS, CONTEXT, chunks, [c] * 15) for c in range(3)]
    for c in range(3):
        rows = slice(5 * c, 5 * c + 5)
        np.testing.assert_array_equal(logits[rows], same[c][rows])
        assert differ(same[c][rows], same[(c + 1) % 3][rows])


def test_a_memory_of_the_reference_bos_is_a_reference_bos() -> None:
    case = case_of("olmo2")
    memory = whole(case.config, case.arch, case.weights, [], BOS, [0, 1, 2, 3])
    as_memory = case.logits([], CONTEXT, [[memory]], [0] * len(CONTEXT), reference_tokens=len(BOS) + 7)
    assert_same(as_memory, case.logits(BOS, CONTEXT, reference_tokens=7), 1e-12)


def test_a_window_that_hides_the_start_of_the_memory_interval_is_refused() -> None:
    case = case_of(f"mistral-sliding_window-{REACH}")
    memory = whole(case.config, case.arch, case.weights, BOS, REFERENCES[0], [1])
    longer = [*CONTEXT, 3]
    case.logits(BOS, longer, [[memory]], [0] * len(CONTEXT) + [None])  # its last token reads nothing
    with pytest.raises(ValueError, match=f"layer 1 sees {REACH} tokens"):
        case.logits(BOS, longer, [[memory]], [0] * len(longer))


def test_chunks_for_another_number_of_tokens_are_refused() -> None:
    case = case_of("llama")
    with pytest.raises(ValueError, match="14 tokens, the context has 15"):
        case.logits(BOS, CONTEXT, [[]], [0] * 14)


# --- Query chunks


@pytest.mark.parametrize(
    ("tokens", "mode", "prompt", "stretches", "runs"),
    [
        # runs: (how many tokens, what they read), one after the other
        (0, "prompt", None, [], []),
        (64, "prompt", None, [(0, 64)], [(64, 0)]),
        (150, "prompt", None, [(0, 64), (64, 128), (128, 150)], [(64, 0), (64, 1), (22, 2)]),
        (64, "previous", None, [], [(64, None)]),
        (150, "previous", None, [(0, 64), (64, 128)], [(64, None), (64, 0), (22, 1)]),
        # the prompt's partial chunk is read by the prompt alone; with 28 more tokens it is complete
        (140, "generation", 100, [(0, 64), (64, 100), (64, 128)], [(64, 0), (36, 1), (28, 0), (12, 2)]),
        # from 10: no chunk is complete before token 64
        (140, "generation", 10, [(0, 10), (0, 64), (64, 128)], [(64, 0), (64, 1), (12, 2)]),
        (130, "generation", 64, [(0, 64), (64, 128)], [(128, 0), (2, 1)]),
        (70, "generation", 0, [(0, 64)], [(64, None), (6, 0)]),
    ],
)
def test_query_chunks_are_those_worked_out_by_hand(
    tokens: int,
    mode: str,
    prompt: int | None,
    stretches: list[tuple[int, int]],
    runs: list[tuple[int, int | None]],
) -> None:
    expected = [chunk for length, chunk in runs for _ in range(length)]
    assert query_chunks(tokens, mode, 64, prompt) == (stretches, expected)


@pytest.mark.parametrize("query_tokens", [1, 3, 64])
def test_nothing_is_retrieved_with_text_still_to_come(query_tokens: int) -> None:
    for tokens in range(10):
        stretches, chunk_of = query_chunks(tokens, "previous", query_tokens)
        assert all(c is None or stretches[c][1] <= i for i, c in enumerate(chunk_of))
        for prompt in range(tokens + 1):
            stretches, chunk_of = query_chunks(tokens, "generation", query_tokens, prompt)
            assert all(c is None or stretches[c][1] <= max(i, prompt) for i, c in enumerate(chunk_of))
            # what a token reads stays what it was while more tokens are made
            before, chunk_before = query_chunks(tokens + 1, "generation", query_tokens, prompt)
            assert [c if c is None else before[c] for c in chunk_before[:tokens]] == [
                c if c is None else stretches[c] for c in chunk_of
            ]
        assert query_chunks(tokens, "generation", query_tokens, tokens) == query_chunks(
            tokens, "prompt", query_tokens
        )


def test_unknown_modes_and_prompts_out_of_place_are_refused() -> None:
    with pytest.raises(ValueError, match="mode"):
        query_chunks(5, "next")
    with pytest.raises(ValueError, match="goes with generation"):
        query_chunks(5, "prompt", 64, 3)
    with pytest.raises(ValueError, match="goes with generation"):
        query_chunks(5, "generation")
    with pytest.raises(ValueError, match="a prompt of 6 tokens in a context of 5"):
        query_chunks(5, "generation", 64, 6)


def test_each_stretch_retrieves_with_its_own_tokens() -> None:
    asked: list[list[int]] = []

    def retrieve(ids: list[int]) -> list[SlowMemory]:
        asked.append(ids)
        return [SlowMemory({})] * len(asked)

    chunks, chunk_of = retrieve_for(CONTEXT, retrieve, query_tokens=6)
    assert asked == [CONTEXT[:6], CONTEXT[6:12], CONTEXT[12:]]
    assert [len(memories) for memories in chunks] == [1, 2, 3]
    assert chunk_of == [0] * 6 + [1] * 6 + [2] * 3


# --- Cross entropy and the leak filter


def test_cross_entropy_is_that_of_torch() -> None:
    logits = np.random.default_rng(1).normal(scale=30, size=(len(CONTEXT), 384))
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(logits[:-1]), torch.tensor(CONTEXT[1:]), reduction="none"
    ).numpy()
    np.testing.assert_allclose(token_losses(logits, CONTEXT), expected, rtol=1e-12)
    assert cross_entropy(logits, CONTEXT) == pytest.approx(expected.mean(), rel=1e-12)
    assert cross_entropy(logits, CONTEXT, 9) == pytest.approx(expected[8:].mean(), rel=1e-12)
    flat = np.zeros((2, 384))
    assert cross_entropy(flat, [0, 7]) == pytest.approx(math.log(384), rel=1e-12)
    for first in (0, len(CONTEXT)):
        with pytest.raises(ValueError, match="is predicted"):
            cross_entropy(logits, CONTEXT, first)


@pytest.mark.parametrize(
    ("text", "reference", "matched"),
    [
        ([], [1], 0),
        ([2, 3], [1], 0),
        ([1, 2, 3], [1, 2, 3], 3),
        ([3, 2, 1], [1, 2, 3], 1),
        ([1, 1, 1], [1], 1),
        ([1], [1, 1, 1], 1),
        ([9, 1, 8, 2, 7, 3, 6], [1, 2, 3], 3),
        # the last of two tokens may stand four after the first, not five
        ([1, 0, 0, 0, 2], [1, 2], 2),
        ([1, 0, 0, 0, 0, 2], [1, 2], 1),
        # the later 1 is near enough
        ([1, 0, 0, 1, 0, 0, 2], [1, 2], 2),
        # three near each other beat four that are too far apart
        ([1, 0, 0, 0, 2, 3, 0, 0, 0, 4], [1, 2, 3, 4], 3),
    ],
)
def test_longest_matches_are_those_worked_out_by_hand(
    text: list[int], reference: list[int], matched: int
) -> None:
    assert longest_match(text, reference) == matched
    assert overlap(text, reference) == matched / len(reference)


def common_subsequence(a: list[int], b: list[int]) -> int:
    """Length of the longest one, by the usual table."""
    above = [0] * (len(b) + 1)
    for x in a:
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
        above = row
    return above[-1]


def test_longest_match_is_the_longest_common_subsequence_of_any_window() -> None:
    rng = np.random.default_rng(5)
    limited = 0
    for _ in range(200):
        text = rng.integers(0, 6, rng.integers(0, 30)).tolist()
        reference = rng.integers(0, 6, rng.integers(1, 7)).tolist()
        reach = 2 * len(reference) + 1
        windows = [text[start : start + reach] for start in range(len(text))]
        expected = max((common_subsequence(window, reference) for window in windows), default=0)
        assert longest_match(text, reference) == expected
        limited += expected < common_subsequence(text, reference)
    assert limited > 10, "the limit on the span was hardly tried"


def test_overlap_with_an_empty_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        overlap([1, 2], [])
