"""The formats that sources may have. A module in ``readers/`` that defines a Format (as FORMAT) adds it;
nothing else has to know of it.

A format says by which file name extensions and by which content it is found, how a file is cut into ranges
and how a range is read.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from m3build.corpus.options import SourceOptions
from m3build.corpus.source import SourceFile, SourceRange
from m3build.records import Document, Reject


def one_range(file: SourceFile, options: SourceOptions) -> list[SourceRange]:
    """``split`` of a format whose files cannot be entered in the middle."""
    return [SourceRange(file)]


def never(head: bytes, text: str | None) -> int:
    """``sniff`` of a format that only a name can tell."""
    return 0


@dataclass(frozen=True, slots=True)
class Format:
    """A source format.

    ``extensions`` are lower case with the dot; several formats may claim one, then the content decides
    between them. ``sniff`` gets the first bytes of the decompressed file, and the same decoded or None if
    they are no text; it answers how sure it is, 0 for "not mine". ``read`` yields the documents and rejects
    of a range in order, may raise BadInput or OSError to give up the rest of the file, and must give the
    same records for all ranges of ``split`` in a row as for the whole file.
    """

    name: str
    extensions: tuple[str, ...]
    read: Callable[[SourceRange, SourceOptions], Iterator[Document | Reject]]
    split: Callable[[SourceFile, SourceOptions], list[SourceRange]] = one_range
    sniff: Callable[[bytes, str | None], int] = never


@cache
def formats() -> dict[str, Format]:
    """All formats by name, in alphabetical order of their modules."""
    from m3build.corpus import readers

    found: dict[str, Format] = {}
    for module in sorted(pkgutil.iter_modules(readers.__path__), key=lambda module: module.name):
        for form in vars(importlib.import_module(f"{readers.__name__}.{module.name}")).values():
            if isinstance(form, Format):
                found[form.name] = form
    return found


@cache
def formats_by_extension() -> dict[str, tuple[Format, ...]]:
    """The formats that claim each extension."""
    claims: dict[str, tuple[Format, ...]] = {}
    for form in formats().values():
        for extension in form.extensions:
            claims[extension] = (*claims.get(extension, ()), form)
    return claims
