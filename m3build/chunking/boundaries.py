"""Which place is the best to cut at.

A window runs from the start of a chunk to the last place where it may end. Kinds of boundary are tried from
the strongest to the weakest, and each kind only in the last part of the window, so that a strong boundary
may leave more of the window unused than a weak one:

| kind | looked for in the last |
| --- | --- |
| heading (the highest level) | 1/2 |
| blank line | 1/2 |
| end of a sentence | 1/2 |
| end of a line | 1/3 |
| clause | 1/4 |
| white space | 1/4 |
| between characters of a script that puts no spaces between words | 1/4 |
| white space | all of it |
| anywhere but within a character as readers see it | all of it |

Of one kind the last wins, which joins as many short neighbours as fit. A cut right behind a heading is none
of the first five: the heading would be left hanging. A blank line behind what looks like a heading (a short
line alone, without a stop) is no more than a line end, and one behind a colon, which announces what follows,
not even that.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from m3build.chunking.graphemes import last_boundary, splits_cluster
from m3build.chunking.sentences import last_clause_end, last_sentence_end

if TYPE_CHECKING:
    from m3build.chunking.outline import Outline

_LONGEST_BLANK = 256  # characters of white space in a line that counts as blank
_LONGEST_HEADING = 60
_COLONS = ":："
_JOINT_SEARCH = 32  # characters looked back for a place that does not break the rules below
# For a set in a regular expression: Thai, Lao, Tibetan, Burmese; Khmer; kana, Han, Yi; their compatibility
# and full-width forms; rare Han.
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff\ufe30-\uffef\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"[{UNSPACED}]").match
_NOT_FIRST = frozenset(
    "、。，．！？；：｡､,.!?;:)]}）］｝」』】》〉〕〗”’…—ー々ゝゞヽヾぁぃぅぇぉっゃゅょゎァィゥェォッャュョヮヵヶะาำๅๆฯ"
)
_NOT_LAST = frozenset("([{（［｛「『【《〈〔〖“‘เแโใไເແໂໃໄ")


def best_cut(text: str, start: int, end: int, outline: Outline) -> int:
    """Where a chunk that starts at ``start`` and may reach to ``end`` at most should end: a place in
    (start, end].

    ``end`` must lie within the text, not at its end. White space around the place is not part of any chunk.
    """
    span = end - start
    half, third, quarter = start + span // 2, end - span // 3, end - span // 4
    at = outline.best_heading(half, end)
    if at > half:
        return at
    blank_line, line_end = _last_breaks(text, half, end)
    hanging_from, hanging_to = outline.hanging(start, end)
    if blank_line > 0 and not hanging_from < blank_line <= hanging_to:
        return blank_line
    at = last_sentence_end(text, half, end)
    if at > 0 and not hanging_from < at <= hanging_to:
        return at
    if line_end > third and not hanging_from < line_end <= hanging_to:
        return line_end
    at = last_clause_end(text, quarter, end)
    if at > 0 and not hanging_from < at <= hanging_to:
        return at
    for find, low in ((_last_space, quarter), (_last_joint, quarter), (_last_space, start)):
        at = find(text, low, end)
        if at > start:
            return at
    at = last_boundary(text, start, end)
    return at if at > start else end


def _last_breaks(text: str, low: int, high: int) -> tuple[int, int]:
    """The last blank line and the last line end in (low, high], each -1 if there is none: places of line
    feeds.
    """
    line_end = -1
    behind = -1  # the line feed after the one looked at
    at = text.rfind("\n", low + 1, high + 1)
    while at >= 0:
        # Most lines end in ink, and so does the next one begin: a look at single characters tells.
        before = text[at - 1]
        if before.isspace():
            before = text[max(low, at - 8) : at].rstrip()[-1:]
        if before not in _COLONS or not before:
            if line_end < 0:
                line_end = at
            blank = text[at + 1 : at + 2].isspace() and _is_blank(text, at + 1, behind)
            if blank and not _looks_like_heading(text, low, at):
                return at, line_end
        behind = at
        at = text.rfind("\n", low + 1, at)
    return -1, line_end


def _is_blank(text: str, start: int, behind: int) -> bool:
    """Whether the line that begins at ``start`` is blank; ``behind`` is the line feed that ends it, or -1 if
    it is not known yet."""
    if behind < 0:
        behind = text.find("\n", start, start - 1 + _LONGEST_BLANK)
    return behind >= start and (behind == start or text[start:behind].isspace())


def _looks_like_heading(text: str, low: int, end: int) -> bool:
    """Whether the line that ends at ``end`` stands alone, is short, and has no stop: a heading, maybe, that
    the reader of the document did not tell of."""
    start = text.rfind("\n", max(low, end - _LONGEST_HEADING), end)
    if start < 0 or not text[max(low, start - _LONGEST_BLANK) : start].rstrip(" \t\r").endswith("\n"):
        return False
    line = text[start:end].strip()
    return line[-1:].isalnum() and line[:1].isalnum()


def _last_space(text: str, low: int, high: int) -> int:
    if text[high].isspace() or text[high - 1].isspace():
        return high
    parts = text[low:high].rsplit(None, 1)
    if len(parts) == 2:
        return high - len(parts[1])
    return high - len(parts[0]) if parts and len(parts[0]) < high - low else -1


def _last_joint(text: str, low: int, high: int) -> int:
    """The last place between two characters of which one belongs to a script without spaces, closing marks
    kept with what they close.
    """
    for at in range(high, max(low, high - _JOINT_SEARCH), -1):
        before, after = text[at - 1], text[at]
        if (
            (_UNSPACED(before) or _UNSPACED(after))
            and after not in _NOT_FIRST
            and before not in _NOT_LAST
            and not splits_cluster(text, at, low)
        ):
            return at
    return -1
