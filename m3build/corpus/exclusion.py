"""Documents that are to stay out of a bank: taken down once, they must not come back with the next build.

A pattern is a document's id or a source name (``manual/chapter-3.md``, ``dump.jsonl``), or a shell pattern
over these (``drafts/*``; case matters, ``*`` goes across ``/``). Files whose name matches are not read, so
nothing of them reaches a reject either; records are left out by the id that the source gives, before equal
ones are numbered, so that all copies go.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Sequence

from m3build.records import Document


class Exclusion:
    """Patterns to leave out by; ``matched`` counts the documents or files that each of them took."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = [(pattern, re.compile(fnmatch.translate(pattern)).match) for pattern in patterns]
        self.matched: Counter[str] = Counter()

    def takes_file(self, name: str) -> bool:
        """Whether a source file is left out by its name."""
        return self._takes(name)

    def takes(self, document: Document) -> bool:
        """Whether a document is left out by its id or its source."""
        return self._takes(document.id, document.source)

    def _takes(self, *names: str) -> bool:
        for pattern, match in self._patterns:
            if pattern in names or any(match(name) for name in names):
                self.matched[pattern] += 1
                return True
        return False
