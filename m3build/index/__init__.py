"""The FAISS index of a bank, in parts: one file a shard, sharing what was trained once.

``train`` makes the shared ``IndexState``, ``write_part`` a shard's file, ``open_part`` and ``PartedIndex``
search them.
"""

from m3build.index.parts import Part, build_part, open_part, write_part
from m3build.index.searching import Found, PartedIndex, exact_search, measure_recall
from m3build.index.spec import (
    IndexSpec,
    check_dimensions,
    choose_spec,
    parse_spec,
    sample_size,
    stored_bytes,
)
from m3build.index.state import IndexState, train
from m3build.index.vector_file import VectorFile

__all__ = [
    "Found",
    "IndexSpec",
    "IndexState",
    "Part",
    "PartedIndex",
    "VectorFile",
    "build_part",
    "check_dimensions",
    "choose_spec",
    "exact_search",
    "measure_recall",
    "open_part",
    "parse_spec",
    "sample_size",
    "stored_bytes",
    "train",
    "write_part",
]
