"""``attach``: makes a transformers model read a bank's memories while it runs and generates (Memory³ §3.1).

Design:

* The model is not edited. Its base model's ``forward`` is wrapped on the instance: the wrapper finds out what
  the new tokens read, moves their positions behind the memory interval, and runs the model's own forward pass
  with its attention taken over (:mod:`m3build.attention`). ``detach`` takes the wrapper off.
* Memories never enter the cache (see there); what a generation needs to remember rides along with it
  (:mod:`m3build.reader_state`).
* All query chunks of all rows retrieve in one search and are read in one pass.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import torch
from transformers import Cache, DynamicCache

from m3build.attention import ChunkLayout, Reading, ReferenceBos, reading
from m3build.bank import Bank, open_bank
from m3build.chunk_memories import LayerMemory, chunk_memories
from m3build.interception import attention_is_taken
from m3build.model.live import loaded_from
from m3build.model.load import load_tokenizer
from m3build.model.whole import load_whole, model_of
from m3build.read_context import check_positions, context_positions, encode_reference_bos
from m3build.reader_memories import ReaderMemories
from m3build.reader_state import (
    Plan,
    Query,
    ReaderState,
    Reference,
    RowState,
    plan_generated,
    plan_prompt,
    state_in,
)
from m3build_formats.errors import MismatchError, UsageError

Retrieve = Callable[[Sequence[str]], Sequence[Sequence[Reference]]]
"""Texts of query chunks in, for each the references that it reads: hits, or ids of the bank's chunks."""


def attach(
    model: torch.nn.Module | None,
    bank: Bank | str | os.PathLike[str],
    references: int | None = None,
    chunk: int | None = None,
    *,
    tokenizer: Any = None,
    query: Query = "own",
    continuations: bool | None = None,
    retrieve: Retrieve | None = None,
) -> Reader:
    """Make ``model`` (a decoder-only transformers model, with or without its head) read ``bank``. Without one
    (None) the model that the bank was compiled with is loaded, and is ``reader.model``.

    Every ``chunk`` tokens (64) of prompt or output retrieve ``references`` (5) chunks of the bank and attend
    to their memories; with ``continuations`` each chunk that is found is followed by the one with which its
    document goes on, ``references`` in all. The defaults are the bank's. A query chunk of the prompt reads
    what it retrieves itself, a partial last one too; with ``query`` "previous" it reads what the one before
    it retrieved, so that nothing was found with text still to be predicted. Generated tokens read what the
    last complete query chunk retrieved; until there is one, what the short prompt did. ``tokenizer`` is found
    by the model's name unless given. ``retrieve`` takes the place of the bank's search, and then
    ``continuations`` is its own affair.

    Raises MismatchError where the model is not the one whose memories the bank holds, UsageError where it has
    a reader already, or no tokenizer or no model is found.
    """
    if continuations not in (None, True, False):
        raise UsageError(f"continuations is {continuations!r}; give True or False.")
    if query not in ("own", "previous"):
        raise UsageError(f"query is {query!r}; there are own and previous.")
    for name, value in (("references", references), ("chunk", chunk)):
        if value is not None and value < (name == "chunk"):
            raise UsageError(f"{name} is {value}; give a positive number.")
    opened = bank if isinstance(bank, Bank) else open_bank(bank)
    owns_bank = opened is not bank
    try:
        own: Any = model
        if own is None:
            whole = load_whole(model_of(opened.manifest), opened.manifest)
            own, tokenizer = whole.model, whole.tokenizer if tokenizer is None else tokenizer
        return Reader(own, opened, references, chunk, tokenizer, query, continuations, retrieve, owns_bank)
    except BaseException:
        if owns_bank:
            opened.close()
        raise


