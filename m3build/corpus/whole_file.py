"""Files that are one document: read up to the limit, decoded, and handed to a function that knows the
markup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from m3build.corpus.compression import open_bytes
from m3build.corpus.encoding import HEAD_BYTES, decode_document, is_newline_safe, looks_binary
from m3build.corpus.options import SourceOptions
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile, SourceRange
from m3build.records import Document, Heading, Reject


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a document says: its text, and the title and headings found in it (``Heading.start`` in
    characters of ``text``)."""

    text: str
    title: str = ""
    headings: tuple[Heading, ...] = ()


def read_bytes(file: SourceFile, options: SourceOptions) -> bytes:
    """The decompressed content, at most ``max_document_bytes``; raises BadInput beyond that, or if it looks
    binary."""
    with open_bytes(file) as stream:
        data = stream.read(options.max_document_bytes + 1)
    if len(data) > options.max_document_bytes:
        raise BadInput(
            WHOLE_FILE,
            f"more than {options.max_document_bytes:,} bytes; raise --max-document-bytes or split the file",
        )
    if is_newline_safe(options.encoding) and looks_binary(data[:HEAD_BYTES]):
        # Its name says that it is text: what is lost here is not passed over.
        hint = "; if it is UTF-16 without a byte order mark, give --encoding utf-16-le"
        raise BadInput(WHOLE_FILE, f"looks binary, not like text{hint}")
    return data


def document_reader(
    extract: Callable[[str], Extracted],
) -> Callable[[SourceRange, SourceOptions], Iterator[Document | Reject]]:
    """``read`` of a format whose markup is text in ``--encoding``."""

    def read(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
        text = decode_document(read_bytes(part.file, options), options)
        yield whole_document(part.file, extract(text))

    return read


def whole_document(file: SourceFile, extracted: Extracted) -> Document:
    """The one document of a file, whose id is the file's name."""
    return Document(file.name, file.name, 0, extracted.text, extracted.title, {}, extracted.headings)
