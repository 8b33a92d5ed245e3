"""The lexical embedder: BM25 and its projection against slow transcriptions, neighbours, and its arrays."""

from __future__ import annotations

import math
import random

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.embed import lexical, load_embedder, make_embedder, ngrams
from m3build.embed.lexical import LexicalEmbedder
from m3build.embed.ngrams import BUCKETS, count_ngrams, fold
from m3build_formats.errors import CorruptError, UsageError

SAMPLE = [
    "The quick brown fox jumps over the lazy dog.",
    "A bank is a directory; nothing in it is ever overwritten.",
    "Memories are sparse attention keys and values of short texts.",
    "记忆是稀疏的注意力键和值。参考文本很短。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
]
TEXTS = st.lists(st.text(st.sampled_from("abcde  memory中文字 ไทย,"), max_size=60), max_size=12)


@pytest.fixture(scope="module")
def fitted() -> LexicalEmbedder:
    embedder = LexicalEmbedder(dim=128)
    embedder.fit(SAMPLE)
    return embedder


def counts(text: str) -> dict[int, int]:
    counted = count_ngrams([fold(text)])
    return dict(zip(counted.buckets.tolist(), counted.counts.tolist(), strict=True))


def idf(bucket: int) -> float:
    frequency = sum(bucket in counts(text) for text in SAMPLE)
    return math.log(1 + (len(SAMPLE) - frequency + 0.5) / (frequency + 0.5))


def saturated(text: str) -> dict[int, float]:
    some = counts(text)
    average = sum(sum(counts(other).values()) for other in SAMPLE) / len(SAMPLE)
    norm = 1.2 * (1 - 0.75 + 0.75 * sum(some.values()) / average)
    return {bucket: count * 2.2 / (count + norm) for bucket, count in some.items()}


