"""Laws of rebuilds on a few random scripts; ``full.py`` tries hundreds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from corpus_edits import KINDS, Edit, base_corpus, edited
from hypothesis import HealthCheck, Phase, given, settings
from rebuild_laws import Laws, Step, steps

FEW = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def laws(tiny_llama: Path) -> Iterator[Laws]:
    with Laws(tiny_llama) as found:
        yield found


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_of_each_kind_changes_the_corpus(kind: str) -> None:
    corpus = base_corpus()
    assert edited(corpus, Edit(kind, 4, 3, 7)) != corpus


@FEW
@given(script=steps(2))
def test_an_incremental_build_is_a_fresh_build_with_the_same_codec_and_embedder(
    laws: Laws, script: list[Step]
) -> None:
    laws.incremental_is_fresh(script)


@FEW
@given(script=steps(2))
def test_a_build_that_was_killed_anywhere_ends_as_one_that_was_not(laws: Laws, script: list[Step]) -> None:
    laws.killed_is_fresh(script, "SQ8")
