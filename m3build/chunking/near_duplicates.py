"""Finds chunks that say nearly what an earlier one said: MinHash and locality-sensitive hashing, on disk.

Design choices:

- Two texts are as similar as the Jaccard similarity of their sets of shingles. A shingle is three words in
  a row; the words are those of the lexical embedder: folded (NFKC and case), without punctuation, and
  single characters in scripts without spaces and in Hangul. Three rather than the usual five, since
  references are short: one word changed among 80 leaves a similarity of 0.93, with five words 0.88. A text
  of one or two words is one shingle, a text without any is never a near-duplicate. How often a shingle
  occurs does not count.
- The similarity is estimated from 128 MinHash values (Broder, "On the resemblance and containment of
  documents", 1997): the share of equal ones, right within 0.03 (standard deviation) around 0.9. Shingles
  themselves are not stored, so that is the last word.
- Bands (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets", section 3.4) find candidates without
  missing any: estimates at the threshold differ in at most D values, and with D + 1 bands at least one has
  no difference. The answer is thus the one that comparing with every kept chunk would give, whatever the
  bands. At 0.9 there are 13 bands of 9 or 10 values, and few candidates; the lower the threshold, the more
  bands and candidates, and the slower.
- A chunk is compared with chunks that were kept, not with those left out, so no chain of small changes ends
  in a text unlike all kept ones.
- Everything is in an SQLite file without journal, never committed: work of one run, in bounded memory.
"""

from __future__ import annotations

import hashlib
import math
import re
import sqlite3
import zlib
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from m3build.embed.ngrams import IDEOGRAPHS, SEPARATORS, UNSPACED, fold
from m3build_formats.errors import ResourceError, UsageError

if TYPE_CHECKING:
    from datasketch import MinHash

FILE_NAME = "near-duplicates.sqlite"
SHINGLE_WORDS = 3
PERMUTATIONS = 128
SEED = 1
_CACHE_KIB = 64 * 1024
_CANDIDATES_AT_A_TIME = 512

_SCHEMA = f"""
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA cache_size = -{_CACHE_KIB};
CREATE TABLE answers (key BLOB PRIMARY KEY, left_out INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE kept (number INTEGER PRIMARY KEY, signature BLOB NOT NULL);
CREATE TABLE bands (hash INTEGER, number INTEGER, PRIMARY KEY (hash, number)) WITHOUT ROWID;
BEGIN;
"""


def _ranges(*tables: tuple[tuple[int, int], ...]) -> str:
    return "".join(f"\\U{start:08x}-\\U{end - 1:08x}" for table in tables for start, end in table)


_WORD = re.compile(
    f"[{_ranges(IDEOGRAPHS, UNSPACED)}]|[^{_ranges(IDEOGRAPHS, UNSPACED, SEPARATORS)}]+",
)


def shingles(text: str) -> list[str]:
    """Every ``SHINGLE_WORDS`` words in a row, joined by spaces, in order; all the words of a shorter text;
    [] without words.
    """
    words = _WORD.findall(fold(text))
    if len(words) <= SHINGLE_WORDS:
        return [" ".join(words)] if words else []
    return [" ".join(run) for run in zip(*(words[at:] for at in range(SHINGLE_WORDS)), strict=False)]


class NearDuplicates:
    """Tells which chunks of a corpus are nearly an earlier one.

    ``threshold`` is the least similarity (0 < threshold <= 1) at which a chunk is left out. ``directory``
    must exist; the file ``near-duplicates.sqlite`` is made anew in it and goes away with ``close()``. Not for
    use from several threads.

    Raises UsageError (threshold, missing extra) and ResourceError (the file cannot be written or read).
    """

    def __init__(self, threshold: float, directory: Path) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"near-duplicates: a similarity is above 0 and at most 1, not {threshold}")
        self._minhash = _new_minhash()
        self._equal = math.ceil(threshold * PERMUTATIONS)
        bands = PERMUTATIONS - self._equal + 1
        ends = [PERMUTATIONS * band // bands for band in range(bands + 1)]
        self._bands = [slice(start, end) for start, end in pairwise(ends)]
        self._similar = (
            "SELECT signature FROM kept WHERE number IN "
            f"(SELECT number FROM bands WHERE hash IN ({', '.join('?' * bands)}))"
        )
        self._kept = 0
        self._path = directory / FILE_NAME
        try:
            self._path.unlink(missing_ok=True)
            self._database = sqlite3.connect(self._path, isolation_level=None)
        except (OSError, sqlite3.Error) as problem:
            raise self._failed(problem) from problem
        try:
            self._database.executescript(_SCHEMA)
        except sqlite3.Error as problem:
            self.close()
            raise self._failed(problem) from problem

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the file. Closing again does nothing."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def is_duplicate(self, key: bytes, text: str) -> bool:
        """Whether to leave ``text`` out: an earlier text that was kept is estimated to be at least
        ``threshold`` similar.

        To be called in the corpus's canonical order; ``key`` stands for the text (its hash). A key that comes
        again gets the same answer: False for one that was kept, since an exact copy is another occurrence and
        no near-duplicate. Raises ResourceError.
        """
        try:
            answered = self._database.execute("SELECT left_out FROM answers WHERE key = ?", (key,)).fetchone()
            if answered is not None:
                return bool(answered[0])
            left_out = self._is_near_a_kept_one(text)
            self._database.execute("INSERT INTO answers VALUES (?, ?)", (key, left_out))
        except sqlite3.OperationalError as problem:
            raise self._failed(problem) from problem
        return left_out

    def _is_near_a_kept_one(self, text: str) -> bool:
        found = shingles(text)
        if not found:
            return False
        self._minhash.clear()
        self._minhash.update_batch(shingle.encode() for shingle in found)
        signature = self._minhash.hashvalues
        hashes = [_band_hash(number, signature[band]) for number, band in enumerate(self._bands)]
        candidates = self._database.execute(self._similar, hashes)
        while rows := candidates.fetchmany(_CANDIDATES_AT_A_TIME):
            others = np.frombuffer(b"".join(row[0] for row in rows), signature.dtype).reshape(
                -1, PERMUTATIONS
            )
            if (np.count_nonzero(others == signature, axis=1) >= self._equal).any():
                candidates.close()
                return True
        self._database.execute("INSERT INTO kept VALUES (?, ?)", (self._kept, signature.tobytes()))
        self._database.executemany(
            "INSERT INTO bands VALUES (?, ?)", ((value, self._kept) for value in hashes)
        )
        self._kept += 1
        return False

    def _failed(self, problem: Exception) -> ResourceError:
        return ResourceError(
            f"{self._path}: {problem}\n"
            "near-duplicates are looked up in this file; it takes about 1 kB of disk for each chunk"
        )


def _new_minhash() -> MinHash:
    try:
        from datasketch import MinHash

        # The scheme is named so that the values do not depend on datasketch's default; versions before 2 do
        # not know it.
        return MinHash(PERMUTATIONS, SEED, hashfunc=zlib.crc32, scheme="affine32")
    except (ImportError, TypeError) as problem:
        raise UsageError(
            "leaving out near-duplicates needs datasketch 2 or newer: pip install 'm3build[near-duplicates]'"
        ) from problem


def _band_hash(number: int, values: npt.NDArray[np.uint32]) -> int:
    """A band as SQLite's 64-bit integer. Should two bands share a hash, the signatures tell them apart."""
    digest = hashlib.blake2b(values.tobytes(), digest_size=8, salt=number.to_bytes(16, "big")).digest()
    return int.from_bytes(digest, "big", signed=True)
