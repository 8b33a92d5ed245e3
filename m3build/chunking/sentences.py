"""Where sentences and clauses end, in any script, without a model.

Scripts with their own full stop (Chinese, Japanese, Devanagari, Arabic, …) are plain: the sentence ends
there, behind quotes and brackets that close with it. ``.``, ``!`` and ``?`` end a sentence when white space
follows and the next word does not begin with a small letter; a full stop not behind an abbreviation, an
initial, or the number of a list item either. That also keeps "3.11" and "v2.0.1" whole. An end not seen
costs a little (the next best boundary is taken), one seen wrongly reads badly, so the rules lean to the
former.
"""

from __future__ import annotations

import re

from m3build.chunking.graphemes import splits_cluster

_CLOSING = r"[\"'”’»›)\]}」』】》〉〕〗）］｝*_`]*"
_WIDE_STOPS = (
    "。！？｡．；…‼‽⁇⁈⁉"  # Chinese, Japanese
    "؟۔।॥։።፧፨။៖។᙮᠃᠉⸮꓿꘎꘏꛳꛷꡶꡷꩝꩞꩟꫰꫱"  # Arabic, Indic, Armenian, Ethiopic, Burmese, Khmer and others
)
# Each pattern begins with one set of characters, by which the search skips ahead fast; faster still for the
# few of ASCII.
_SENTENCE = re.compile(rf"[.!?{_WIDE_STOPS}](?:(?<![.!?])[.!?{_WIDE_STOPS}]*|(?={_CLOSING}\s)){_CLOSING}")
_SENTENCE_ASCII = re.compile(rf"[.!?](?={_CLOSING}\s){_CLOSING}", re.ASCII)
_CLAUSE = re.compile(rf"[,;:、，：､،؛፣፤—](?:(?<![,;:])|(?={_CLOSING}\s)){_CLOSING}")
_WORD_BACKWARDS = re.compile(r"[\w.&’'-]*")
_DOTTED = re.compile(r"(?:\w\.)+\w\Z|[^\W\d_]\Z")  # e.g, U.S, and initials
_NEXT_WORD_AHEAD, _WORD_BEHIND = 64, 16
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\w+",
        """
        al approx apr art aug bzw ca cap cf ch chap co col corp dec dept dr ed eds eg eq eqs esp est et etc
        ex feb fig figs fr gen gov hon ie inc incl jan jr jul jun lt ltd mar max mme mr mrs ms mt no nos nov
        nr oct op p par para ph pl pp prof pt ref refs rep resp rev sec sect sen sep sept sgt sr st tab tel
        u usw v vgl viz vol vols vs z
        """,
    )
)


def last_sentence_end(text: str, low: int, high: int) -> int:
    """The last place in (low, high] where a sentence ends, or -1."""
    # One character more is searched, so that a stop at ``high`` is seen with the white space behind it.
    pattern = _SENTENCE_ASCII if text.isascii() else _SENTENCE
    for match in reversed(list(pattern.finditer(text, low, high + 1))):
        end = match.end()
        if low < end <= high and _ends_sentence(text, match.start(), end) and not _parts(text, end):
            return end
    return -1


def last_clause_end(text: str, low: int, high: int) -> int:
    """The last place in (low, high] behind a comma, colon or semicolon, or -1."""
    ends = (match.end() for match in _CLAUSE.finditer(text, low, high + 1))
    return max((end for end in ends if low < end <= high and not _parts(text, end)), default=-1)


def _parts(text: str, at: int) -> bool:
    """Whether a stop goes on behind ``at``: a variation selector makes an emoji of it, a mark a keycap."""
    return at < len(text) and splits_cluster(text, at)


def _ends_sentence(text: str, stop: int, end: int) -> bool:
    following = text[end : end + _NEXT_WORD_AHEAD].lstrip()[:1]
    character = text[stop]
    if character in _WIDE_STOPS:
        return not (character in "…．" and (following.islower() or following.isdigit()))
    if following.islower():
        return False
    if character != "." or text[stop - 1 : stop] == ".":
        return True
    # Read backwards: forwards, the search would begin anew at every character.
    found = _WORD_BACKWARDS.match(text[max(0, stop - _WORD_BEHIND) : stop][::-1])
    word = found[0][::-1] if found else ""
    if word.isdigit():  # the number of a list item stands alone at the start of its line
        first = max(0, stop - _WORD_BEHIND)
        line = text[first : stop - len(word)].rstrip(" \t")
        return not (line.endswith("\n") or (not line and not first))
    return not (word.lower() in _ABBREVIATIONS or _DOTTED.match(word))
