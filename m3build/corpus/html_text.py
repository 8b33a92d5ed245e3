"""Readable text of an HTML document: what a person would read, in its order, with its line structure, and
where its headings stand.

lxml (libxml2) does the parsing, as a stream of events into the small renderer here. No tree is built, and
that is the point: libxml2 drops, without a word, whatever lies deeper than 256 elements in a tree, while
the events have no depth; nesting of 100,000 levels costs nothing and no text. That rules out the renderers
on top of lxml trees (inscriptis, html2text and the like lose that text too; inscriptis also pads tables
with spaces, a token each); resiliparse has its own parser but no heading positions, and moves the text of
`pre`. Nothing is fetched, no entity of a DTD is read.

Left out: scripts, styles, what is marked up as navigation or hidden, form controls. Kept verbatim: `pre`.
Paragraphs and headings stand between blank lines, list items begin with "- " or their number, a table row
is a line with " | " between its cells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from m3build.corpus.whole_file import Extracted
from m3build.records import Heading

# fmt: off
_SKIPPED = frozenset({
    "script", "style", "template", "noscript", "nav", "svg", "iframe", "frameset", "object", "embed",
    "applet", "canvas", "audio", "video", "map", "select", "button", "datalist", "textarea", "dialog",
})
_PARAGRAPHS = frozenset({
    "p", "pre", "blockquote", "ul", "ol", "menu", "dl", "dt", "table", "section", "article", "main", "aside",
    "header", "footer", "figure", "address", "details", "fieldset", "form", "hr", "center",
    "h1", "h2", "h3", "h4", "h5", "h6",
})
_LINES = frozenset({
    "div", "li", "dd", "tr", "caption", "figcaption", "legend", "summary", "option", "body", "hgroup",
})
# fmt: on
_SKIPPED_ROLES = frozenset({"navigation", "search", "menu", "menubar", "toolbar"})
# Marks of generators: the pilcrow links of Sphinx, page links of DocBook, edit links of MediaWiki, contents.
_SKIPPED_CLASSES = frozenset({"headerlink", "navheader", "navfooter", "toc", "mw-editsection"})
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_VOID = "area|base|br|col|embed|hr|img|input|link|meta|param|source|track|wbr"
_SELF_CLOSED = re.compile(rf"<(?!(?:{_VOID})[\s/])([A-Za-z][\w:.-]*)((?:\s[^<>]*)?)/>", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r\f]+")
_CELL_MARK = " | "
_MAX_INDENT = 8


class _Renderer:
    """Target of an lxml parser: ``start``, ``end`` and ``data`` are called in document order, starts and
    ends are balanced."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._length = 0
        self._breaks = 0  # line feeds due before the next text
        self._space = False  # a space due before the next text of the line
        self._prefix = ""  # list marker or cell marks due before the next text
        self._is_empty_item = False
        self._skipping = 0
        self._pre = 0
        self._pre_begins = False
        self._lists: list[int | None] = []  # next number of each open list, None for bullets
        self._rows: list[int] = []  # cells so far in each open table row
        self._heading: tuple[int, int] | None = None  # (level, first piece) of the open heading
        self._heading_start = -1
        self._in_title = False
        self._title: list[str] = []
        self._has_title = False
        self._headings: list[Heading] = []

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        if self._skipping or _is_skipped(tag, attributes):
            self._skipping += 1
            return
        if tag == "br":
            self._breaks = self._breaks + 1 if self._pre else min(self._breaks + 1, 2)
        elif tag == "title":
            self._in_title = not self._has_title
        elif tag in ("td", "th"):
            self._start_cell()
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._start_block(tag, attributes)

    def _start_block(self, tag: str, attributes: Mapping[str, str]) -> None:
        if not self._is_empty_item:
            nested = self._lists and tag in ("ul", "ol", "menu")
            self._break(1 if tag in _LINES or nested else 2)
        if tag == "pre":
            self._pre += 1
            self._pre_begins = True
        elif tag in ("ul", "ol", "menu"):
            self._lists.append(_first_number(attributes) if tag == "ol" else None)
        elif tag == "li":
            self._start_item()
        elif tag == "dd":
            self._is_empty_item = True
        elif tag == "tr":
            self._rows.append(0)
        elif tag in _HEADINGS:
            self._heading, self._heading_start = (_HEADINGS[tag], len(self._out)), -1

    def _start_item(self) -> None:
        number = self._lists[-1] if self._lists else None
        marker = "- " if number is None else f"{number}. "
        if number is not None:
            self._lists[-1] = number + 1
        self._prefix = self._indent(len(self._lists) - 1) + marker
        self._is_empty_item = True

    def _start_cell(self) -> None:
        if not self._rows:
            self._break(1)
            return
        self._rows[-1] += 1
        if self._rows[-1] > 1:
            # The block ends of the cell before do not end the line.
            self._breaks = 0
            self._prefix += _CELL_MARK
        self._is_empty_item = True

    def end(self, tag: str) -> None:
        if self._skipping:
            self._skipping -= 1
        elif tag == "title":
            self._has_title = self._has_title or self._in_title
            self._in_title = False
        elif tag in _PARAGRAPHS or tag in _LINES:
            self._end_block(tag)

    def _end_block(self, tag: str) -> None:
        if tag == "pre":
            self._pre = max(0, self._pre - 1)
            self._breaks = 0
        elif tag in ("ul", "ol", "menu") and self._lists:
            self._lists.pop()
        elif tag == "tr" and self._rows:
            self._rows.pop()
        elif tag in _HEADINGS and self._heading is not None:
            level, first = self._heading
            self._heading = None
            if self._heading_start >= 0:
                words = " ".join("".join(self._out[first:])[self._heading_start - self._length :].split())
                if words:
                    self._headings.append(Heading(self._heading_start, level, words))
        if tag in ("li", "tr", "dd"):
            self._is_empty_item = False
            self._prefix = ""
        if not self._is_empty_item:
            inner = (self._lists or self._rows) and tag in ("p", "ul", "ol", "dl", "pre")
            self._break(1 if tag in _LINES or tag == "dt" or inner else 2)

    def data(self, text: str) -> None:
        if self._skipping:
            return
        if self._in_title:
            self._title.append(text)
        elif self._pre:
            self._verbatim(text)
        else:
            text = text.replace("\xa0", " ").replace("\xad", "")
            words = _SPACE.sub(" ", text)
            if words.startswith(" "):
                self._space, words = True, words[1:]
            if not words:
                return
            ends_in_space = words.endswith(" ")
            self._write(words[:-1] if ends_in_space else words)
            self._space = ends_in_space

    def _verbatim(self, text: str) -> None:
        if self._pre_begins:
            # HTML: a line feed directly after <pre> is not part of it.
            self._pre_begins = False
            text = text.removeprefix("\n")
        # Line feeds at the end wait for what comes: none of them stays at the end of the block.
        body = text.rstrip("\n")
        if body:
            self._write(body)
        self._breaks += len(text) - len(body)

    def _write(self, text: str) -> None:
        if self._breaks and self._out:
            self._put("\n" * self._breaks)
            if not self._prefix and not self._pre:
                self._put(self._indent(len(self._lists)))
        elif self._space and self._out and not self._prefix:
            self._put(" ")
        self._breaks = 0
        self._space = False
        if self._prefix:
            self._put(self._prefix)
            self._prefix = ""
        self._is_empty_item = False
        if self._heading is not None and self._heading_start < 0:
            self._heading_start = self._length
        self._put(text)

    def _put(self, text: str) -> None:
        if text:
            self._out.append(text)
            self._length += len(text)

    def _break(self, lines: int) -> None:
        self._breaks = max(self._breaks, lines)
        self._space = False

    @staticmethod
    def _indent(depth: int) -> str:
        return "  " * min(max(depth, 0), _MAX_INDENT)

    def close(self) -> Extracted:
        text = "".join(self._out)
        title = " ".join("".join(self._title).split())
        if not title:
            title = next((heading.text for heading in self._headings if heading.level == 1), "")
        return Extracted(text.rstrip(), title, tuple(self._headings))


