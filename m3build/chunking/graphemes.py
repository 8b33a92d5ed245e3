"""What a reader takes for one character, so that no cut goes through it.

A test for one position, not a splitter: a cut is looked for at few places, and the standard library has no
grapheme clusters. The rules are those of Unicode Standard Annex 29 (extended grapheme clusters) told by
general category, which decides all but rare cases as the annex's own tables do; in doubt they keep
characters together. Two rules go beyond the annex: nothing is cut after any zero width joiner, nor between
a virama and the letter that it joins.
"""

from __future__ import annotations

import unicodedata

_ZERO_WIDTH_NON_JOINER, _ZERO_WIDTH_JOINER = "\u200c", "\u200d"
_VIRAMA = 9  # canonical combining class


def splits_cluster(text: str, at: int, start: int = 0) -> bool:
    """Whether a cut before ``text[at]`` parts what belongs together; characters before ``start`` are not
    looked at.
    """
    before, after = text[at - 1], text[at]
    if after < "\x80" and before < "\x80":
        return before == "\r" and after == "\n"
    if after in (_ZERO_WIDTH_JOINER, _ZERO_WIDTH_NON_JOINER) or before == _ZERO_WIDTH_JOINER:
        return True
    if unicodedata.category(after)[0] == "M":
        return True
    if "\U0001f3fb" <= after <= "\U0001f3ff" or "\U000e0020" <= after <= "\U000e007f":
        return True  # skin tones; the tag characters of flags
    if after in "\uff9e\uff9f\u0e33\u0eb3":
        return True  # voicing marks of half-width katakana; the AM vowels of Thai and Lao
    if unicodedata.combining(before) == _VIRAMA and unicodedata.category(after) == "Lo":
        return True
    if _is_regional(before) and _is_regional(after):
        return _regionals_before(text, at, start) % 2 == 1
    return _joins_hangul(before, after)


def last_boundary(text: str, start: int, end: int) -> int:
    """The last place in (start, end] where a cut parts no cluster, or ``start`` where the window is one
    cluster.
    """
    at = end
    while at > start and at < len(text) and splits_cluster(text, at, start):
        at -= 1
    return at


def _is_regional(character: str) -> bool:
    return "\U0001f1e6" <= character <= "\U0001f1ff"


def _regionals_before(text: str, at: int, start: int) -> int:
    first = at
    while first > start and _is_regional(text[first - 1]):
        first -= 1
    return at - first


def _joins_hangul(before: str, after: str) -> bool:
    kinds = _hangul(before), _hangul(after)
    return kinds in {
        ("L", "L"), ("L", "V"), ("L", "LV"), ("L", "LVT"),
        ("LV", "V"), ("LV", "T"), ("V", "V"), ("V", "T"),
        ("LVT", "T"), ("T", "T"),
    }  # fmt: skip


def _hangul(character: str) -> str:
    """Hangul_Syllable_Type: leading consonant, vowel, trailing consonant, or a composed syllable."""
    if "\u1100" <= character <= "\u115f" or "\ua960" <= character <= "\ua97c":
        return "L"
    if "\u1160" <= character <= "\u11a7" or "\ud7b0" <= character <= "\ud7c6":
        return "V"
    if "\u11a8" <= character <= "\u11ff" or "\ud7cb" <= character <= "\ud7fb":
        return "T"
    if "\uac00" <= character <= "\ud7a3":
        return "LV" if (ord(character) - 0xAC00) % 28 == 0 else "LVT"
    return ""
