"""How well a codec and an embedder that are kept fit what came in: measured where something did, beside
training, and a warning past the limit alone."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_corpus import WORDS, build, data_files

from m3build.bank import open_bank
from m3build.embed.lexical import LexicalEmbedder
from m3build.embed.ngrams import batches, count_ngrams
from m3build.encode import ReferenceEncoder
from m3build.model import load_model
from m3build.pipeline.drift_report import JUDGED_REFERENCES, Figure
from m3build_cli.compile_text import describe_result
from m3build_formats.errors import UsageError

HAN = "记忆注意力键值参考文本模型检索索引编码解码版本文件分片标题词元层头查询"
NEW = {"codec": "SQ8", "dtype": "float32", "shard_chunks": 32, "reference_tokens": 32}


def english(number: int) -> str:
    """A few sentences of words drawn by number."""
    draw = random.Random(number)
    return " ".join(" ".join(draw.choices(WORDS, k=9)).capitalize() + "." for _ in range(6))


def chinese(number: int) -> str:
    draw = random.Random(number)
    return "".join("".join(draw.choices(HAN, k=12)) + "。" for _ in range(4))


@pytest.fixture(scope="module")
def english_bank(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A bank of English and its corpus, to be copied."""
    place = tmp_path_factory.mktemp("drift")
    (place / "corpus").mkdir()
    for number in range(60):
        (place / "corpus" / f"{number:02d}.txt").write_text(english(number), encoding="utf-8")
    fresh = build(place / "corpus", place / "bank", tiny_llama, **NEW)
    assert fresh.drift is None
    return place


@pytest.fixture
def place(english_bank: Path, tmp_path: Path) -> Path:
    shutil.copytree(english_bank, tmp_path / "copy")
    return tmp_path / "copy"


def again(place: Path, model: Path, **options: Any) -> Any:
    return build(place / "corpus", place / "bank", model, **{**NEW, **options})


def add(place: Path, texts: list[str]) -> None:
    for number, text in enumerate(texts):
        (place / "corpus" / f"new-{number:03d}.txt").write_text(text, encoding="utf-8")


def ids_in(bank: Path, version: int) -> set[str]:
    with open_bank(bank, version=version) as opened:
        return {chunk.id for chunk in opened.chunks()}


def test_documents_of_another_kind_are_told_with_the_figures_at_training(
    place: Path, tiny_llama: Path
) -> None:
    add(place, [chinese(number) for number in range(40)])
    result = again(place, tiny_llama)
    drift = result.drift
    assert drift.references == result.encoded
    assert drift.sampled == max(JUDGED_REFERENCES, drift.references // 5)
    (warning,) = [note for note in result.notes if "--retrain" in note]
    assert "--drift 10%" in warning
    figures = {figure.name: figure for figure in drift.figures}
    assert set(figures) == {"key_error", "value_error", "ngram_weight"}
    assert {figure.name for figure in drift.exceeded} >= {"key_error", "ngram_weight"}
    then = result.manifest.codec
    assert figures["key_error"].training == then["key_error"]
    assert figures["value_error"].training == then["value_error"]

    # Measured once more, from the bank and the model alone.
    exact_keys, stored_keys, exact_values, stored_values, texts = measured_again(place / "bank", tiny_llama)
    assert len(texts) == drift.sampled
    assert figures["key_error"].new == pytest.approx(relative_error(exact_keys, stored_keys), rel=1e-4)
    assert figures["value_error"].new == pytest.approx(relative_error(exact_values, stored_values), rel=1e-4)
