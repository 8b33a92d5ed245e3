"""reStructuredText: the text as it stands; section titles are found for titles and for cutting at them.

Rules of the reStructuredText specification ("Sections"): a title is one line of text with an underline of
one repeated punctuation character at least as long as the title, or with an equal overline too; the order
in which styles first come gives the levels. As in docutils a shorter underline counts from 4 characters on.
The title begins a paragraph of its own (blank line before it).
"""

from __future__ import annotations

import re
import unicodedata

from m3build.corpus.readers.markdown import title_of
from m3build.corpus.registry import Format
from m3build.corpus.whole_file import Extracted, document_reader
from m3build.records import Heading

_ADORNMENT = re.compile(r"([!-/:-@\[-`{-~])\1*[ \t]*$")
_SURE_LENGTH = 4


def find_headings(text: str) -> tuple[Heading, ...]:
    """Section titles in order; ``start`` is that of the overline where there is one."""
    lines = text.split("\n")
    starts = [0]
    for line in lines:
        starts.append(starts[-1] + len(line) + 1)
    levels: dict[tuple[str, bool], int] = {}
    headings: list[Heading] = []
    index = 0
    may_begin = True  # at the start, behind a blank line and behind another title
    while index < len(lines):
        is_blank = not lines[index].strip()
        size = _title_lines(lines, index) if may_begin and not is_blank else 0
        may_begin = is_blank or size > 0
        if not size:
            index += 1
            continue
        title = lines[index + size - 2].strip()
        style = (lines[index + size - 1][0], size == 3)
        level = levels.setdefault(style, len(levels) + 1)
        headings.append(Heading(starts[index], level, title))
        index += size
    return tuple(headings)


def _title_lines(lines: list[str], index: int) -> int:
    """How many lines the title that begins at ``index`` takes (2, or 3 with an overline), 0 if none does."""
    first = lines[index]
    over = _ADORNMENT.match(first)
    if over and index + 2 < len(lines):
        title, under = lines[index + 1], lines[index + 2]
        if title.strip() and under.rstrip() == first.rstrip() and _is_long_enough(first, title):
            return 3
    if over or first[0] in " \t" or index + 1 >= len(lines):
        return 0
    under = lines[index + 1]
    return 2 if under and _ADORNMENT.match(under) and _is_long_enough(under, first) else 0


def _is_long_enough(adornment: str, title: str) -> bool:
    length = len(adornment.rstrip())
    return length >= _SURE_LENGTH or length >= _columns(title.rstrip())


def _columns(text: str) -> int:
    """Width on a terminal: East Asian wide characters take two columns."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def extract(text: str) -> Extracted:
    """The text itself, its section titles, and the first top one as the title."""
    headings = find_headings(text)
    return Extracted(text, title_of(headings), headings)


FORMAT = Format("rst", (".rst", ".rest"), document_reader(extract))
