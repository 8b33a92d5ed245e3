"""Chunks that say almost word for word what an earlier chunk said.

Two texts are compared by the Jaccard index of their shingles (runs of three words, case folded; in scripts that put no spaces between words every character is a
word), estimated by MinHash (Broder 1997; datasketch computes the signatures). A chunk is left out when the estimate against a chunk that was kept before it reaches the
threshold; so the result depends on the corpus in its order alone.

Candidates come from banding (locality-sensitive hashing), with so many bands that none is missed: a signature of 128 values that differs from another in at most d
of them equals it in at least one of d + 1 bands. Signatures and bands live in an SQLite file that is made anew, so memory does not grow with the corpus.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from m3build.chunking.boundaries import UNSPACED
from m3build_formats.errors import ResourceError, UsageError

PERMUTATIONS = 128
SHINGLE_WORDS = 3
_SEED = 1
_FILE = "near-duplicates.sqlite"
_WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+")
_CACHE_KIB = 65_536

Signature = npt.NDArray[np.uint32]


class NearDuplicates:
    """Says which chunks of a corpus are near-duplicates of kept ones; call it for all chunks in the corpus' order.

    ``threshold`` is the Jaccard index, above 0 and at most 1, from which a chunk counts as one; ``directory`` takes a file of about a kilobyte for each kept chunk, which ``close``
    removes. Raises UsageError for a threshold out of range or without datasketch, ResourceError when the disk fails.
    """

    def __init__(self, threshold: float, directory: Path) -> None:
        if not 0 < threshold <= 1:
            raise UsageError(f"the threshold of near-duplicates must be above 0 and at most 1, not {threshold}")
        self._empty = _empty_minhash()
        self._least_equal = equal_values(threshold)
        self._band_rows = PERMUTATIONS // (PERMUTATIONS - self._least_equal + 1)
        self._path = directory / _FILE
        with _disk(self._path):
            directory.mkdir(parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            self._database = sqlite3.connect(self._path, isolation_level=None)
            self._database.executescript(
                f"""
                PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{_CACHE_KIB};
                CREATE TABLE kept (number INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, signature BLOB NOT NULL);
                CREATE TABLE bands (hash INTEGER NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (hash, number)) WITHOUT ROWID;
                BEGIN;
                """
            )

    def is_duplicate(self, key: bytes, text: str) -> bool:
        """Whether an earlier kept chunk is so similar that this one should be left out; if not, it is kept from now on.

        ``key`` identifies the text: a kept chunk that comes again is not a near-duplicate of itself.
        """
        with _disk(self._path):
            if self._database.execute("SELECT 1 FROM kept WHERE key = ?", (key,)).fetchone():
                return False
            signature = self._signature(text)
            bands = self._bands(signature)
            if self._is_near(signature, bands):
                return True
            number = self._database.execute(
                "INSERT INTO kept (key, signature) VALUES (?, ?)", (key, signature.astype("<u4").tobytes())
            ).lastrowid
            self._database.executemany("INSERT OR IGNORE INTO bands VALUES (?, ?)", [(band, number) for band in bands])
            return False

    def close(self) -> None:
        """Remove the file."""
        self._database.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _is_near(self, signature: Signature, bands: list[int]) -> bool:
        seen: set[int] = set()
        for band in bands:
            candidates = self._database.execute(
                "SELECT number, signature FROM bands JOIN kept USING (number) WHERE hash = ?", (band,)
            )
            for number, stored in candidates:
                if number not in seen:
                    seen.add(number)
                    if np.count_nonzero(np.frombuffer(stored, "<u4") == signature) >= self._least_equal:
                        return True
        return False

    def _signature(self, text: str) -> Signature:
        minhash = self._empty.copy()
        minhash.update_batch(sorted(shingles(text)))
        signature: Signature = minhash.hashvalues
        return signature

    def _bands(self, signature: Signature) -> list[int]:
        """Hashes (64 bits, signed) of the bands of a signature, each with its place."""
        rows = self._band_rows
        data = signature.astype("<u4").tobytes()
        hashes = []
        for band in range(PERMUTATIONS // rows):
            part = data[band * rows * 4 : (band + 1) * rows * 4]
            digest = blake2b(part, digest_size=8, salt=band.to_bytes(2, "little")).digest()
            hashes.append(int.from_bytes(digest, "little", signed=True))
        return hashes


def shingles(text: str) -> set[bytes]:
    """The runs of three words of a text, joined by spaces in UTF-8; a text of fewer words is one shingle."""
    words: list[str] = _WORD.findall(text.casefold()) or [text.strip()]
    runs = max(1, len(words) - SHINGLE_WORDS + 1)
    return {" ".join(words[first : first + SHINGLE_WORDS]).encode() for first in range(runs)}


def equal_values(threshold: float) -> int:
    """How many values of two signatures must be equal for an estimate of at least ``threshold``."""
    # The slack keeps a threshold such as 0.7, which has no exact double, from asking for one value more.
    return max(1, int(np.ceil(threshold * PERMUTATIONS - 1e-9)))


def _empty_minhash() -> Any:
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UsageError(
            "leaving out near-duplicates needs the library datasketch: pip install 'm3build[near-duplicates]'"
        ) from error
    # SHA-1 of the shingles and seeded permutations: nothing hangs on Python's hash seed.
    return MinHash(num_perm=PERMUTATIONS, seed=_SEED, scheme="affine32")


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise ResourceError(f"{path}: {error}; near-duplicates are looked up in this file, which needs free disk space") from error
