"""Text to counted, hashed character n-grams, in whole arrays at a time.

Design choices:

- Which n-grams a text has is fixed by ranges of code points written down here, not by the running Python's
  Unicode tables, so that a reader in another language needs no more than NFKC and case folding. (Both are
  stable for every character that Unicode 14 assigns, the version of Python 3.11; characters younger than that
  may fold differently under different Pythons.)
- In a script with spaces between words, n-grams of 3 to 5 characters stay within a word, whose two borders
  each count as one mark. Scripts that write words without spaces, and Hangul with its syllable blocks, take
  short n-grams within a run of the script instead.
- An n-gram is known by a 20-bit bucket only. All arithmetic is on unsigned 32-bit integers: exact, the same
  everywhere.
- One sort per batch counts the n-grams of all its texts: the key is the text's number in the batch above the
  bucket.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

BUCKET_BITS = 20
BUCKETS = 1 << BUCKET_BITS

# A batch's key is 12 bits of text number above 20 bits of bucket. The characters are bounded so that the
# arrays stay in a core's cache.
BATCH_TEXTS = 1 << (32 - BUCKET_BITS)
BATCH_CHARACTERS = 1 << 14

BORDER = 0x20
HASH_BASE = 0x01000193

_SEPARATOR, _WORD, _IDEOGRAPH, _UNSPACED = range(4)

# Half-open ranges of code points (after folding). What stands in none of them is a character of a word.
SEPARATORS = (
    (0x0000, 0x0030),
    (0x003A, 0x0041),
    (0x005B, 0x005F),
    (0x0060, 0x0061),
    (0x007B, 0x00AA),
    (0x00AB, 0x00B5),
    (0x00B6, 0x00BA),
    (0x00BB, 0x00C0),
    (0x00D7, 0x00D8),
    (0x00F7, 0x00F8),
    (0x055A, 0x0560),
    (0x0589, 0x058B),
    (0x05BE, 0x05BF),
    (0x05C0, 0x05C1),
    (0x060C, 0x060E),
    (0x061B, 0x0620),
    (0x066A, 0x066E),
    (0x06D4, 0x06D5),
    (0x0964, 0x0966),
    (0x0E5A, 0x0E5C),
    (0x0F08, 0x0F15),
    (0x104A, 0x1050),
    (0x1361, 0x1369),
    (0x17D4, 0x17DB),
    (0x1680, 0x1681),
    (0x2000, 0x2070),
    (0x2190, 0x2C00),
    (0x2E00, 0x2E80),
    (0x3000, 0x3005),
    (0x3008, 0x3021),
    (0x30FB, 0x30FC),
    (0xD800, 0xE000),
    (0xFE00, 0xFE70),
    (0xFF00, 0xFF10),
    (0xFFF0, 0x10000),
)
IDEOGRAPHS = (
    (0x1100, 0x1200),  # Hangul Jamo
    (0x2E80, 0x3000),  # radicals
    (0x3005, 0x3008),
    (0x3021, 0x30FB),  # Hiragana, Katakana
    (0x30FC, 0x4DC0),  # Katakana, Bopomofo, Hangul Jamo, Han extension A
    (0x4E00, 0xA000),  # Han
    (0xA960, 0xA980),
    (0xAC00, 0xD800),  # Hangul syllables
    (0xF900, 0xFB00),
    (0x20000, 0x40000),  # Han extensions
)
UNSPACED = (
    (0x0E00, 0x0E5A),  # Thai
    (0x0E5C, 0x0F08),  # Lao, Tibetan
    (0x0F15, 0x104A),  # Tibetan, Myanmar
    (0x1050, 0x10A0),
    (0x1780, 0x17D4),  # Khmer
    (0x17DB, 0x1800),
    (0x1950, 0x1A00),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AB0),  # Tai Tham
    (0xA980, 0xAA00),  # Javanese, Myanmar
    (0xAA60, 0xAAE0),  # Myanmar, Tai Viet
)
WORD_LENGTHS = (3, 4, 5)
IDEOGRAPH_LENGTHS = (1, 2)
UNSPACED_LENGTHS = (1, 2, 3, 4)

_Mask = npt.NDArray[np.bool_]
_Codes = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class NgramCounts:
    """The n-grams of a batch of n texts, ordered by text, then by bucket; every (text, bucket) pair stands
    once.

    ``texts``, ``buckets``, ``counts``: intp, uint32, int64 of shape (pairs,); ``lengths``: int64 (n,), how
    many n-grams each text has.
    """

    texts: npt.NDArray[np.intp]
    buckets: npt.NDArray[np.uint32]
    counts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def fold(text: str) -> str:
    """The form in which texts are compared: NFKC, then full case folding."""
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", text).casefold()


def batches(texts: Iterable[str]) -> Iterator[list[str]]:
    """Folded texts in groups that ``count_ngrams`` takes; a text over the limit of characters is a group of
    its own."""
    group: list[str] = []
    characters = 0
    for text in texts:
        folded = fold(text)
        if group and (len(group) == BATCH_TEXTS or characters + len(folded) > BATCH_CHARACTERS):
            yield group
            group, characters = [], 0
        group.append(folded)
        characters += len(folded) + 1
    if group:
        yield group


def count_ngrams(folded: list[str]) -> NgramCounts:
    """Count the n-grams of at most ``BATCH_TEXTS`` folded texts. The counts of a text do not depend on its
    neighbours."""
    if len(folded) > BATCH_TEXTS:
        raise ValueError(f"{len(folded)} texts in one batch, at most {BATCH_TEXTS} are possible")
    # Every text is closed by a separator, so no n-gram crosses from one into the next; the first one opens
    # the first text.
    joined = "\0" + "\0".join(folded) + "\0"
    codes = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint32)
    sizes = np.fromiter((len(text) + 1 for text in folded), dtype=np.int64, count=len(folded))
    # The separator before a text belongs to it, as the left border of its first word.
    numbers = np.repeat(np.arange(len(folded), dtype=np.uint32) << np.uint32(BUCKET_BITS), sizes)
    classes = _class_table()[codes]
    keys = np.concatenate(
        [
            np.empty(0, dtype=np.uint32),
            *_word_keys(codes, classes == _WORD, numbers),
            *_run_keys(codes, classes == _IDEOGRAPH, numbers, IDEOGRAPH_LENGTHS),
            *_run_keys(codes, classes == _UNSPACED, numbers, UNSPACED_LENGTHS),
        ]
    )
    keys.sort()
    first = np.flatnonzero(
        np.concatenate([np.ones(min(1, len(keys)), dtype=np.bool_), keys[1:] != keys[:-1]])
    )
    counts = np.diff(first, append=len(keys))
    distinct = keys[first]
    texts = (distinct >> np.uint32(BUCKET_BITS)).astype(np.intp)
    lengths = np.bincount(texts, weights=counts, minlength=len(folded)).astype(np.int64)
    return NgramCounts(texts, distinct & np.uint32(BUCKETS - 1), counts, lengths)


def _word_keys(codes: _Codes, word: _Mask, numbers: _Codes) -> Iterator[_Codes]:
    """n-grams whose inner characters all belong to a word; the first and the last may be its border."""
    if not word.any():
        return
    marked = np.where(word, codes, np.uint32(BORDER))
    value = marked
    inner: _Mask | None = None
    for length in range(2, WORD_LENGTHS[-1] + 1):
        value = value[:-1] * np.uint32(HASH_BASE) + marked[length - 1 :]
        if length > 2:
            last = word[length - 2 : -1]
            inner = last if inner is None else inner[:-1] & last
            if length in WORD_LENGTHS:
                yield _keys(value, inner, numbers, length)


def _run_keys(codes: _Codes, member: _Mask, numbers: _Codes, lengths: tuple[int, ...]) -> Iterator[_Codes]:
    """n-grams whose characters all belong to one run of ``member`` characters; borders do not count."""
    if not member.any():
        return
    value = codes
    inside = member
    for length in range(1, lengths[-1] + 1):
        if length > 1:
            value = value[:-1] * np.uint32(HASH_BASE) + codes[length - 1 :]
            inside = inside[:-1] & member[length - 1 :]
        yield _keys(value, inside, numbers, length)


def _keys(value: _Codes, valid: _Mask, numbers: _Codes, length: int) -> _Codes:
    where = np.flatnonzero(valid)
    return numbers[where] | (mix32(value[where] + np.uint32(length)) >> np.uint32(32 - BUCKET_BITS))


def mix32(value: _Codes) -> _Codes:
    """MurmurHash3's 32-bit finalizer (Appleby, public domain): every input bit reaches every output bit."""
    value = value ^ (value >> np.uint32(16))
    value *= np.uint32(0x85EBCA6B)
    value ^= value >> np.uint32(13)
    value *= np.uint32(0xC2B2AE35)
    value ^= value >> np.uint32(16)
    return value


@cache
def _class_table() -> npt.NDArray[np.uint8]:
    table = np.full(0x110000, _WORD, dtype=np.uint8)
    for kind, ranges in ((_SEPARATOR, SEPARATORS), (_IDEOGRAPH, IDEOGRAPHS), (_UNSPACED, UNSPACED)):
        for start, end in ranges:
            table[start:end] = kind
    return table
