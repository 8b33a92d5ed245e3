"""What a reader remembers of a generation from one step to the next: per row the tokens of its unfinished
query chunk and the references that its generated tokens read.

It lives in the model's own cache, so that whatever generation does to the rows of a cache (beams reorder
them, sampling repeats them, copies are made) it does to this too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache as remembered
from typing import Any, Literal

import torch

from m3build.search import Hit
from m3build_formats.errors import MismatchError, UsageError

Reference = Hit | str
"""What a search found, or the id of a chunk of the bank."""
Query = Literal["own", "previous"]


@dataclass(frozen=True, slots=True)
class Stretch:
    """The next ``tokens`` real tokens of a row: they read what ``query`` (token ids) retrieves, nothing where
    it is empty, and where it is None what the row read last."""

    tokens: int
    query: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class RowState:
    """``seen`` context tokens so far, those of the unfinished query chunk (``pending``), what generated
    tokens read, and whether a complete query chunk retrieved that."""

    seen: int = 0
    pending: tuple[int, ...] = ()
    reads: tuple[Reference, ...] = ()
    complete: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What a row's new tokens read. ``keep`` is the query whose references generated tokens read from then
    on; None to go on with those there are. ``row`` is the row afterwards, but for its ``reads``."""

    stretches: tuple[Stretch, ...]
    keep: tuple[int, ...] | None
    row: RowState


def plan_prompt(row: RowState, new: Sequence[int], chunk: int, query: Query) -> Plan:
    """New tokens of a prompt: each query chunk reads what it retrieves itself, a partial last one too
    ("own"), or what the one before it retrieved ("previous", where the first reads nothing)."""
    held = (*row.pending, *new)
    pieces = [held[at : at + chunk] for at in range(0, len(held), chunk)]
    stretches: list[Stretch] = []
    before: tuple[int, ...] | None = None if row.complete else ()
    for number, piece in enumerate(pieces):
        count = len(piece) - (len(row.pending) if number == 0 else 0)
        stretches.append(Stretch(count, piece if query == "own" else before))
        before = piece
    whole = [piece for piece in pieces if len(piece) == chunk]
    pending = pieces[-1] if pieces and len(pieces[-1]) < chunk else ()
    # Generated tokens read what the last complete query chunk retrieved; while there is none, the partial
    # one.
    keep = whole[-1] if whole else None if row.complete or not pending else pending
    after = replace(row, seen=row.seen + len(new), pending=pending, complete=row.complete or bool(whole))
    return Plan(tuple(stretches), keep, after)


def plan_generated(row: RowState, token: int, chunk: int) -> Plan:
    """One generated token: it reads what the last complete query chunk retrieved, and may complete the
    next."""
    held = (*row.pending, token)
    done = len(held) == chunk
    after = replace(row, seen=row.seen + 1, pending=() if done else held, complete=row.complete or done)
    return Plan((Stretch(1, None),), held if done else None, after)


@dataclass(slots=True)
class ReaderState:
    """The rows of one batch. ``assembled`` keeps what the last generated tokens read as arrays, with the key
    by which it is recognised."""

    rows: list[RowState] = field(default_factory=list)
    assembled: tuple[Any, Any] | None = None

    def reorder(self, indices: Sequence[int]) -> None:
        """Row i becomes what row ``indices[i]`` was."""
        self.rows = [self.rows[index] for index in indices]


class _ReadingCache:
    """Mixed into the class of a cache that a reader has met."""

    m3build_state: ReaderState

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self.m3build_state.reorder(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        count = len(self.m3build_state.rows)
        self.m3build_state.reorder([row for row in range(count) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self.m3build_state.reorder(indices.tolist())

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.m3build_state = ReaderState([RowState() for _ in self.m3build_state.rows])

    def crop(self, *args: Any, **kwargs: Any) -> None:
        raise MismatchError(
            "tokens are taken back from the cache (assisted generation does that), which a reader of memories"
            " cannot follow; generate without an assistant."
        )


@remembered
def _reading(kind: Any) -> Any:
    return type(f"Reading{kind.__name__}", (_ReadingCache, kind), {})


def state_in(cache: Any, rows: int) -> ReaderState:
    """The state that a cache of transformers carries, put there if the cache is empty.

    Raises UsageError where a cache holds tokens that were not read with a reader, or has other rows.
    """
    if not isinstance(cache, _ReadingCache):
        if cache.get_seq_length() > 0:
            raise UsageError(
                "the cache holds tokens from before the reader was attached; start with a new one."
            )
        kind: Any = type(cache)
        cache.__class__ = _reading(kind)
        cache.m3build_state = ReaderState()
    state: ReaderState = cache.m3build_state
    if not state.rows:
        state.rows = [RowState() for _ in range(rows)]
    if len(state.rows) != rows:
        raise UsageError(f"the cache holds {len(state.rows)} rows, the input has {rows}.")
    return state
