"""All documents of some sources as one stream, for what needs no ranges: measuring and training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from m3build.corpus.discover import discover
from m3build.corpus.identity import IdRegistry, number_equals
from m3build.corpus.options import SourceOptions
from m3build.corpus.read import read_range, split
from m3build.records import Document, Reject


def read_documents(
    sources: Sequence[str],
    on_reject: Callable[[Reject], None],
    options: SourceOptions | None = None,
) -> Iterator[Document]:
    """Documents of SOURCES that are not blank, in canonical order; what cannot be used goes to ``on_reject``.

    Raises UsageError for a source that does not exist, and for standard input, which can be read only
    once."""
    options = options or SourceOptions()
    with IdRegistry() as ids:
        for file in discover(sources, on_reject):
            for part in split(file, options):
                for item in number_equals(read_range(part, options), ids):
                    if isinstance(item, Reject):
                        on_reject(item)
                    elif item.text.strip():
                        yield item
