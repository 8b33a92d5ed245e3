"""Loss of every token of some windows, for each way to give the model references: cross entropy in nats.

The ways (``VARIANTS``), on the same windows with the same references:

- ``plain``: the context as any transformers model reads it. ``bos``: the context after the reference BOS, at
  the positions that reading gives it, without memories. The better of the two is "none".
- ``quantized``: memories as stored. ``exact``: the same, unquantized. ``random``: stored memories of random
  references. ``dense``: all tokens' keys and values of the references, at the memory layers.
- ``text``: the references as text in the context. One row for each query chunk: the tokenizer's BOS, the
  references' own ids with a line feed after each, the best one last, but one of the row after another's
  behind that one, as a continuation is; then the window's context up to the end of the chunk; only the
  chunk's losses count. As many references stand there, best first, as fit before the whole context within
  the model's positions. A chunk without references is that of ``plain``.
- ``control``: the plain context, by another model.
- ``rank1``, ``rank2`` …: stored memories, of the reference of that rank alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from m3build.bank import Bank
from m3build.chunk_memories import chunk_memories
from m3build.evaluation.memory_forms import Form, dense, stored, unquantized
from m3build.evaluation.references import Reads, Reference
from m3build.evaluation.windows import position_limit
from m3build.model.load import LoadedModel
from m3build.read_context import encode_reference_bos, read_context

PLAIN, BOS, CONTROL = "plain", "bos", "control"
VARIANTS = ("quantized", "exact", "random", "text", "dense")

# float64, one for each predicted token of a window.
TokenLosses = npt.NDArray[np.float64]
_LOGITS_AT_ONCE = 1 << 24


@dataclass(frozen=True, slots=True)
class TextUse:
    """Of the references that query chunks read, how many ``text`` had room for."""

    fitted: int = 0
    wanted: int = 0


class LossMeter:
    """Measures windows with one model and bank. ``control``: another model with the same vocabulary.
    ``ranks``: measure each rank by itself, up to this many."""

    def __init__(
        self,
        model: Any,
        loaded: LoadedModel,
        bank: Bank,
        *,
        control: Any = None,
        batch_tokens: int = 4096,
        ranks: int = 0,
    ) -> None:
        self.model = model
        self._control = control
        self.loaded = loaded
        self._batch_tokens = batch_tokens
        self._ranks = ranks
        self._interval = loaded.shape.reference_tokens
        self.stored = stored(bank, loaded)
        self._forms: dict[str, Form] = {
            "quantized": self.stored,
            "exact": unquantized(loaded, batch_tokens),
            "random": self.stored,
            "dense": dense(loaded, batch_tokens),
        }
        self._limit = position_limit(model.config)
        bos = loaded.tokenizer.bos_token_id
        self._start: tuple[int, ...] = () if bos is None else (int(bos),)
        self.text_use = TextUse()
        with torch.no_grad():
            self._bos = encode_reference_bos(model.base_model, loaded.reference_bos_ids)

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of all that is measured."""
        control = () if self._control is None else (CONTROL,)
        return (PLAIN, BOS, *VARIANTS, *control, *(f"rank{rank}" for rank in range(1, self._ranks + 1)))

    @torch.no_grad()
    def measure(self, reads: Sequence[Reads]) -> dict[str, list[TokenLosses]]:
        """For each variant the losses of each window, in order. All windows are one batch."""
        windows = [read.window.ids for read in reads]
        plain = self._context(windows)
        losses = {PLAIN: plain, BOS: self.reading(reads, None, None)}
        for name, form in self._forms.items():
            losses[name] = self.reading(
                reads, form, [r.random if name == "random" else r.found for r in reads]
            )
        losses["text"] = self._text(reads, plain)
        if self._control is not None:
            losses[CONTROL] = self._context(windows, self._control)
        for rank in range(1, self._ranks + 1):
            alone = [tuple(some[rank - 1 : rank] for some in r.found) for r in reads]
            losses[f"rank{rank}"] = self.reading(reads, self.stored, alone)
        return losses

    def reading(
        self,
        reads: Sequence[Reads],
        form: Form | None,
        references: Sequence[Sequence[Sequence[Reference]]] | None,
    ) -> list[TokenLosses]:
        """Losses after the reference BOS, where query chunk c of window w reads ``references[w][c]``."""
        return _losses(self.forward(reads, form, references), [r.window.ids for r in reads])

    def forward(
        self,
        reads: Sequence[Reads],
        form: Form | None,
        references: Sequence[Sequence[Sequence[Reference]]] | None,
    ) -> torch.Tensor:
        """The logits (B, T, V) of the same."""
        ids, mask = padded([r.window.ids for r in reads])
        layers: Mapping[int, Any] = {}
        chunk_of = None
        if form is not None and references is not None:
            distinct = {one.id: one for row in references for some in row for one in some}
            if distinct:
                numbers = {name: number for number, name in enumerate(distinct)}
                chunks = max(map(len, references))
                most = max(len(some) for row in references for some in row)
                table = torch.full((len(reads), chunks, most), -1)
                for row, of_window in enumerate(references):
                    for chunk, some in enumerate(of_window):
                        table[row, chunk, : len(some)] = torch.tensor(
                            [numbers[one.id] for one in some], dtype=torch.int64
                        )
                memories = form(list(distinct.values()))
                device = self.loaded.device
                layers = chunk_memories(
                    self.loaded.shape.memory_layers,
                    memories.keys,
                    memories.values,
                    memories.mask,
                    table.to(device),
                )
                width = reads[0].window.chunk
                chunk_of = (
                    (torch.arange(ids.shape[1]) // width).clamp(max=chunks - 1).expand_as(ids).to(device)
                )
        logits: torch.Tensor = read_context(
            self.model,
            ids.to(self.loaded.device),
            bos=self._bos,
            interval=self._interval,
            memories=layers,
            chunk_of=chunk_of,
            attention_mask=mask.to(self.loaded.device),
        ).logits
        return logits

    def _context(self, contexts: Sequence[tuple[int, ...]], model: Any = None) -> list[TokenLosses]:
        """Losses of plain contexts, by the model or another one."""
        ids, mask = padded(contexts)
        output = (model or self.model)(
            input_ids=ids.to(self.loaded.device),
            attention_mask=mask.to(self.loaded.device),
            use_cache=False,
        )
        return _losses(output.logits, contexts)

    def _text(self, reads: Sequence[Reads], plain: Sequence[TokenLosses]) -> list[TokenLosses]:
        losses = [own.copy() for own in plain]
        rows: list[tuple[int, int, tuple[int, ...], int]] = []
        for number, read in enumerate(reads):
            for chunk, references in enumerate(read.found):
                end = (chunk + 1) * read.window.chunk
                # One token more than the chunk: the last one's successor is predicted too.
                row, fitted = self.with_text(references, read.window.ids[: end + 1])
                self.text_use = TextUse(self.text_use.fitted + fitted, self.text_use.wanted + len(references))
                if fitted:
                    rows.append((number, chunk, row, min(end, read.window.predicted)))
        for some in _groups(rows, self._batch_tokens):
            found = self._context([row for _, _, row, _ in some])
            for (number, chunk, _, end), own in zip(some, found, strict=True):
                first = chunk * reads[number].window.chunk
                losses[number][first:end] = own[len(own) - (end - first) :]
        return losses

    def with_text(
        self, references: Sequence[Reference], context: tuple[int, ...]
    ) -> tuple[tuple[int, ...], int]:
        """The row of ``text`` for a context (see the module), and how many references it holds."""
        own = context[len(self._start) :]
        room = None if self._limit is None else self._limit - len(context)
        places: list[tuple[int, int]] = []
        texts: list[list[int]] = []
        for reference in references:
            ids = self.loaded.tokenizer.encode(reference.text + "\n", add_special_tokens=False)
            if room is not None and sum(map(len, texts)) + len(ids) > room:
                break
            # The best stands last, but a text that goes on stays behind what it goes on from.
            before = reference.shard, reference.row - 1
            at = places.index(before) + 1 if before in places else 0
            places.insert(at, (reference.shard, reference.row))
            texts.insert(at, ids)
        return (*self._start, *chain.from_iterable(texts), *own), len(texts)


def padded(contexts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Contexts of different lengths as one batch, padded on the right, and its mask: int64 (B, T)."""
    longest = max(map(len, contexts))
    ids = torch.zeros(len(contexts), longest, dtype=torch.int64)
    mask = torch.zeros(len(contexts), longest, dtype=torch.int64)
    for row, context in enumerate(contexts):
        ids[row, : len(context)] = torch.tensor(context, dtype=torch.int64)
        mask[row, : len(context)] = 1
    return ids, mask


def _losses(logits: torch.Tensor, contexts: Sequence[Sequence[int]]) -> list[TokenLosses]:
    """Cross entropy of each token after the first, from logits (B, T, V), a part of them at a time."""
    step = max(1, _LOGITS_AT_ONCE // logits.shape[-1])
    found = []
    for row, context in enumerate(contexts):
        targets = torch.tensor(context[1:], dtype=torch.int64, device=logits.device)
        parts = [
            torch.nn.functional.cross_entropy(
                logits[row, start : min(start + step, len(targets))].float(),
                targets[start : start + step],
                reduction="none",
            )
            for start in range(0, len(targets), step)
        ]
        found.append(torch.cat(parts).double().cpu().numpy())
    return found


def _groups(
    rows: Sequence[tuple[int, int, tuple[int, ...], int]], batch_tokens: int
) -> Iterator[list[tuple[int, int, tuple[int, ...], int]]]:
    """Rows of like lengths together, each group within ``batch_tokens`` with its padding, one row at
    least."""
    group: list[tuple[int, int, tuple[int, ...], int]] = []
    for row in sorted(rows, key=lambda row: len(row[2])):
        if group and (len(group) + 1) * len(row[2]) > batch_tokens:
            yield group
            group = []
        group.append(row)
    if group:
        yield group