class Reader:
    """The tie of a ``model`` and its ``tokenizer`` to a bank; ``attach`` makes one. A context manager that
    detaches at its end. Threads may run the model at once, each with a cache of its own."""

    def __init__(
        self,
        model: torch.nn.Module,
        bank: Bank,
        references: int | None,
        chunk: int | None,
        tokenizer: Any,
        query: Query,
        continuations: bool | None,
        retrieve: Retrieve | None,
        owns_bank: bool = False,
    ) -> None:
        base: Any = getattr(model, "base_model", model)
        if hasattr(base, "m3build_reader"):
            raise UsageError("the model has a reader already; detach it first.")
        if tokenizer is None:
            name = str(getattr(base.config, "_name_or_path", "") or "")
            if not name:
                raise UsageError("the model does not say where it came from: give tokenizer=.")
            tokenizer = load_tokenizer(name)
        self.model: Any = model
        self.loaded = loaded_from(model, tokenizer, bank.manifest)
        shape = self.loaded.shape
        self.bank = bank
        self.references = shape.references if references is None else references
        self.chunk = shape.query_tokens if chunk is None else chunk
        self.continuations = shape.continuations if continuations is None else continuations
        self.last_read: tuple[tuple[Reference, ...], ...] = ()
        self._query: Query = query
        self._retrieve = retrieve or self._search
        self.tokenizer = tokenizer
        self._interval = shape.reference_tokens
        self._memories_of = ReaderMemories(bank, self.loaded)
        self._owns_bank = owns_bank
        self._base = base
        self._bos: ReferenceBos | None = None
        self._forward = base.forward
        self._signature = inspect.signature(base.forward)
        self._had_forward = "forward" in vars(base)

        @functools.wraps(base.forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._read(*args, **kwargs)

        self._reference_bos()
        base.forward = forward
        base.m3build_reader = self

    def detach(self) -> None:
        """Give the model back as it was. A second call does nothing."""
        if vars(self._base).get("m3build_reader") is not self:
            return
        del self._base.m3build_reader
        if self._had_forward:
            self._base.forward = self._forward
        else:
            del self._base.forward
        self._memories_of.close()
        if self._owns_bank:
            self.bank.close()

    def persist(self) -> int:
        """Write the memories that were encoded at first retrieval into the bank, as a new version; the
        version that is current then. This reader goes on with the version it has.

        Raises BusyError (another process writes the bank), MismatchError (its current version is of another
        model, number type or device class), and the other errors of a commit.
        """
        return self._memories_of.persist()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _read(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the base model's ``forward``."""
        if attention_is_taken():
            # A memory or the reference BOS is being written: that reads nothing.
            return self._forward(*args, **kwargs)
        given = self._signature.bind_partial(*args, **kwargs).arguments
        extra = given.pop("kwargs", {})
        ids: torch.Tensor | None = given.get("input_ids")
        if ids is None:
            raise UsageError("a reader retrieves by text: give the model input_ids, not inputs_embeds.")
        rows, tokens = ids.shape
        mask: torch.Tensor | None = given.get("attention_mask")
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise MismatchError(
                "a reader needs the attention mask of tokens (rows, tokens); static caches and masks made"
                " beforehand do not give it."
            )
        state, given = self._state(given, rows)
        real = torch.ones_like(ids) if mask is None else mask[:, -tokens:].to(ids.device)
        before = torch.tensor([row.seen for row in state.rows], device=ids.device)
        index = before[:, None] + (real.long().cumsum(1) - 1).clamp(min=0)
        _check_given(given.get("position_ids"), index, real)
        bos = self._reference_bos()
        positions = context_positions(index, bos.tokens, self._interval)
        plans = self._plans(state, ids.tolist(), real.tolist())
        last = bos.tokens + self._interval + max((plan.row.seen for plan in plans), default=1) - 1
        check_positions(self._base.config, last)
        found = self._retrieved(plans)
        memories, layout = self._memories(state, plans, found, real)
        state.rows = [
            plan.row if plan.keep is None else replace(plan.row, reads=found[plan.keep]) for plan in plans
        ]
        self.last_read = tuple(row.reads for row in state.rows)
        given["position_ids"] = positions
        with reading(self._base.config, Reading(bos, positions, last, memories, layout)):
            return self._forward(**given, **extra)

    def _state(self, given: dict[str, Any], rows: int) -> tuple[ReaderState, dict[str, Any]]:
        """What is remembered of these rows, in the cache; without a cache, a fresh start."""
        config = self._base.config
        use_cache = given.get("use_cache")
        cache = given.get("past_key_values")
        if cache is None and (config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=config)
            given = {**given, "past_key_values": cache, "use_cache": True}
        if cache is None:
            return ReaderState([RowState() for _ in range(rows)]), given
        if not isinstance(cache, Cache):
            raise MismatchError(f"a reader knows transformers' caches, not a {type(cache).__name__}.")
        return state_in(cache, rows), given

    def _plans(self, state: ReaderState, ids: list[list[int]], real: list[list[int]]) -> list[Plan]:
        """What each row's new tokens read. One token after others is generated; else they are a prompt's."""
        plans: list[Plan] = []
        for row, own, there in zip(state.rows, ids, real, strict=True):
            new = [token for token, is_real in zip(own, there, strict=True) if is_real]
            if len(own) == 1 and row.seen and new:
                plans.append(plan_generated(row, new[0], self.chunk))
            else:
                plans.append(plan_prompt(row, new, self.chunk, self._query))
        return plans

    def _retrieved(self, plans: Sequence[Plan]) -> dict[tuple[int, ...], tuple[Reference, ...]]:
        """What every query of these plans retrieves, each text once."""
        asked = {stretch.query for plan in plans for stretch in plan.stretches} | {
            plan.keep for plan in plans
        }
        queries = sorted(query for query in asked if query)
        found: dict[tuple[int, ...], tuple[Reference, ...]] = {(): ()}
        if not queries or not self.references:
            return found | dict.fromkeys(queries, ())
        texts = [str(self.tokenizer.decode(query, skip_special_tokens=True)) for query in queries]
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        answers = dict(zip(distinct, self._retrieve(distinct) if distinct else (), strict=True))
        return found | {
            query: tuple(answers.get(text, ()))[: self.references]
            for query, text in zip(queries, texts, strict=True)
        }

    def _search(self, texts: Sequence[str]) -> Sequence[Sequence[Reference]]:
        hits: Sequence[Sequence[Reference]] = self.bank.search(
            texts, self.references, continuations=self.continuations
        ).hits
        return hits

    def _memories(
        self,
        state: ReaderState,
        plans: Sequence[Plan],
        found: Mapping[tuple[int, ...], tuple[Reference, ...]],
        real: torch.Tensor,
    ) -> tuple[Mapping[int, LayerMemory], ChunkLayout | None]:
        """What the pass reads, and which of it each token does."""
        reads = [
            [row.reads if stretch.query is None else found[stretch.query] for stretch in plan.stretches]
            for row, plan in zip(state.rows, plans, strict=True)
        ]
        ids = tuple(tuple(tuple(map(_id_of, some)) for some in row) for row in reads)
        if not any(some for row in ids for some in row):
            return {}, None
        chunks = max(map(len, ids))
        if state.assembled is None or state.assembled[0] != ids:
            state.assembled = ids, self._assembled(reads, ids, chunks)
        if real.shape[1] == 1:
            return state.assembled[1], ChunkLayout.of(real.long() - 1, chunks)
        chunk_of = torch.full(real.shape, -1)
        for row, (plan, there) in enumerate(zip(plans, real.bool().cpu(), strict=True)):
            counts = torch.tensor([stretch.tokens for stretch in plan.stretches], dtype=torch.int64)
            chunk_of[row, there] = torch.arange(len(counts)).repeat_interleave(counts)
        return state.assembled[1], ChunkLayout.of(chunk_of.to(real.device), chunks)

    def _assembled(
        self,
        reads: Sequence[Sequence[Sequence[Reference]]],
        ids: Sequence[Sequence[Sequence[str]]],
        chunks: int,
    ) -> Mapping[int, LayerMemory]:
        distinct = {_id_of(one): one for row in reads for some in row for one in some}
        number = {name: place for place, name in enumerate(distinct)}
        each = max(len(some) for row in ids for some in row)
        table = torch.full((len(ids), chunks, each), -1)
        for row, stretches in enumerate(ids):
            for place, some in enumerate(stretches):
                table[row, place, : len(some)] = torch.tensor(
                    [number[name] for name in some], dtype=torch.int64
                )
        device, dtype = self._place()
        memories = self._memories_of.read(list(distinct.values()), device, dtype)
        return chunk_memories(
            memories.memory_layers, memories.keys, memories.values, memories.mask, table.to(device)
        )

    def _reference_bos(self) -> ReferenceBos:
        """Its keys and values where the model is now."""
        device, dtype = self._place()
        bos = self._bos
        if bos is None or bos.keys[0].device != device or bos.keys[0].dtype != dtype:
            with torch.no_grad():
                self._bos = bos = encode_reference_bos(self._base, self.loaded.reference_bos_ids)
        return bos

    def _place(self) -> tuple[torch.device, torch.dtype]:
        return self._base.get_input_embeddings().weight.device, self._base.dtype


def _id_of(reference: Reference) -> str:
    return reference if isinstance(reference, str) else reference.id


def _check_given(position_ids: torch.Tensor | None, index: torch.Tensor, real: torch.Tensor) -> None:
    """Positions given by the caller must count the real tokens of each row from 0, as generation does."""
    if position_ids is None:
        return
    wrong = (position_ids.to(index.device) != index) & real.bool()
    if bool(wrong.any()):
        raise UsageError(
            "position_ids must number the tokens of each row from 0, padding left out; a reader moves them"
            " behind the memories itself."
        )
