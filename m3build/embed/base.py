"""What every embedder promises. Candidates, normalization and re-ranking belong to the embedder, not to the
search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


class Embedder(Protocol):
    """Texts to vectors for FAISS, and the final order of what FAISS found.

    ``metric`` is "inner_product" (the larger, the nearer). ``candidates`` is how many found texts are handed
    to ``rerank``; 0 means that the index scores stand and ``rerank`` is not called.
    """

    @property
    def name(self) -> str: ...
    @property
    def dim(self) -> int: ...
    @property
    def metric(self) -> str: ...
    @property
    def candidates(self) -> int: ...

    def fit(self, texts: Iterable[str]) -> None:
        """Learn from a sample of the texts that will be embedded."""
        ...

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Vectors of texts to be found, (n, dim); a row does not depend on the other texts."""
        ...

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of queries, (n, dim)."""
        ...

    def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Scores of texts for one query, (n,); the larger, the better; 0 says that they have nothing in
        common."""
        ...

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that ``load_embedder`` needs."""
        ...

    def fits(self, arrays: Arrays) -> bool:
        """Whether this is the embedder that wrote the arrays, so that its vectors may be compared with
        theirs."""
        ...

    def facts(self) -> dict[str, object]:
        """JSON object for the manifest; has ``name`` and ``dim``."""
        ...
