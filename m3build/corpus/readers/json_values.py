"""JSON arrays, and any other sequence of JSON values in a `.json` file (one pretty-printed object after
another): each element is a record.

The elements are found by a scan for brackets and strings, a piece of the file at a time, and then parsed
one by one like JSON lines. An event parser (ijson) was the alternative: its back ends disagree on numbers,
duplicate keys and damaged text, it builds a string of any size in memory, and it cannot go on after an
error. Here the rules are those of JSON lines, a broken element costs itself as long as its brackets and
quotes match, and an element over ``max_document_bytes`` is passed without being held. Positions are element
numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from m3build.corpus.compression import open_bytes
from m3build.corpus.encoding import iterate_text
from m3build.corpus.options import SourceOptions
from m3build.corpus.readers.json_lines import SKIP_LIMIT, parse_object
from m3build.corpus.record import document_of_record
from m3build.corpus.registry import Format
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceRange
from m3build.records import Document, Reject

SURENESS = 2
# A whole string at once where it ends in the piece (the last alternative: where it does not).
_STRUCTURE = re.compile(r'[\[\]{},\n]|"(?:[^"\\]++|\\.)*+"|"', re.DOTALL)
_IN_STRING = re.compile(r'["\\]')


class ValueScanner:
    """Cuts text into the elements of its array, or into its top-level values if it is none.

    ``values`` yields the text of each, or None for one longer than ``limit`` characters. Raises BadInput
    where the rest makes no sense.
    """

    def __init__(self, limit: int, skip_limit: int | None) -> None:
        self._limit = limit
        self._skip_limit = skip_limit
        self._pieces: list[str] = []
        self._size = 0
        self._count = 0

    def values(self, texts: Iterable[str]) -> Iterator[str | None]:
        is_array: bool | None = None
        ended = False
        depth = 0
        in_string = False
        skip = 0  # characters at the start of the next piece that an escape before it covers
        for text in texts:
            position = start = 0
            if is_array is None:
                first = text.lstrip(" \t\r\n")
                if not first:
                    continue
                is_array = first[0] == "["
                start = len(text) - len(first) + is_array
                position = start
            position, skip = position + skip, 0
            while True:
                if ended:
                    if text[position:].strip():
                        raise BadInput(f"element {self._count}", "text behind the end of the array")
                    break
                if in_string:
                    found = _IN_STRING.search(text, position)
                    if found is None:
                        break
                    if found[0] == "\\":
                        position = found.end() + 1
                        if position > len(text):
                            skip = 1
                            break
                        continue
                    in_string, position = False, found.end()
                    continue
                found = _STRUCTURE.search(text, position)
                if found is None:
                    break
                position = found.end()
                match found[0]:
                    case "{" | "[":
                        depth += 1
                    case "}" | "]":
                        depth -= 1
                        if depth < 0 or (depth == 0 and not is_array):
                            yield from self._end(
                                text[start : found.start() if depth < 0 else position], depth < 0
                            )
                            start, ended, depth = position, depth < 0, 0
                    case ",":
                        if depth == 0 and is_array:
                            yield from self._end(text[start : found.start()], False)
                            start = position
                    case "\n":
                        if depth == 0 and not is_array:
                            yield from self._end(text[start:position], True)
                            start = position
                    case '"':
                        in_string = True
            if not ended:
                self._add(text[start:])
        if is_array is None:
            raise BadInput(WHOLE_FILE, "no JSON in the file")
        if not ended:
            if is_array or depth or in_string:
                raise BadInput(
                    f"element {self._count}",
                    "the file ends inside a value; is it truncated?",
                )
            yield from self._end("", True)

    def _add(self, text: str) -> None:
        self._size += len(text)
        if self._size <= self._limit:
            self._pieces.append(text)
        else:
            self._pieces.clear()
            if self._skip_limit is not None and self._size > self._skip_limit:
                raise BadInput(
                    f"element {self._count}",
                    f"goes on for more than {self._skip_limit:,} characters; the rest is not read",
                )

    def _end(self, text: str, may_be_blank: bool) -> Iterator[str | None]:
        self._add(text)
        value = None if self._size > self._limit else "".join(self._pieces)
        self._pieces.clear()
        self._size = 0
        if value is None or value.strip() or not may_be_blank:
            self._count += 1
            yield value


def read(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
    """The elements of the file's array, or its top-level values."""
    file = part.file
    limit = options.max_document_bytes
    scanner = ValueScanner(limit, None if file.compression is None else SKIP_LIMIT * limit)
    with open_bytes(file) as stream:
        for number, value in enumerate(scanner.values(iterate_text(stream, options))):
            where = f"element {number}"
            if value is None:
                yield Reject(
                    file.name, where, f"a record of more than {limit:,} bytes; raise --max-document-bytes"
                )
                continue
            fields = parse_object(value)
            if isinstance(fields, str):
                yield Reject(file.name, where, fields)
            else:
                yield document_of_record(fields, file, number, where, options)


def sniff(head: bytes, text: str | None) -> int:
    """Text that begins with an array of objects, or with an object of several lines."""
    if text is None:
        return 0
    text = text.lstrip("\ufeff").lstrip()
    return SURENESS if re.match(r'\[\s*(?:\{\s*["}]|\]\s*$)|\{\s*"', text) else 0


FORMAT = Format("json", (".json",), read, sniff=sniff)
