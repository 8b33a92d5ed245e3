"""CSV and TSV with a header line: each row is a record; positions are row numbers, rejects name the line.

- Quoting is that of RFC 4180, strictly: a quote that is never closed, or text behind a closing one, would
  otherwise swallow good rows without a word. The line on which such a row began is the reject, and reading
  goes on with the line after it.
- In TSV files quotes are as often plain characters (IANA text/tab-separated-values has no quoting), so
  there a line that makes no sense with quoting is taken literally.
- A CSV file whose header has the text column only when cut at ``;``, tab or ``|`` is read with that
  separator, as spreadsheets in many countries write it. A row with more or fewer fields than the header is
  a reject: one cannot know which column is the wrong one.
- Lines read ahead for a row that failed are read again, up to a budget in proportion to the file, so that a
  hostile file costs linear time.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from functools import partial

from m3build.corpus.compression import open_bytes
from m3build.corpus.encoding import open_text
from m3build.corpus.options import SourceOptions
from m3build.corpus.record import document_of_record
from m3build.corpus.registry import Format
from m3build.corpus.source import BadInput, SourceRange
from m3build.records import Document, Reject

_SEPARATORS = (",", ";", "\t", "|")
_SKIP_CHARACTERS = 1024 * 1024
_REREAD_FACTOR = 4


class _BadRow(Exception):
    pass


class _Lines:
    """Feeds csv.reader line by line, remembers the lines of the row at hand, and can go back to the second
    of them."""

    def __init__(self, text: io.TextIOWrapper, limit: int) -> None:
        self._sources: list[io.TextIOBase] = [text]
        self._limit = limit
        self._row = io.StringIO(newline="")
        self._first = ""
        self._lines = 0
        self._size = 0
        self._read = 0
        self._reread = 0
        self.start = 1  # number of the row's first line

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._line()
        if not line:
            raise StopIteration
        self._lines += 1
        self._size += len(line)
        if len(line) > self._limit and not line.endswith(("\n", "\r")):
            while (piece := self._sources[-1].readline(_SKIP_CHARACTERS)) and not piece.endswith(
                ("\n", "\r")
            ):
                pass
            line = ""
        if self._lines == 1:
            self._first = line
        else:
            self._row.write(line)
        if self._size > self._limit:
            raise _BadRow(
                f"a row of more than {self._limit:,} bytes, or an open quote; raise --max-document-bytes"
            )
        return line

    def _line(self) -> str:
        while True:
            line = self._sources[-1].readline(self._limit + 1)
            if line or len(self._sources) == 1:
                if len(self._sources) == 1:
                    self._read += len(line)
                return line
            self._sources.pop()

    @property
    def first_line(self) -> str:
        return self._first

    @property
    def last(self) -> int:
        return self.start + self._lines - 1

    def done(self) -> None:
        """The row is good; the next line begins another."""
        self.start += self._lines
        if self._lines > 1:
            self._row = io.StringIO(newline="")
        self._lines = self._size = 0

    def go_back(self) -> bool:
        """Makes the line after the row's first the next one; False if the budget is spent and the row's
        lines are given up together."""
        again = self._row.getvalue()
        self._reread += len(again)
        within = self._reread <= _REREAD_FACTOR * self._read
        if within and again:
            self._sources.append(io.StringIO(again, newline=""))
            self._lines = 1
        self.start += self._lines
        self._row = io.StringIO(newline="")
        self._lines = self._size = 0
        return within


def read(part: SourceRange, options: SourceOptions, *, literal: bool) -> Iterator[Document | Reject]:
    """The rows of a file. ``literal``: tab-separated, and lines that make no sense with quoting are taken
    literally."""
    file = part.file
    # The limit of the csv module holds for the whole process; our own is kept by _Lines.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * options.max_document_bytes))
    with open_bytes(file) as stream, open_text(stream, options) as text:
        lines = _Lines(text, options.max_document_bytes)
        try:
            found = _header(lines, options.text_field, ("\t",) if literal else _SEPARATORS)
        except _BadRow as error:
            raise BadInput(f"line {lines.start}", str(error)) from error
        if found is None:
            return
        header, separator = found
        if twice := [name for name in options.fields if header.count(name) > 1]:
            raise BadInput(f"line {lines.start - 1}", f"more than one column {twice[0]!r}")
        columns = {name: header.index(name) for name in options.fields if name in header}
        if options.id_field is not None and options.id_field not in columns:
            raise BadInput("line 1", f"no id column {options.id_field!r}; the columns are {_listed(header)}")
        rows = csv.reader(lines, delimiter=separator, strict=True)
        number = 0
        while True:
            try:
                row = next(rows)
            except StopIteration:
                return
            except (csv.Error, _BadRow) as error:
                where, first, last = f"line {lines.start}", lines.first_line, lines.last
                if not lines.go_back():
                    where = f"lines {where[5:]} to {last}"
                if not (literal and first):
                    yield Reject(
                        file.name,
                        where,
                        f"broken row: {error}" if isinstance(error, csv.Error) else str(error),
                    )
                    number += 1
                    continue
                row = first.rstrip("\r\n").split(separator)
            else:
                where = f"line {lines.start}"
                lines.done()
            if not row:
                continue
            if len(row) != len(header):
                yield Reject(file.name, where, f"a row of {len(row)} fields under a header of {len(header)}")
            else:
                fields = {name: row[column] for name, column in columns.items()}
                yield document_of_record(fields, file, number, where, options)
            number += 1


def _header(lines: _Lines, text_field: str, separators: tuple[str, ...]) -> tuple[list[str], str] | None:
    """The column names and the separator that the first line holds; None for an empty file. Raises BadInput
    without a text column."""
    line = ""
    for line in lines:
        if line.strip():
            break
        lines.done()
    if not line.strip():
        return None
    names: list[str] = []
    for separator in separators:
        try:
            header = next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error:
            header = line.rstrip("\r\n").split(separator)
        if text_field in header:
            lines.done()
            return header, separator
        names = names or header
    hint = "; if it is UTF-16 without a byte order mark, give --encoding utf-16-le" if "\0" in line else ""
    raise BadInput(
        f"line {lines.start}", f"no text column {text_field!r}; the columns are {_listed(names)}{hint}"
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:10])
    return shown + (f" and {len(names) - 10} more" if len(names) > 10 else "")


FORMAT = Format("csv", (".csv",), partial(read, literal=False))
FORMAT_TSV = Format("tsv", (".tsv", ".tab"), partial(read, literal=True))
