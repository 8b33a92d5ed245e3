"""Embedders: what turns texts into retrieval vectors and puts what was found in its final order."""

from m3build.embed.base import Embedder
from m3build.embed.choose import load_embedder, make_embedder

__all__ = ["Embedder", "load_embedder", "make_embedder"]
