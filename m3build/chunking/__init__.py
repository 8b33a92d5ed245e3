"""Documents become references: chunks of at most N tokens, cut where a person would cut.

``cutting`` is the way from a document to its chunks, ``boundaries`` says where text may be cut and which
place is best, ``outline`` knows the headings, ``graphemes`` what is one character to a reader, ``encoder``
and ``spelling`` talk to the model's tokenizer, and ``near_duplicates`` finds chunks that say what an
earlier one said.
"""

from __future__ import annotations

from m3build.chunking.cutting import MINIMUM_REFERENCE_TOKENS, Chunker, ChunkOptions
from m3build.chunking.near_duplicates import NearDuplicates

__all__ = ["MINIMUM_REFERENCE_TOKENS", "ChunkOptions", "Chunker", "NearDuplicates"]
