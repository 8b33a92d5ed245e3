"""Chunks that wait on disk come back as they went in, and the file goes with them."""

from __future__ import annotations

import tempfile
from array import array
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.pipeline import chunk_spool
from m3build.pipeline.chunk_spool import ChunkSpool
from m3build.records import Chunk

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
# Of a chunk that comes from a bank it is known where its tokens end, but not their ids.
chunks = st.builds(
    Chunk,
    texts,
    st.integers(0, 1 << 40),
    st.integers(0, 1 << 40),
    texts,
    st.lists(st.integers(0, (1 << 32) - 1), max_size=5).map(lambda ids: array("I", ids)),
    st.lists(st.integers(0, (1 << 16) - 1), max_size=5).map(lambda ends: array("H", ends)),
)


@pytest.mark.parametrize("block", [1, 3, 1024])
def test_chunks_come_back_in_order_as_often_as_asked(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_spool, "BLOCK_CHUNKS", block)

    @settings(max_examples=50, deadline=None)
    @given(st.lists(chunks, max_size=8))
    def holds(given: list[Chunk]) -> None:
        spool = ChunkSpool()
        for chunk in given:
            spool.append(chunk)
        assert len(spool) == len(given)
        assert list(spool) == given
        assert list(spool) == given
        spool.close()
        assert list(spool._block) == []

    holds()


def test_blocks_wait_in_the_directory_given_and_nothing_stays_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    real = tempfile.TemporaryFile

    def noted(*arguments: Any, **options: Any) -> Any:
        assert options["dir"] == tmp_path
        opened.append(real(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    spool = ChunkSpool(tmp_path)
    for number in range(2 * chunk_spool.BLOCK_CHUNKS + 1):
        spool.append(Chunk(str(number), number, number + 1, "", array("I"), array("H")))
    assert len(spool._block) == 1
    assert [chunk.text for chunk in spool] == [str(number) for number in range(len(spool))]
    spool.close()
    assert [file.closed for file in opened] == [True]
    assert list(tmp_path.iterdir()) == []