def _is_skipped(tag: str, attributes: Mapping[str, str]) -> bool:
    if tag in _SKIPPED:
        return True
    if not attributes:
        return False
    return (
        attributes.get("role", "") in _SKIPPED_ROLES
        or "hidden" in attributes
        or attributes.get("aria-hidden") == "true"
        or not _SKIPPED_CLASSES.isdisjoint(attributes.get("class", "").split())
    )


def _first_number(attributes: Mapping[str, str]) -> int:
    start = attributes.get("start", "1").strip()
    return int(start) if re.fullmatch(r"-?[0-9]{1,9}", start) else 1


def extract(markup: str) -> Extracted:
    """The text, title (``<title>``, else the first h1) and headings of an HTML document. Never raises for
    broken markup."""
    from lxml import etree

    if not markup.strip():
        return Extracted("")
    if markup.lstrip().startswith("<?xml"):
        # XHTML: "<script src='x'/>" is complete, where HTML would take all that follows for the script.
        markup = _SELF_CLOSED.sub(r"<\1\2></\1>", markup)
    renderer = _Renderer()
    # huge_tree lifts libxml2's limits on the length of a text or an attribute; what can come is bounded by
    # max_document_bytes.
    parser = etree.HTMLParser(target=cast("Any", renderer), encoding="utf-8", huge_tree=True, no_network=True)
    parser.feed(markup.encode())
    return cast("Extracted", parser.close())
