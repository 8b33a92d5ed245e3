"""Index files are FAISS's own bytes, opaque here but for their first four, which name the index type.

FAISS's readers have had memory-safety bugs in the rarer types; so only types on the allow-list of
`layout.FAISS_FOURCC` are handed out, after the whole file's SHA-256 was checked. Types nested inside (the
quantizer of an IVF index) are for the caller to check.
"""

from __future__ import annotations

from m3build_formats.errors import M3Error
from m3build_formats.layout import FAISS_FOURCC


def check_index_type(fourcc: bytes, where: str, error: type[M3Error]) -> str:
    """The words for an index type; raises ``error`` for one that is not allowed."""
    if fourcc not in FAISS_FOURCC:
        allowed = ", ".join(code.decode() for code in FAISS_FOURCC)
        raise error(f"{where}: FAISS index type {fourcc!r} is not allowed; format 1 knows {allowed}")
    return FAISS_FOURCC[fourcc]
