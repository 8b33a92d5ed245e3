"""How well a codec and an embedder that are kept fit what came in: measured where something did, beside
training, and a warning past the limit alone."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cheap_builds import cheap_builds
from reference.slow_memory import slow_memory
from small_corpus import WORDS, build, data_files
from transformers import PreTrainedTokenizerFast

from m3build.bank import open_bank
from m3build.embed.lexical import LexicalEmbedder
from m3build.embed.ngrams import count_ngrams, fold
from m3build.pipeline import build as build_module
from m3build.pipeline.drift_report import JUDGED_REFERENCES, Figure
from m3build_cli.compile_text import describe_result
from m3build_formats.errors import UsageError

HAN = "记忆注意力键值参考文本模型检索索引编码解码版本文件分片标题词元层头查询"
NEW = {"codec": "PQ4x4", "dtype": "float32", "shard_chunks": 32, "reference_tokens": 32}


def english(number: int) -> str:
    """A few sentences of words drawn by number."""
    draw = random.Random(number)
    return " ".join(" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(6))


def chinese(number: int) -> str:
    draw = random.Random(number)
    return "".join("".join(draw.choices(HAN, k=9)) + "。" for _ in range(2))


@pytest.fixture(scope="module")
def english_bank(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A bank of English and its corpus, to be copied."""
    place = tmp_path_factory.mktemp("drift")
    (place / "corpus").mkdir()
    for number in range(60):
        (place / "corpus" / f"{number:02d}.txt").write_text(english(number), encoding="utf-8")
    fresh = build(place / "corpus", place / "bank", tiny_llama, **NEW)
    assert fresh.drift is None
    assert fresh.to_json()["drift"] is None
    return place