def slow_projection(weights: dict[int, float], dim: int) -> list[float]:
    out = [0.0] * dim
    for bucket in sorted(weights):
        value = (bucket + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ value >> 27) * 0x94D049BB133111EB % 2**64
        value ^= value >> 31
        for block in range(4):
            field = value >> 16 * block & 0xFFFF
            place = block * (dim // 4) + ((field >> 1) * (dim // 4) >> 15)
            out[place] += (-1 if field & 1 else 1) * weights[bucket] / 2
    return out


def test_rerank_is_bm25(fitted: LexicalEmbedder) -> None:
    query = "sparse memory of a bank, 记忆"
    wanted = counts(query)
    expected = [
        sum(count * idf(bucket) * saturated(text).get(bucket, 0.0) for bucket, count in wanted.items())
        for text in SAMPLE
    ]
    np.testing.assert_allclose(fitted.rerank(query, SAMPLE), expected, rtol=1e-5)


@pytest.mark.parametrize("text", [*SAMPLE, "unseen words", ""])
def test_vectors_are_the_written_projection(fitted: LexicalEmbedder, text: str) -> None:
    stored = slow_projection({bucket: value * idf(bucket) for bucket, value in saturated(text).items()}, 128)
    asked = slow_projection({bucket: count * idf(bucket) for bucket, count in counts(text).items()}, 128)
    np.testing.assert_allclose(fitted.embed([text])[0], stored, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(fitted.embed_queries([text])[0], asked, rtol=1e-5, atol=1e-5)


CHECK_VALUES = {
    "a": ({717674}, {31, 62}, {13, 36}),
    "AB": ({504523, 616687, 727736}, {6, 27, 37, 42, 53}, {0, 2, 18, 22, 45, 48, 62}),
    "中文": ({81641, 326801, 944793}, {9, 11, 28, 36}, {15, 17, 18, 38, 47, 48}),
}


@pytest.mark.parametrize("text", CHECK_VALUES)
def test_the_check_values_of_the_specification_hold(text: str) -> None:
    buckets, positive, negative = CHECK_VALUES[text]
    assert set(counts(text)) == buckets
    (vector,) = LexicalEmbedder(dim=64).embed_queries([text])
    assert set(np.flatnonzero(vector > 0)) == positive
    assert set(np.flatnonzero(vector < 0)) == negative
    np.testing.assert_allclose(np.abs(vector[vector != 0]), math.log(2) / 2, rtol=1e-6)


def test_shape_and_type_of_vectors(fitted: LexicalEmbedder) -> None:
    stored, asked = fitted.embed(SAMPLE), fitted.embed_queries([])
    assert (stored.dtype, stored.shape) == (np.float16, (5, 128))
    assert (asked.dtype, asked.shape) == (np.float32, (0, 128))


@settings(deadline=None)
@given(TEXTS, st.randoms(use_true_random=False))
def test_a_vector_is_the_same_bits_whatever_it_is_batched_with(
    fitted: LexicalEmbedder, texts: list[str], chance: random.Random
) -> None:
    embedder = fitted
    whole = embedder.embed(texts)
    order = list(range(len(texts)))
    chance.shuffle(order)
    shuffled = embedder.embed([texts[n] for n in order])
    assert all(shuffled[place].tobytes() == whole[n].tobytes() for place, n in enumerate(order))
    assert all(embedder.embed([text]).tobytes() == whole[n].tobytes() for n, text in enumerate(texts))
    if texts:
        scores = embedder.rerank("memory 中文", texts)
        assert scores[-1] == embedder.rerank("memory 中文", texts[-1:])[0]


def test_the_size_of_batches_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{text} number {n}" for n in range(40) for text in SAMPLE]
    results = []
    for characters in (1, 500, 1 << 20):
        monkeypatch.setattr(ngrams, "BATCH_CHARACTERS", characters)
        embedder = LexicalEmbedder()
        embedder.fit(texts)
        results.append(
            (embedder.embed(texts).tobytes(), embedder.to_arrays()["lexical.frequencies"].tobytes())
        )
    assert results[0] == results[1] == results[2]


def test_the_order_of_the_sample_does_not_matter() -> None:
    one, other = LexicalEmbedder(), LexicalEmbedder()
    one.fit(SAMPLE)
    other.fit(reversed(SAMPLE))
    assert one.fits(other.to_arrays())


def test_an_unseen_bucket_weighs_as_much_as_the_rarest_can(fitted: LexicalEmbedder) -> None:
    unseen, seen = fitted.rerank("zyxwv fox", ["zyxwv zyxwv", "fox"])
    assert np.isfinite([unseen, seen]).all()
    assert unseen > seen > 0


def test_an_embedder_fitted_on_nothing_still_finds_equal_words() -> None:
    embedder = LexicalEmbedder()
    embedder.fit([])
    scores = embedder.rerank("fox", ["fox", "hen", ""])
    assert scores[0] > 0
    assert scores[1:].tolist() == [0, 0]
    assert not embedder.embed(["  ", ""]).any()


def test_a_text_built_to_overflow_stays_finite() -> None:
    embedder = LexicalEmbedder(dim=64)
    embedder.fit(["a"] * 1000)
    hostile = "".join(map(chr, range(0x4E00, 0x9FFF))) * 3
    assert np.isfinite(embedder.embed([hostile])).all()


def test_products_of_projected_vectors_follow_the_exact_ones() -> None:
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(400)]
    texts = [" ".join(chance.sample(words, 20)) for _ in range(300)]
    embedder = LexicalEmbedder()
    embedder.fit(texts)
    queries = [" ".join(text.split()[:8]) for text in texts[:50]]
    nearest = (embedder.embed_queries(queries) @ embedder.embed(texts).astype(np.float32).T).argmax(axis=1)
    assert (nearest == np.arange(50)).mean() >= 0.95


def test_arrays_bring_back_the_same_embedder(fitted: LexicalEmbedder) -> None:
    again = load_embedder({**fitted.to_arrays(), "index.spec": np.zeros(1, np.uint8)})
    assert again.embed(SAMPLE).tobytes() == fitted.embed(SAMPLE).tobytes()
    assert again.facts() == fitted.facts()
    assert again.fits(fitted.to_arrays())
    assert not again.fits(LexicalEmbedder(dim=128).to_arrays())


DAMAGE: dict[str, tuple[str, npt.NDArray[np.generic] | None]] = {
    "missing": ("lexical.totals", None),
    "another type": ("lexical.buckets", np.zeros(3, np.int64)),
    "another shape": ("lexical.shape", np.zeros((2, 1), np.int64)),
    "another length": ("lexical.frequencies", np.ones(3, np.uint32)),
    "other constants": ("lexical.bm25", np.array([0.9, 0.4])),
    "constants not a number": ("lexical.bm25", np.array([np.nan, 0.75])),
    "absurd dimensions": ("lexical.shape", np.array([1 << 40, 200], np.int64)),
    "no candidates": ("lexical.shape", np.array([512, 0], np.int64)),
    "negative totals": ("lexical.totals", np.array([5, -1], np.int64)),
    "fewer texts than frequencies": ("lexical.totals", np.array([0, 100], np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_arrays_that_cannot_be_are_corrupt(fitted: LexicalEmbedder, damage: str) -> None:
    name, array = DAMAGE[damage]
    arrays = fitted.to_arrays()
    del arrays[name]
    if array is not None:
        arrays[name] = array
    with pytest.raises(CorruptError, match="embedder"):
        LexicalEmbedder.from_arrays(arrays)


@pytest.mark.parametrize("change", ["descending", "repeated", "too large"])
def test_buckets_that_are_no_ascending_numbers_are_corrupt(fitted: LexicalEmbedder, change: str) -> None:
    arrays = fitted.to_arrays()
    buckets = arrays["lexical.buckets"].copy()
    if change == "descending":
        buckets = buckets[::-1].copy()
    elif change == "repeated":
        buckets[1] = buckets[0]
    else:
        buckets[-1] = BUCKETS
    with pytest.raises(CorruptError, match="ascending"):
        LexicalEmbedder.from_arrays({**arrays, "lexical.buckets": buckets})


def test_arrays_of_no_known_embedder_are_corrupt() -> None:
    with pytest.raises(CorruptError, match="no embedder"):
        load_embedder({"index.spec": np.zeros(1, np.uint8)})


@pytest.mark.parametrize("dim", [0, 60, 66, 10_000])
def test_dimensions_that_cannot_be_are_refused(dim: int) -> None:
    with pytest.raises(UsageError, match="multiple of 4"):
        LexicalEmbedder(dim=dim)


def test_the_default_embedder_is_the_lexical_one() -> None:
    embedder = make_embedder()
    assert (embedder.name, embedder.dim, embedder.candidates) == (lexical.NAME, 512, 200)
