"""Vectors on disk are read as an array is, and an index trained on them is that of the array."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from m3build.index import VectorFile, train

DIM = 16


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((10, DIM)).astype(np.float16)
    with closing(VectorFile(DIM, tmp_path)) as file:
        assert file.shape == (0, DIM)
        assert file[:5].shape == (0, DIM)
        for begin in range(0, 10, 4):
            file.append(rows[begin : begin + 4])
            assert np.array_equal(file[:], rows[: begin + 4])
        assert file.shape == rows.shape
        assert len(file) == 10
        for part in (slice(2, 5), slice(-3, None), slice(7, 3), slice(8, 40)):
            assert np.array_equal(file[part], rows[part])
        with pytest.raises(ValueError, match="one after the other"):
            file[::2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("spec", ["SQ8", "IVF8,SQfp16", "IVF4,PQ4"])
def test_an_index_is_trained_on_a_file_as_on_an_array(spec: str) -> None:
    rows = np.random.default_rng(1).standard_normal((12_000, DIM)).astype(np.float16)
    with closing(VectorFile(DIM)) as file:
        file.append(rows)
        found, expected = train(spec, 100_000, file).to_arrays(), train(spec, 100_000, rows).to_arrays()
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
