"""Held-out documents as windows that fit the model's positions, and the query chunks of each.

Design choices:

- Every window is a context of its own: the tokenizer's BOS (if there is one), then the next tokens of the
  document. Windows do not overlap, so each token is predicted once; without a BOS a window starts with the
  last token of the one before, which is predicted there.
- A window holds whole query chunks, so a document's query chunks can be numbered through: chunk c of window w
  is number w · (chunks a window) + c.
- A loss belongs to the query chunk of the token that predicts, since that is what reads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from m3build.evaluation.held_out import HeldOut
from m3build_formats.errors import MismatchError, UsageError

LONGEST = 1024


@dataclass(frozen=True, slots=True)
class Window:
    """``ids``: the context, BOS included; ``document`` is the number of its document, ``first_chunk`` that of
    its first query chunk within the document, ``chunk`` the tokens of a query chunk."""

    document: int
    first_chunk: int
    ids: tuple[int, ...]
    chunk: int

    @property
    def predicted(self) -> int:
        """How many tokens are predicted: all but the first."""
        return len(self.ids) - 1

    @property
    def chunks(self) -> int:
        """Query chunks that predict something."""
        return -(-self.predicted // self.chunk)

    def of_chunk(self, number: int) -> tuple[int, ...]:
        """Tokens of a query chunk of this window."""
        return self.ids[number * self.chunk : (number + 1) * self.chunk]


def window_tokens(config: Any, bos: int, interval: int, chunk: int, longest: int = LONGEST) -> int:
    """Tokens of a window: a multiple of ``chunk``, at most ``longest``, that ends within the model's
    positions when it starts after the reference BOS (``bos`` tokens) and the memory interval. Raises
    MismatchError where not one query chunk fits, UsageError where ``longest`` holds none."""
    limit = position_limit(config)
    room = longest if limit is None else min(longest, limit - bos - interval)
    whole = room // chunk * chunk
    if whole < chunk:
        if longest < chunk:
            raise UsageError(f"a window of {longest} tokens holds no query chunk of {chunk}")
        raise MismatchError(
            f"a query chunk of {chunk} tokens does not fit into the model's {limit} positions after "
            f"{bos} of the reference BOS and {interval} of the memories"
        )
    return whole


def position_limit(config: Any) -> int | None:
    """How many positions the model was made for, None where its config does not say."""
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit else None


def windows_of(document: HeldOut, number: int, bos_id: int | None, size: int, chunk: int) -> Iterator[Window]:
    """The windows of one document; none for one of which nothing is predicted."""
    step = size - 1
    for place, start in enumerate(range(0, len(document.ids), step)):
        if bos_id is not None:
            ids = (bos_id, *document.ids[start : start + step])
        else:
            ids = document.ids[start : start + size]
        if len(ids) > 1:
            yield Window(number, place * (size // chunk), ids, chunk)
