"""Sources → documents: finds the files of a corpus, cuts them into ranges, and reads ranges as a stream of
documents and rejects.

    options = SourceOptions()
    with IdRegistry() as ids:
        for file in discover(["corpus/"], on_reject):
            for part in split(file, options):
                for item in number_equals(read_range(part, options), ids):
                    ...                                     # Document or Reject, in canonical order

Readers never hold more than one document, record batch or Parquet page at a time; bad input costs its
record and becomes a Reject.
"""

from __future__ import annotations

from m3build.corpus.discover import STANDARD_INPUT, discover
from m3build.corpus.exclusion import Exclusion
from m3build.corpus.identity import IdRegistry, number_equals
from m3build.corpus.options import SourceOptions
from m3build.corpus.read import read_range, split
from m3build.corpus.source import SourceFile, SourceRange
from m3build.corpus.standard_input import spool_standard_input

__all__ = [
    "STANDARD_INPUT",
    "Exclusion",
    "IdRegistry",
    "SourceFile",
    "SourceOptions",
    "SourceRange",
    "discover",
    "number_equals",
    "read_range",
    "split",
    "spool_standard_input",
]
