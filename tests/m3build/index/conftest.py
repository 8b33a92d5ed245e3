"""FAISS on one thread: on these sizes more threads only wait for each other."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from m3build.index.library import one_thread


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield
