"""Sets of chunk ids: sorted arrays of distinct ids, worked on in place, so that one takes 33 bytes an id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Ids: TypeAlias = NDArray[np.bytes_]
    Mask: TypeAlias = NDArray[np.bool_]

# NumPy takes zero bytes at the end for padding, which changes nothing among strings that are all 32 long.
ID: Final = np.dtype("S32")
_BLOCK: Final = 1 << 16


def sorted_set(ids: Ids) -> Ids:
    """The distinct ids of an array in any order, sorted: a view of the array, which is overwritten."""
    ids.sort()
    first = np.ones(len(ids), np.bool_)
    np.not_equal(ids[1:], ids[:-1], out=first[1:])
    return keep(ids, first)


def keep(ids: Ids, chosen: Mask) -> Ids:
    """The ids where ``chosen`` is true, in their order: a view of the array, which is overwritten."""
    kept = 0
    for start in range(0, len(ids), _BLOCK):
        block = ids[start : start + _BLOCK][chosen[start : start + _BLOCK]]
        ids[kept : kept + len(block)] = block
        kept += len(block)
    return ids[:kept]


def is_in(ids: Ids, others: Ids) -> Mask:
    """For each of ``ids``, in any order, whether the sorted set ``others`` has it."""
    found = np.zeros(len(ids), np.bool_)
    for start in range(0, len(ids) if len(others) else 0, _BLOCK):
        block = ids[start : start + _BLOCK]
        places = np.minimum(np.searchsorted(others, block), len(others) - 1)
        found[start : start + len(block)] = others[places] == block
    return found


def mark(found: Mask, ids: Ids, others: Ids) -> None:
    """Sets ``found`` for each id of the sorted set ``ids`` that is one of ``others``, which are in any
    order."""
    if len(ids):
        places = np.minimum(np.searchsorted(ids, others), len(ids) - 1)
        found[places[ids[places] == others]] = True
