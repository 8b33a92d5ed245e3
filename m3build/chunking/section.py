"""One section of a document becomes chunks: forecast, cut, encode, put right.

A window is forecast, the best boundary in it chosen, and the piece encoded by itself. It fits: take it, and
go on behind it. It does not: its token ends say exactly what fits, so cut again within that. It fits with
much room left, since the forecast was far off: try again with a wider window. Every step sees the section's
own text and encodings only.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Generator
from typing import TYPE_CHECKING

from m3build.chunking.boundaries import best_cut
from m3build.chunking.encoder import Encoded
from m3build.records import Chunk, Document
from m3build_formats.errors import MismatchError
from m3build_formats.layout import MAX_CHUNK_CHARACTERS

if TYPE_CHECKING:
    from m3build.chunking.estimate import Forecast
    from m3build.chunking.outline import Outline
    from m3build.chunking.titles import Titles

Cutting = Generator[str, Encoded, list[Chunk]]

_INK = re.compile(r"\S")
_AIM = 0.97  # of the limit, by forecast: right at the limit every second forecast would be too high
_SHARE = 0.7  # of what is left goes into the last chunk but one, where it does not all fit but nearly
_MOST_CHARACTERS = 16  # that a token stands for, as a rule
_TOO_WIDE = 1.3  # a forecast that many times the tokens there were is worth another try
_TRIES = 8


def cut_section(
    document: Document,
    outline: Outline,
    span: tuple[int, int],
    forecast: Forecast,
    limit: int,
    titles: Titles | None,
) -> Cutting:
    """Yield texts to encode, take their encodings, return the chunks of ``document.text[start:stop]`` for
    the span (start, stop).

    ``forecast`` is one for that text. Raises MismatchError where a single character takes more tokens than
    ``limit``.
    """
    text = document.text
    begin, stop = span
    title, title_tokens, lead = "", 0, ""
    chunks: list[Chunk] = []
    far = _MOST_CHARACTERS * limit
    found = _INK.search(text, begin, stop)
    while found:
        start = found.start()
        if titles is not None:
            title, title_tokens = yield from titles.title_at(start)
            lead = f"{title}\n" if title else ""
        window = _AIM * (limit - title_tokens)
        if stop - start < far:
            rest = forecast.tokens(start - begin, stop - begin)
            if window < rest < window / _SHARE:
                window = _SHARE * rest
        widest = min(stop, start + MAX_CHUNK_CHARACTERS - len(lead))
        high = max(start + 1, min(widest, begin + forecast.reach(start - begin, window)))
        best_end, best = start, None
        tries = _TRIES
        while True:
            end = high if high == stop else best_cut(text, start, high, outline)
            body = text[start:end].rstrip()
            end = start + len(body)
            if end <= best_end:
                break
            encoded = yield lead + body
            tokens = len(encoded.ids)
            own_tokens = tokens - bisect_right(encoded.ends, len(lead)) if lead else tokens
            excess = forecast.learn(start - begin, end - begin, own_tokens)
            if tokens > limit:
                if end - start == 1:
                    raise _too_many(document, start, tokens, limit)
                high = min(max(start + 1, start + _fitting(encoded, limit) - len(lead)), end - 1)
                tries = 0
                continue
            best_end, best = end, encoded
            if excess < _TOO_WIDE or high == widest or not tries:
                break
            tries -= 1
            high = max(high, min(widest, begin + forecast.reach(start - begin, window)))
        if best is not None and best.ids:
            chunks.append(Chunk(text[start:best_end], start, best_end, title, best.ids, best.ends))
        found = _INK.search(text, best_end, stop)
    return chunks


def _fitting(encoded: Encoded, limit: int) -> int:
    """The last place in an encoded text up to which whole characters take at most ``limit`` tokens."""
    over = bisect_left(encoded.ends, encoded.ends[limit])
    return encoded.ends[over - 1] if over else 0


def _too_many(document: Document, at: int, tokens: int, limit: int) -> MismatchError:
    return MismatchError(
        f"{document.id}: the tokenizer takes {tokens} tokens for the single character "
        f"U+{ord(document.text[at]):04X} (character {at}), more than a reference may have ({limit}): "
        "raise --reference-tokens"
    )
