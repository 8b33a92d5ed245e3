"""``Memories``: what is selected from them, in NumPy and in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from m3build import Memories


def numbered(kind: Callable[[np.ndarray], Any]) -> Memories[Any]:
    """Five memories of 2 layers, 3 heads, 2 slots, 4 dimensions; memory i holds i in every array."""
    each = np.arange(5)
    shape = (5, 2, 3, 2)
    fill = np.broadcast_to(each[:, None, None, None], shape)
    vectors = np.broadcast_to(fill[..., None], (*shape, 4)).astype(np.float32)
    return Memories(
        tuple(f"{i:064x}" for i in range(5)),
        (0, 3),
        kind(vectors.copy()),
        kind(-vectors),
        kind(fill.astype(np.uint8)),
        kind(fill > 0),
    )


@pytest.fixture(params=[np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def memories(request: pytest.FixtureRequest) -> Memories[Any]:
    return numbered(request.param)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (3, [3]),
        (-1, [4]),
        (np.int64(2), [2]),
        (slice(1, None, 2), [1, 3]),
        (slice(None, None, -1), [4, 3, 2, 1, 0]),
        ([2, 0, 2], [2, 0, 2]),
        (np.array([4, -5]), [4, 0]),
        (np.array([False, True, False, False, True]), [1, 4]),
        ([], []),
    ],
)
def test_a_selection_takes_all_fields_alike(
    memories: Memories[Any], chosen: Any, expected: list[int]
) -> None:
    some = memories[chosen]
    assert len(some) == len(expected)
    assert [int(name, 16) for name in some.ids] == expected
    assert some.memory_layers == (0, 3)
    for array, factor in ((some.keys, 1), (some.values, -1), (some.positions, 1)):
        assert array.shape[1:4] == (2, 3, 2)
        assert [float(one.min()) for one in array] == [float(one.max()) for one in array]
        assert [factor * float(one.max()) for one in array] == expected
    assert [bool(one.all()) for one in some.mask] == [number > 0 for number in expected]
    assert some.keys.dtype == memories.keys.dtype


def test_a_selection_is_a_copy(memories: Memories[Any]) -> None:
    some = memories[:2]
    some.keys[:] = 99
    assert float(memories.keys[1].max()) == 1


@pytest.mark.parametrize("chosen", [5, -6, [0, 5], np.array([True, False])])
def test_numbers_that_are_not_there_are_an_index_error(memories: Memories[Any], chosen: Any) -> None:
    with pytest.raises(IndexError):
        memories[chosen]
