"""Markdown: the text as it stands; the headings are found for titles and for cutting at them.

Headings are the ATX (``# Heading``) and setext (underlined) ones of CommonMark 0.31 at the top level of the
document, outside fenced and indented code and HTML comments. A full parser is not needed for that: no other
construct of CommonMark can hide a line that begins with ``#``.
"""

from __future__ import annotations

import re

from m3build.corpus.registry import Format
from m3build.corpus.whole_file import Extracted, document_reader
from m3build.records import Heading

_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))??(?:[ \t]+#+)?[ \t]*$")
_SETEXT = re.compile(r" {0,3}(=+|-+)[ \t]*$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`]*|(?<=~).*)$")
_NO_PARAGRAPH = re.compile(r" {0,3}(?:>|[-*+](?:[ \t]|$)|\d{1,9}[.)](?:[ \t]|$))|(?: {4}|\t)")
_FRONT_MATTER_END = re.compile(r"^(?:---|\.\.\.)[ \t]*$", re.MULTILINE)


def find_headings(text: str) -> tuple[Heading, ...]:
    """Headings in order; a setext heading of several lines counts from its last line."""
    headings: list[Heading] = []
    position = _end_of_front_matter(text)
    fence = ""
    comment = False
    previous: tuple[int, str] | None = None  # a paragraph line that an underline would make a heading
    for line in text[position:].split("\n"):
        start, position = position, position + len(line) + 1
        if fence:
            stripped = line.strip()
            if (
                stripped.startswith(fence)
                and not stripped.strip(fence[0])
                and len(line) - len(line.lstrip(" ")) < 4
            ):
                fence = ""
            continue
        if comment:
            comment = "-->" not in line
            continue
        if opened := _FENCE.match(line):
            fence, previous = opened[1], None
        elif line.lstrip().startswith("<!--") and "-->" not in line:
            comment, previous = True, None
        elif found := _ATX.match(line):
            headings.append(Heading(start, len(found[1]), (found[2] or "").strip()))
            previous = None
        elif previous and (underline := _SETEXT.match(line)):
            headings.append(Heading(previous[0], 1 if underline[1][0] == "=" else 2, previous[1]))
            previous = None
        elif not line.strip() or _NO_PARAGRAPH.match(line):
            previous = None
        else:
            previous = (start, line.strip())
    return tuple(headings)


def _end_of_front_matter(text: str) -> int:
    """Where the document begins behind YAML front matter, whose closing line would make a heading of the
    line before it."""
    if not text.startswith("---\n"):
        return 0
    end = _FRONT_MATTER_END.search(text, 4)
    return min(end.end() + 1, len(text)) if end else 0


def title_of(headings: tuple[Heading, ...]) -> str:
    """Text of the first heading of the highest level, or ""."""
    return min(headings, key=lambda heading: (heading.level, heading.start)).text if headings else ""


def extract(text: str) -> Extracted:
    """The text itself, its headings, and the first top heading as the title."""
    headings = find_headings(text)
    return Extracted(text, title_of(headings), headings)


FORMAT = Format("markdown", (".md", ".markdown", ".mdown", ".mkd"), document_reader(extract))