@pytest.fixture
def place(english_bank: Path, tmp_path: Path) -> Path:
    shutil.copytree(english_bank, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def cheap() -> Iterator[None]:
    """Memories that depend on the reference alone, for tests that ask what is measured, not how much."""
    with cheap_builds():
        yield


def again(place: Path, model: Path, **options: Any) -> Any:
    return build(place / "corpus", place / "bank", model, **{**NEW, **options})


def add(place: Path, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        (place / "corpus" / f"new-{number:03d}.txt").write_text(text, encoding="utf-8")


def texts_of(bank: Path, version: int) -> dict[str, str]:
    """The texts of a version by their ids."""
    with open_bank(bank, version=version) as opened:
        return {
            bytes(chunk.id).hex(): chunk.text for shard in opened.files.shards for chunk in shard.chunks()
        }


def drawn_ids(bank: Path) -> list[str]:
    """The new references with the smallest ids: a fifth of them, or as many as are judged."""
    new = sorted(set(texts_of(bank, 2)) - set(texts_of(bank, 1)))
    return new[: max(JUDGED_REFERENCES, len(new) // 5)]


def relative_errors(bank: Path, model: Path, ids: list[str]) -> list[float]:
    """Of keys and values: squared error of what the bank holds against a transcription of the model in
    float64, over the variance about the mean of each layer and head."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    texts = texts_of(bank, 2)
    with open_bank(bank) as opened:
        stored = opened.read(ids)
        bos = opened.manifest.model["reference_bos_ids"]
    sums = np.zeros((2, 2))
    layers = list(stored.memory_layers)
    exact = [
        slow_memory(str(model), "llama", bos, tokenizer(texts[key]).input_ids, layers, 255) for key in ids
    ]
    for place, layer in enumerate(layers):
        for head in range(stored.keys.shape[2]):
            used = stored.mask[:, place, head]
            at = [stored.positions[n, place, head][used[n]] for n in range(len(ids))]
            for side, name in enumerate(("keys", "values")):
                found = getattr(stored, name)[:, place, head][used].astype(np.float64)
                truth = np.concatenate([exact[n][layer][name][head][at[n]] for n in range(len(ids))])
                sums[side] += np.square(found - truth).sum(), np.square(truth - truth.mean(0)).sum()
    return [float(error / reference) for error, reference in sums]


def buckets_of(text: str) -> list[int]:
    """The buckets of a text's n-grams, each once."""
    return count_ngrams([fold(text)]).buckets.tolist()


def weights_by_hand(counted_on: list[str], texts: list[str]) -> float:
    """The mean weight of an n-gram, in plain Python."""
    frequency = Counter(bucket for text in counted_on for bucket in buckets_of(text))
    found = [frequency[bucket] for text in texts for bucket in buckets_of(text)]
    total = len(counted_on)
    return sum(log(1 + (total - df + 0.5) / (df + 0.5)) for df in found) / len(found)


def test_documents_of_another_kind_are_told_with_the_figures_at_training(
    place: Path, tiny_llama: Path
) -> None:
    add(place, [chinese(number) for number in range(40)])
    result = again(place, tiny_llama)
    drift = result.drift
    assert drift.references == result.encoded
    ids = drawn_ids(place / "bank")
    assert drift.sampled == len(ids) >= JUDGED_REFERENCES
    figures = {figure.name: figure for figure in drift.figures}
    assert set(figures) == {"key_error", "value_error", "ngram_weight"}

    codec = result.manifest.codec
    assert [figures[name].training for name in ("key_error", "value_error")] == [
        codec["key_error"],
        codec["value_error"],
    ]
    errors = relative_errors(place / "bank", tiny_llama, ids)
    assert [figures["key_error"].new, figures["value_error"].new] == pytest.approx(errors, rel=1e-3)
    before, now = texts_of(place / "bank", 1), texts_of(place / "bank", 2)
    weight = weights_by_hand(list(before.values()), [now[key] for key in ids])
    assert figures["ngram_weight"].new == pytest.approx(weight)

    assert {figure.name for figure in drift.exceeded} == set(figures)
    (warning,) = [note for note in result.notes if "--retrain" in note]
    assert "--drift 10%" in warning
    assert f"error of keys is {errors[0]:.3g} on them, {codec['key_error']:.3g} at training" in warning
    summary = describe_result(result)
    assert f"error of keys {errors[0]:.3g} ({codec['key_error']:.3g} at training)" in summary
    told = result.to_json()["drift"]
    assert told["exceeded"] == ["key_error", "value_error", "ngram_weight"]
    assert told["key_error"]["training"] == codec["key_error"]


def test_documents_of_the_same_kind_are_measured_and_give_no_warning(place: Path, tiny_llama: Path) -> None:
    add(place, [english(100 + number) for number in range(20)])
    result = again(place, tiny_llama)
    drift = result.drift
    assert drift.judged
    for figure in drift.figures:
        assert figure.new == pytest.approx(figure.training, rel=0.1), figure.name
    assert drift.exceeded == ()
    assert not any("--retrain" in note for note in result.notes)
    assert again(place, tiny_llama).drift is None, "nothing new"


@pytest.mark.usefixtures("cheap")
def test_a_stopped_build_measures_on_the_same_references(
    place: Path, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(place, [chinese(number) for number in range(40)])
    shutil.copytree(place, tmp_path / "other")
    whole = again(tmp_path / "other", tiny_llama)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        # All memories are there by then.
        patched.setattr(build_module, "measure_drift", stop)
        with pytest.raises(KeyboardInterrupt):
            again(place, tiny_llama)
    resumed = again(place, tiny_llama, drift="999999%")
    assert resumed.encoded == 0
    assert replace(resumed.drift, limit=0.1) == whole.drift
    assert not any("--retrain" in note for note in resumed.notes), "the limit is the option's"
    assert data_files(place / "bank") == data_files(tmp_path / "other" / "bank")


@pytest.mark.usefixtures("cheap")
def test_a_few_new_references_are_measured_and_not_judged(place: Path, tiny_llama: Path) -> None:
    add(place, [chinese(0)])
    result = again(place, tiny_llama)
    assert 1 <= result.drift.sampled == result.drift.references < JUDGED_REFERENCES
    assert result.drift.exceeded == ()
    assert "too few to judge by" in describe_result(result)


@pytest.mark.usefixtures("cheap")
def test_nothing_is_measured_where_codec_and_embedder_are_new(place: Path, tiny_llama: Path) -> None:
    add(place, [chinese(0)])
    assert again(place, tiny_llama, retrain=True).drift is None
    with pytest.raises(UsageError, match="--drift"):
        again(place, tiny_llama, drift="much")


@pytest.mark.usefixtures("cheap")
def test_a_bank_of_text_only_measures_nothing(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "corpus").mkdir()
    add(tmp_path, [english(number) for number in range(4)])
    again(tmp_path, tiny_llama, text_only=True)
    add(tmp_path, [chinese(number) for number in range(6)])
    result = again(tmp_path, tiny_llama, text_only=True)
    assert result.changed
    assert result.drift is None
    # The codec is made when the bank is warmed, and so fits; the embedder is the one that was kept.
    warmed = again(tmp_path, tiny_llama, text_only=False)
    assert [figure.name for figure in warmed.drift.figures] == ["ngram_weight"]


def test_the_weight_at_training_leaves_each_text_out_once() -> None:
    texts = [english(number) for number in range(12)]
    embedder = LexicalEmbedder()
    assert embedder.weight_at_training() is None
    embedder.fit(texts)
    total = pairs = 0.0
    for text in texts:
        others = Counter[int]()
        for other in texts:
            others.update(buckets_of(other) if other is not text else [])
        for bucket in buckets_of(text):
            df = others[bucket]
            total += log(1 + (len(texts) - 1 - df + 0.5) / (df + 0.5))
            pairs += 1
    assert embedder.weight_at_training() == pytest.approx(total / pairs)
    assert embedder.weight_of(["...", " "]) is None


@pytest.mark.parametrize(
    ("training", "new", "standard_error", "exceeds"),
    [
        (0.10, 0.12, 0.005, True),
        (0.10, 0.12, 0.011, False),
        (0.10, 0.109, 0.0, False),
        (0.10, 0.05, 0.0, False),
        (None, 0.12, 0.0, False),
        (0.10, 0.12, None, False),
    ],
)
def test_a_figure_is_past_the_limit_by_share_and_beyond_chance(
    training: float | None, new: float, standard_error: float | None, exceeds: bool
) -> None:
    assert Figure("key_error", training, new, standard_error).exceeds(0.1) is exceeds
