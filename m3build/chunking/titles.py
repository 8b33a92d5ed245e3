"""The title before a chunk: "Title > Section > Subsection", shortened to its share of the token limit.

What a reader misses least goes first: the levels between the outermost and the innermost heading from the
outside in, then the outermost, then the end of what is left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from m3build.chunking.encoder import Encoded
    from m3build.chunking.outline import Outline

_SEPARATOR = " > "
_ELLIPSIS = "…"
_LONGEST = 1000  # characters of one heading that are looked at


class Titles:
    """Titles for the chunks of one document, each of at most ``budget`` tokens when encoded by itself."""

    def __init__(self, outline: Outline, budget: int) -> None:
        self._outline = outline
        self._budget = budget
        self._path: tuple[str, ...] | None = None
        self._title = "", 0

    def title_at(self, start: int) -> Generator[str, Encoded, tuple[str, int]]:
        """The title of a chunk that begins at ``start`` and its tokens; "" if there is none. Yields texts
        to encode, takes their encodings.
        """
        path = self._outline.path(start)
        if path != self._path:  # neighbours mostly stand under the same heading
            self._title = yield from self._shorten([words[:_LONGEST] for words in path])
            self._path = path
        return self._title

    def _shorten(self, path: list[str]) -> Generator[str, Encoded, tuple[str, int]]:
        while len(path) > 1:
            title = _SEPARATOR.join(path)
            encoded = yield title
            if len(encoded.ids) <= self._budget:
                return title, len(encoded.ids)
            del path[1 if len(path) > 2 else 0]
        if not path:
            return "", 0
        title = path[0]
        encoded = yield title
        for keep in range(self._budget, 0, -1):
            if len(encoded.ids) <= self._budget:
                return title, len(encoded.ids)
            words = path[0] if keep == self._budget else title.removesuffix(_ELLIPSIS)
            fitting = encoded.ends[keep - 1]
            title = words[: min(fitting, len(words) - 1)].rstrip() + _ELLIPSIS
            encoded = yield title
        return "", 0
