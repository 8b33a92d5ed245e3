"""Rows put in any order come back in their own."""

from __future__ import annotations

import errno
import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3build.pipeline.row_file import RowFile
from m3build_formats.errors import ResourceError


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rows=st.integers(1, 40), width=st.integers(1, 9), step=st.integers(1, 50))
def test_rows_come_back_whatever_the_order_and_the_batches(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, rows: int, width: int, step: int
) -> None:
    expected = np.random.default_rng(rows).integers(0, 256, (rows, width)).astype(np.uint8)
    order = data.draw(st.permutations(range(rows)))
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    with closing(RowFile(width, tmp_path_factory.getbasetemp())) as file:
        for low, high in zip([0, *cuts], [*cuts, rows], strict=True):
            file.put(order[low:high], expected[order[low:high]])
        blocks = list(file.blocks(rows, step))
    assert all(len(block) <= step for block in blocks)
    assert np.array_equal(np.concatenate(blocks), expected)


def test_a_row_that_is_put_again_holds_what_was_put_last(tmp_path: Path) -> None:
    with closing(RowFile(2, tmp_path)) as file:
        file.put([0, 1], np.array([[1, 2], [3, 4]], np.uint8))
        file.put([1], np.array([[5, 6]], np.uint8))
        assert np.concatenate(list(file.blocks(2, 2))).tolist() == [[1, 2], [5, 6]]


def test_nothing_of_it_stays_on_disk(tmp_path: Path) -> None:
    with closing(RowFile(2, tmp_path)) as file:
        file.put([3], np.zeros((1, 2), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_what_the_disk_takes_in_parts_is_written_whole_and_a_full_disk_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = 30
    real = os.pwrite

    def scarce(descriptor: int, data: memoryview, at: int) -> int:
        nonlocal space
        if not space:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = real(descriptor, data[: min(7, space)], at)
        space -= written
        return written

    monkeypatch.setattr(os, "pwrite", scarce)
    rows = np.arange(30, dtype=np.uint8).reshape(10, 3)
    with closing(RowFile(3, tmp_path)) as file:
        file.put(range(10), rows)
        assert np.array_equal(next(file.blocks(10, 10)), rows)
        with pytest.raises(ResourceError, match=r"cannot keep memories in .*: .*space"):
            file.put([10], rows[:1])
