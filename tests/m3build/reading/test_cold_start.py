"""A bank of text only, read by a model: memories are made at first retrieval, are those of a warm build, and
can be written back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from models import tiny_model, tiny_tokenizer
from small_corpus import build, write_corpus

from m3build.bank import Bank, open_bank
from m3build.reader import attach
from m3build_formats.bank import list_versions
from m3build_formats.errors import MismatchError
from m3build_formats.verify import verify

PROMPT = "memory layer head token query key value bank shard index"


@pytest.fixture(scope="module")
def banks(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> tuple[Path, Path]:
    """A bank of text only, and a warm one of the same corpus, unquantized."""
    directory = tmp_path_factory.mktemp("cold")
    corpus = write_corpus(directory / "corpus")
    # Not all heads hold memory, so that rows and arrays differ in shape.
    options = {"codec": "none", "dtype": "float32", "memory_heads": "0:1;1:0,1"}
    build(corpus, directory / "cold", tiny_llama, text_only=True, **options)
    build(corpus, directory / "warm", tiny_llama, **options)
    return directory / "cold", directory / "warm"


def logits(model: Any, bank: Bank, **options: Any) -> tuple[torch.Tensor, Sequence[str]]:
    ids = torch.tensor([tiny_tokenizer().encode(PROMPT)])
    with attach(model, bank, tokenizer=tiny_tokenizer(), **options) as reader, torch.no_grad():
        found = model(ids).logits
        return found, [reference for some in reader.last_read for reference in map(_id, some)]


def _id(reference: Any) -> str:
    return reference if isinstance(reference, str) else str(reference.id)


def test_a_cold_bank_reads_as_a_warm_one_and_persists_what_it_made(banks: tuple[Path, Path]) -> None:
    cold, warm = banks
    model = tiny_model("llama")
    with open_bank(warm) as bank:
        expected, references = logits(model, bank)
        stored = bank.read(references)
    assert len(set(references)) == 5
    ids = torch.tensor([tiny_tokenizer().encode(PROMPT)])
    with attach(model, cold, tokenizer=tiny_tokenizer()) as reader, torch.no_grad():
        # Stored memories are rounded to bfloat16, those just made are not.
        torch.testing.assert_close(model(ids).logits, expected, atol=2e-2, rtol=0)
        assert [_id(one) for one in reader.last_read[0]] == references
        assert reader.persist() == 2
    assert list_versions(cold) == [1, 2]
    assert not verify(cold).problems
    with open_bank(cold) as bank:
        assert bank.manifest.cold == bank.files.rows - sum(
            1 for shard in bank.files.shards for chunk in shard.chunks() if chunk.id.hex() in references
        )
        read = bank.read(references)
        assert (read.keys == stored.keys).all()
        assert (read.values == stored.values).all()
        assert (read.positions == stored.positions).all()
        # Some are warm now, others are not: both are read, and the warm ones are those that are stored.
        others = [
            chunk.id.hex()
            for shard in bank.files.shards
            for chunk in shard.chunks()
            if chunk.id.hex() not in references
        ][:2]
        with pytest.raises(MismatchError, match="has no memory yet"):
            bank.read([references[0], others[0]])

        def mixed(texts: Sequence[str]) -> list[list[str]]:
            return [[*references[:2], *others] for _ in texts]

        found, _ = logits(model, bank, retrieve=mixed)
    with open_bank(warm) as bank:
        expected, _ = logits(model, bank, retrieve=mixed)
    torch.testing.assert_close(found, expected, atol=2e-2, rtol=0)
    assert not torch.allclose(found, logits_without(model, cold), atol=1e-3)


def logits_without(model: Any, path: Path) -> torch.Tensor:
    with open_bank(path) as bank:
        return logits(model, bank, references=0)[0]


def test_persisting_nothing_makes_no_version(banks: tuple[Path, Path]) -> None:
    cold, _ = banks
    before = list_versions(cold)
    with attach(tiny_model("llama"), cold, tokenizer=tiny_tokenizer()) as reader:
        assert reader.persist() == before[-1]
    assert list_versions(cold) == before
