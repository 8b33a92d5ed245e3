"""Plain text: one document a file, as it stands, with line ends made "\\n". Also what any other text is
taken for."""

from __future__ import annotations

from m3build.corpus.registry import Format
from m3build.corpus.whole_file import Extracted, document_reader

SURENESS = 1


def sniff(head: bytes, text: str | None) -> int:
    """Anything that is text, if no other format knows it."""
    return 0 if text is None else SURENESS


FORMAT = Format("text", (".txt", ".text"), document_reader(Extracted), sniff=sniff)
