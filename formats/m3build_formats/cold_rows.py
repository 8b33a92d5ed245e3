"""Which rows of a memories table are *cold*: their reference has a text and a vector, and no memory yet.

A cold row has no kept position at all, and so no codes. A reference has at least one token, and whoever
encodes one keeps at least one, so that no memory looks like that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from m3build_formats.layout import UNUSED_SLOT

if TYPE_CHECKING:
    from numpy.typing import NDArray


def cold_rows(rows: NDArray[np.uint8], codes_bytes: int) -> NDArray[np.bool_]:
    """Of memory rows (n, row bytes), whose first ``codes_bytes`` are codes, those that are cold: (n,)."""
    found: NDArray[np.bool_] = (rows[:, codes_bytes:] == UNUSED_SLOT).all(axis=1)
    return found


def empty_rows(count: int, row_bytes: int, codes_bytes: int) -> NDArray[np.uint8]:
    """``count`` cold memory rows, as a memories table holds them."""
    rows = np.zeros((count, row_bytes), np.uint8)
    rows[:, codes_bytes:] = UNUSED_SLOT
    return rows
