"""A document's headings: where to cut at them, and the title that goes before a chunk.

Readers give a heading by the start of its line. Lines of mere punctuation belong to it (underlines and
overlines of reStructuredText and Markdown), and so does the white space behind it.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3build.records import Document

_BEHIND = re.compile(r"[^\n]*(?:\n[^\S\n]*([^\w\s]|_)\1*[^\S\n]*(?=\n|\Z))?\s*")
_ADORNMENT = re.compile(r"[^\S\n]*([^\w\s]|_)\1+[^\S\n]*\Z")
_OVERLINE = 256  # characters; a longer line of punctuation is no overline
_OPENING = 1024  # characters in which a chunk may begin with the title itself


class Outline:
    """The headings of one document in the order of the text."""

    def __init__(self, document: Document) -> None:
        self._text = document.text
        self._title = _one_line(document.title)
        self._headings = sorted(
            (heading for heading in document.headings if 0 <= heading.start < len(document.text)),
            key=lambda heading: heading.start,
        )
        self._lines = [heading.start for heading in self._headings]
        self._starts = [_with_overline(document.text, line) for line in self._lines]

    def best_heading(self, low: int, high: int) -> int:
        """Where the heading of the highest level (of equals the last) that lies in (low, high] begins, or
        -1.
        """
        if not self._starts:
            return -1
        within = range(bisect_right(self._starts, low), bisect_right(self._starts, high))
        # A heading directly behind another one belongs to it.
        tops = [index for index in within if index == 0 or self._body(index - 1) < self._starts[index]]
        if not tops:
            return -1
        return self._starts[max(tops, key=lambda index: (-self._headings[index].level, index))]

    def hanging(self, start: int, end: int) -> tuple[int, int]:
        """The last stretch (from, to] before ``end`` where a cut would leave a heading without the text
        under it; (-1, -1) if there is none.

        Headings that follow each other directly are one stretch; one that begins at ``start`` counts from
        there.
        """
        if not self._starts:
            return (-1, -1)
        last = bisect_left(self._starts, end) - 1
        if last < 0 or self._starts[last] < start:
            return (-1, -1)
        first = last
        while first and self._starts[first - 1] >= start and self._body(first - 1) >= self._starts[first]:
            first -= 1
        return self._starts[first], self._body(last)

    def path(self, start: int) -> tuple[str, ...]:
        """Document title and the headings above the place ``start``, outermost first.

        A heading at the place itself is not among them (it stands in the chunk), and a title that is also
        the first heading is there once.
        """
        index = bisect_left(self._starts, start)
        opening = _one_line(self._text[start : start + _OPENING])
        if index < len(self._starts) and self._starts[index] == start:
            opening = _one_line(self._headings[index].text)
        path: list[str] = []
        above = index - 1
        while above >= 0:
            if words := _one_line(self._headings[above].text):
                path.append(words)
            above = self._parents[above]
        if self._title and self._title not in path and not opening.startswith(self._title):
            path.append(self._title)
        return tuple(reversed(path))

    @cached_property
    def _parents(self) -> list[int]:
        """For each heading the one that it stands under, -1 for none."""
        parents: list[int] = []
        open_headings: list[int] = []
        for index, heading in enumerate(self._headings):
            while open_headings and self._headings[open_headings[-1]].level >= heading.level:
                open_headings.pop()
            parents.append(open_headings[-1] if open_headings else -1)
            open_headings.append(index)
        return parents

    def _body(self, index: int) -> int:
        """Where the text under a heading begins."""
        found = _BEHIND.match(self._text, self._lines[index])
        return found.end() if found else self._lines[index]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _with_overline(text: str, line: int) -> int:
    if line < 2 or text[line - 1] != "\n":
        return line
    feed = text.rfind("\n", max(0, line - _OVERLINE), line - 1)
    above = feed + 1 if feed >= 0 or line <= _OVERLINE else line
    return above if _ADORNMENT.match(text[above : line - 1]) else line
