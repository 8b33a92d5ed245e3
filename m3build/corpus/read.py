"""The two calls that the pipeline makes: cut a file into ranges, read a range.

Whatever is wrong with a file ends here as one Reject: a reader may raise BadInput or OSError at any point,
and what it had yielded stays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from m3build.corpus.options import SourceOptions
from m3build.corpus.registry import formats
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile, SourceRange
from m3build.records import Document, Reject


def split(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """Cuts a file into ranges of about ``range_bytes`` that can be read apart. The same file and options
    give the same ranges; a file that cannot be opened or entered is one range, and reading that says
    why."""
    try:
        return formats()[file.format].split(file, options)
    except (BadInput, OSError):
        return [SourceRange(file)]


def read_range(part: SourceRange, options: SourceOptions) -> Iterator[Document | Reject]:
    """The documents and rejects of a range, in canonical order; those of all ranges of a file in a row are
    those of the file.

    Ids of records that carry none are not yet numbered (see ``identity``). Documents that are empty or
    blank are yielded like others.
    """
    try:
        yield from formats()[part.file.format].read(part, options)
    except BadInput as error:
        kind = "reject" if part.file.named else error.kind
        yield Reject(part.file.name, error.where, error.reason, kind)
    except UnicodeError as error:
        yield Reject(part.file.name, WHOLE_FILE, f"not {options.encoding} ({error}); give --encoding")
    except OSError as error:
        yield Reject(part.file.name, WHOLE_FILE, unreadable(error))


def unreadable(error: OSError) -> str:
    """Reason of a reject for a file that the operating system does not hand over, without its absolute
    path."""
    if isinstance(error, FileNotFoundError):
        return "cannot be read: it vanished, or is a dangling link"
    return f"cannot be read: {os.strerror(error.errno).lower() if error.errno else error}"
