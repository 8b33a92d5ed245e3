"""FAISS itself: imported at first use, and on one thread where its result must not depend on the number of
cores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def load_faiss() -> Any:
    """The module ``faiss``. Untyped: its stubs do not know all that it offers."""
    return import_module("faiss")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run FAISS (and the BLAS in it) on one thread within the block."""
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
