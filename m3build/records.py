"""The records that flow through the compiler: source → Document → Chunk, and what falls out on the way,
Reject.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from m3build_formats.layout import reference_text as reference_text


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of a document: where its line starts in the document's text, its level (1 = top) and its
    words.
    """

    start: int
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document as a source reader found it.

    ``source`` is the file's path relative to its SOURCE argument, with ``/`` as separator (``-`` for standard
    input); it never holds an absolute path. ``position`` is the byte offset (text records) or row number
    (tables) of the record in the decompressed file, 0 for a file that is one document. ``text`` is what the
    reader extracted; every span refers to it, in characters (code points).
    """

    id: str
    source: str
    position: int
    text: str
    title: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    headings: tuple[Heading, ...] = ()


@dataclass(frozen=True, slots=True)
class Reject:
    """Input that could not be used. ``where`` says "line 12", "offset 4096" or "row 7"; ``kind`` separates
    input that is bad (counts against ``--max-rejects``) from files that were passed over since m3build does
    not read their kind.
    """

    source: str
    where: str
    reason: str
    kind: Literal["reject", "unsupported"] = "reject"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A reference: at most ``reference_tokens`` tokens of one document (Memory³ §3.1).

    ``start`` and ``end`` are the character span in the document's text; ``title`` is what ``--title`` put
    before it, else "". ``token_ids`` are those of ``reference_text`` encoded by itself without any special
    token (the reference BOS is not among them); ``token_ends[i]`` is the character offset in
    ``reference_text`` at which token i ends.
    """

    text: str
    start: int
    end: int
    title: str
    token_ids: Sequence[int]
    token_ends: Sequence[int]

    @property
    def reference_text(self) -> str:
        """What is encoded, hashed and embedded: the title, a line feed and the chunk's own text, or the text
        alone.
        """
        return reference_text(self.title, self.text)
