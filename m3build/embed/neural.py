"""Any sentence-transformers model as an embedder: normalized vectors, compared by cosine, with no re-ranking.

Design choices:

- The library is an extra and is imported only here; it needs torch, the lexical embedder does not.
- The transformer's weights come from safetensors only, and no code of a model repository is run.
- A model with a prompt for queries gets it (``encode_query``); one without encodes both sides alike.
- Texts are encoded together only with others of equal token count. So neighbours do not change how a text is
  padded, and on a CPU not its vector.
- A bank keeps the model's name, not its weights, and what the model makes of a fixed text, by which a model
  is known again. Of a model directory the name is its last part: a bank holds no absolute path, so such a
  bank wants the directory given again to be searched.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from m3build.embed.base import Arrays
from m3build_formats.errors import CorruptError, MismatchError, UsageError

PREFIX = "sentence-transformers."
PROBE_TEXT = "A reference is encoded once and read many times. 记忆只写一次。"
BATCH_TEXTS = 64
# Bytes: that of a directory's name. A hub id is shorter.
_LONGEST_NAME = 255


class SentenceTransformersEmbedder:
    """A sentence-transformers directory or hub id. ``device``: as in torch, None chooses the best there is.

    Raises UsageError if the extra is missing or the model cannot be loaded.
    """

    metric = "inner_product"
    candidates = 0

    def __init__(self, model: str, device: str | None = None) -> None:
        self._model = _load(model, device)
        self.name = os.path.basename(os.path.abspath(model)) if os.path.isdir(model) else model
        self._probe = self._encode([PROBE_TEXT], self._model.encode_document)[0]
        self.dim = len(self._probe)

    def fit(self, texts: Iterable[str]) -> None:
        """Nothing to learn; the texts are not looked at."""

    def embed(self, texts: Sequence[str]) -> npt.NDArray[np.float16]:
        """Vectors of length 1 of texts to be found: float16 (n, dim)."""
        return self._encode(texts, self._model.encode_document).astype(np.float16)

    def embed_queries(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Vectors of length 1 of queries: float32 (n, dim)."""
        return self._encode(texts, self._model.encode_query)

    def rerank(self, query: str, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Cosines: float32 (n,). A search does not call this, since ``candidates`` is 0."""
        scores: npt.NDArray[np.float32] = (
            self._encode(texts, self._model.encode_document) @ self.embed_queries([query])[0]
        )
        return scores

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The model's name and what it makes of ``PROBE_TEXT`` (formats/SPEC.md, "Embedder arrays")."""
        return {
            PREFIX + "model": np.frombuffer(self.name.encode(), dtype=np.uint8),
            PREFIX + "probe": self._probe,
        }

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> SentenceTransformersEmbedder:
        """Load the model that a bank names. Raises CorruptError (no name in the arrays), UsageError (cannot
        be loaded), MismatchError (it is another model than the one that embedded the bank)."""
        name, probe = arrays.get(PREFIX + "model"), arrays.get(PREFIX + "probe")
        if name is None or name.dtype != np.uint8 or name.ndim != 1 or not 1 <= len(name) <= _LONGEST_NAME:
            raise CorruptError(f"embedder: the array {PREFIX}model is missing or holds no name")
        if probe is None or probe.dtype != np.float32 or probe.ndim != 1:
            raise CorruptError(f"embedder: the array {PREFIX}probe is missing or holds no vector")
        try:
            model = name.tobytes().decode()
        except UnicodeDecodeError as problem:
            raise CorruptError(f"embedder: the array {PREFIX}model is not UTF-8") from problem
        parts = model.split("/")
        if len(parts) > 2 or not all(part.strip(". ") for part in parts) or not model.isprintable():
            raise CorruptError(f"embedder: the array {PREFIX}model holds {model!r}, which is no name")
        embedder = cls(model)
        if not embedder.fits(arrays):
            raise MismatchError(
                f"embedder: {model} is not the model that embedded this bank (its vectors differ); give the "
                f"right one with --embedder"
            )
        return embedder

    def fits(self, arrays: Arrays) -> bool:
        """Whether this is the model that wrote the arrays, within the tolerance of other devices and
        dtypes."""
        probe = arrays.get(PREFIX + "probe")
        return (
            probe is not None
            and probe.shape == self._probe.shape
            and bool(np.abs(probe - self._probe).max() < 0.02)
        )

    def facts(self) -> dict[str, object]:
        """What a manifest says about the embedder."""
        return {"name": self.name, "dim": self.dim, "metric": self.metric, "candidates": self.candidates}

    def _encode(self, texts: Sequence[str], encode: Any) -> npt.NDArray[np.float32]:
        out = np.zeros((len(texts), getattr(self, "dim", 0)), dtype=np.float32)
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        tokens = (
            self._model.tokenizer(list(texts), truncation=True, max_length=self._model.max_seq_length)[
                "input_ids"
            ]
            if texts
            else []
        )
        for number, ids in enumerate(tokens):
            by_length[len(ids)].append(number)
        for numbers in by_length.values():
            vectors = encode(
                [texts[number] for number in numbers],
                batch_size=BATCH_TEXTS,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=True,
            ).astype(np.float32)
            if not out.shape[1]:
                out = np.zeros((len(texts), vectors.shape[1]), dtype=np.float32)
            out[numbers] = vectors
        return out


def _load(model: str, device: str | None) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as problem:
        raise UsageError(
            f"embedder {model!r} needs the extra sentence-transformers: pip install "
            f"'m3build[sentence-transformers]'\n"
            "(the embedder that needs none is called lexical)"
        ) from problem
    try:
        return SentenceTransformer(
            model, device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, RuntimeError) as problem:
        first = (str(problem).strip().splitlines() or ["unknown reason"])[0][:200]
        raise UsageError(
            f"embedder {model!r} cannot be loaded as a sentence-transformers model with safetensors weights: "
            f"{first}\n"
            "Give a directory or hub id with --embedder, or use the built-in one: lexical"
        ) from problem
