"""Which FAISS indexes a bank may have, and which one ``auto`` means.

Design choices:

- An allow-list, written in FAISS's factory notation: whatever else FAISS can build is refused by name, in
  writing and in reading.
- Vectors reach the index as float16 values, so ``SQfp16`` holds them without loss at half of ``Flat``'s size:
  it is what "exact" means here.
- ``auto`` is exact up to ``EXACT_VECTORS`` vectors in the bank, then IVF where training finds that half of
  the lists or fewer need be probed. An exact scan of a million vectors takes a core some 75 ms, and short
  questions need most lists of an IVF index over lexical vectors (64 of 256 lists found .79 of what exact
  search did among the best ten), so IVF pays late or never. Its number of lists is fixed, so that training it
  costs no more for a larger bank; ask for more lists by name.
- HNSW costs memory and depends on the order of its vectors: only on request.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from m3build_formats.errors import UsageError

Storage = Literal["Flat", "SQfp16", "SQ8", "PQ", "HNSW"]

EXACT_VECTORS = 1_000_000
AUTO_LISTS = 512
MAX_LISTS = 16_384
SAMPLE_PER_LIST = 32
PQ_BITS = 8
# FAISS wants this many vectors per centroid before it stops warning; under it a product quantizer is not
# worth having.
PQ_SAMPLE = 39 << PQ_BITS
MAX_PQ_PARTS = 4096
MAX_HNSW_LINKS = 256

_ALLOWED = "auto, Flat, SQfp16, SQ8, IVF<n>,Flat, IVF<n>,SQfp16, IVF<n>,SQ8, IVF<n>,PQ<m>, HNSW<m>"
_PATTERN = re.compile(
    r"(?:IVF(?P<lists>[1-9]\d{0,5}),)?(?:(?P<plain>Flat|SQfp16|SQ8)|PQ(?P<parts>[1-9]\d{0,3})|HNSW(?P<links>[1-9]\d{0,2}))"
)


@dataclass(frozen=True, slots=True)
class IndexSpec:
    """One allowed kind of index. ``lists``: inverted lists, 0 without; ``m``: parts of the product quantizer
    or links of HNSW, else 0."""

    storage: Storage
    lists: int = 0
    m: int = 0

    def __str__(self) -> str:
        """The factory string; ``parse_spec`` gives the same spec back."""
        storage = f"{self.storage}{self.m}" if self.m else self.storage
        return f"IVF{self.lists},{storage}" if self.lists else storage

    @property
    def exact(self) -> bool:
        """Whether a search sees every stored vector as it is."""
        return not self.lists and self.storage in ("Flat", "SQfp16")


def parse_spec(text: str) -> IndexSpec:
    """An allowed factory string (not ``auto``) as a spec. Raises UsageError for anything else."""
    match = _PATTERN.fullmatch(text)
    if match is None:
        raise UsageError(f"index {text!r} is not one that a bank may have; take one of {_ALLOWED}")
    lists = int(match["lists"] or 0)
    if lists > MAX_LISTS:
        raise UsageError(f"index {text!r}: at most {MAX_LISTS} lists are possible")
    if match["plain"]:
        storage: Storage = (
            "Flat" if match["plain"] == "Flat" else "SQ8" if match["plain"] == "SQ8" else "SQfp16"
        )
        return IndexSpec(storage, lists)
    if match["parts"]:
        if not lists or int(match["parts"]) > MAX_PQ_PARTS:
            raise UsageError(
                f"index {text!r}: PQ comes after IVF<n>, with at most {MAX_PQ_PARTS} parts, as in "
                f"IVF1024,PQ64"
            )
        return IndexSpec("PQ", lists, int(match["parts"]))
    if lists or not 2 <= int(match["links"]) <= MAX_HNSW_LINKS:
        raise UsageError(f"index {text!r}: HNSW stands alone, with 2 to {MAX_HNSW_LINKS} links, as in HNSW32")
    return IndexSpec("HNSW", 0, int(match["links"]))


def choose_spec(text: str, vectors: int) -> IndexSpec:
    """The spec that ``--index`` means for a bank of so many vectors; ``auto`` has no lists where training
    finds that most would be probed (see :func:`m3build.index.state.train`). Raises UsageError for a string
    that is not allowed."""
    if text != "auto":
        return parse_spec(text)
    if vectors <= EXACT_VECTORS:
        return IndexSpec("SQfp16")
    return IndexSpec("SQfp16", AUTO_LISTS)


def check_dimensions(spec: IndexSpec, dim: int) -> None:
    """Raise UsageError for an index that vectors of so many dimensions cannot have."""
    if spec.storage == "PQ" and dim % spec.m:
        raise UsageError(f"index {spec}: {dim} dimensions cannot be divided into {spec.m} equal parts")


def sample_size(spec: IndexSpec) -> int:
    """How many vectors, drawn uniformly, ``train`` wants to see; more are ignored, fewer make a smaller
    index."""
    wanted = SAMPLE_PER_LIST * spec.lists
    if spec.storage == "PQ":
        wanted = max(wanted, 4 * PQ_SAMPLE)
    return max(wanted, 10_000) if spec.lists or spec.storage == "SQ8" else 0


def stored_bytes(spec: IndexSpec, dim: int) -> int:
    """Bytes that one vector takes in an index of the kind, without what all vectors share."""
    each = {"Flat": 4 * dim, "SQfp16": 2 * dim, "SQ8": dim, "PQ": spec.m, "HNSW": 4 * dim + 8 * spec.m}
    return each[spec.storage] + (8 if spec.lists else 0)
