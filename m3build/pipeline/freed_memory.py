"""Memory that is free inside the process goes back to the operating system.

What one stage has used and freed stays with the allocators of C and Arrow, in pieces that the next stage's
arrays do not fit into; so a long build would grow although nothing is held.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import pyarrow as pa


def give_back_freed_memory() -> None:
    """Ask the allocators to return what they do not use. Takes a millisecond or so; does nothing where the C
    library cannot."""
    pa.default_memory_pool().release_unused()
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    """glibc's ``malloc_trim``, None with another C library."""
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
