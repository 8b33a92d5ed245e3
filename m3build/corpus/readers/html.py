"""HTML: one document a file, its readable text. The encoding is that of a byte order mark, else of a
`<meta>` in the first bytes, else ``--encoding``."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import replace

from m3build.corpus.encoding import decode_document, marked_encoding
from m3build.corpus.html_text import extract
from m3build.corpus.options import SourceOptions
from m3build.corpus.registry import Format
from m3build.corpus.source import SourceRange
from m3build.corpus.whole_file import read_bytes, whole_document
from m3build.records import Document

SURENESS = 4
_META_BYTES = 4096
_META = re.compile(rb"<meta\s[^>]*?charset\s*=\s*[\"']?\s*([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_XML = re.compile(rb"\s*<\?xml\s[^>]*?encoding\s*=\s*[\"']([A-Za-z0-9_.:-]+)", re.IGNORECASE)
_DOCUMENT = re.compile(r"<!doctype\s+html|<html[\s>]", re.IGNORECASE)
_SNIFFED_CHARACTERS = 1024
# The encodings of the WHATWG Encoding Standard by Python's names, and what their labels mean in practice.
# Others are not believed: Python also knows "punycode", "idna" and their like, which a hostile file may use.
_ENCODINGS = {
    "ascii": "cp1252",
    "iso8859-1": "cp1252",
    "cp1252": "cp1252",
    "iso8859-9": "cp1254",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "gb18030": "gb18030",
    "big5": "big5hkscs",
    "big5hkscs": "big5hkscs",
    "shift_jis": "cp932",
    "cp932": "cp932",
    "euc_kr": "cp949",
    "cp949": "cp949",
    "tis-620": "cp874",
    # A declaration that could be read as ASCII cannot stand in a UTF-16 document.
    "utf-16": "utf-8",
    "utf-16-le": "utf-8",
    "utf-16-be": "utf-8",
}
_ENCODINGS |= {f"iso8859-{part}": f"iso8859-{part}" for part in (2, 3, 4, 5, 6, 7, 8, 10, 13, 14, 15, 16)}
_ENCODINGS |= {f"cp{page}": f"cp{page}" for page in (866, 874, *range(1250, 1259))}
_ENCODINGS |= {
    name: name for name in ("utf-8", "koi8-r", "koi8-u", "mac-roman", "mac-cyrillic", "euc_jp", "iso2022_jp")
}


def declared_encoding(data: bytes) -> str | None:
    """The encoding that the document's head declares, as Python names it; None if it declares none that is
    known."""
    head = data[:_META_BYTES]
    found = _META.search(head) or _XML.match(head)
    if found is None:
        return None
    try:
        return _ENCODINGS.get(codecs.lookup(found[1].decode("ascii")).name)
    except LookupError:
        return None


def read(part: SourceRange, options: SourceOptions) -> Iterator[Document]:
    """The one document of the file."""
    data = read_bytes(part.file, options)
    declared = None if marked_encoding(data) else declared_encoding(data)
    if declared is not None:
        options = replace(options, encoding=declared)
    yield whole_document(part.file, extract(decode_document(data, options)))


def sniff(head: bytes, text: str | None) -> int:
    """Text that begins like an HTML document."""
    return SURENESS if text is not None and _DOCUMENT.search(text[:_SNIFFED_CHARACTERS]) else 0


FORMAT = Format("html", (".html", ".htm", ".xhtml", ".xht", ".shtml"), read, sniff=sniff)
