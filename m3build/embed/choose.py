"""Which embedder a name or a bank's arrays mean."""

from __future__ import annotations

from m3build.embed.base import Arrays, Embedder
from m3build.embed.lexical import NAME as LEXICAL
from m3build.embed.lexical import LexicalEmbedder
from m3build_formats.errors import CorruptError


def make_embedder(name: str = LEXICAL) -> Embedder:
    """The embedder of ``--embedder``: ``lexical``, or a sentence-transformers directory or hub id. UsageError
    if it cannot be had."""
    if name == LEXICAL:
        return LexicalEmbedder()
    from m3build.embed.neural import SentenceTransformersEmbedder

    return SentenceTransformersEmbedder(name)


def load_embedder(arrays: Arrays) -> Embedder:
    """The embedder of a bank, from the arrays of its embedder file (which may hold others beside).
    CorruptError if they describe none."""
    if any(name.startswith("lexical.") for name in arrays):
        return LexicalEmbedder.from_arrays(arrays)
    if any(name.startswith("sentence-transformers.") for name in arrays):
        from m3build.embed.neural import SentenceTransformersEmbedder

        return SentenceTransformersEmbedder.from_arrays(arrays)
    raise CorruptError("embedder: its arrays describe no embedder that this m3build knows")
