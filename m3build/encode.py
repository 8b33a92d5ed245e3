"""References in, explicit memories out: batches of token ids through the model, kept keys and values of every
memory head.

A reference's memory must be the same bits whatever it is encoded together with, on however many threads, so
that a bank does not depend on how it was built. On a CPU that takes four things, each seen to matter:

* The padded length follows from the reference's own length alone (another length changes bits by up to 6e-3
  in bfloat16): the row, BOS included, is padded on the right to a multiple of ``LADDER_STEP``.
* Rows need no padding mask (see :mod:`m3build.capture`), so there is one form of mask at each length.
* Each batch runs on one thread, and several batches run at once. Within an operator torch splits elements
  evenly over its threads, and where a split falls inside a vector register the rest is computed by scalar
  code, whose exp and tanh differ in the last bit: SiLU over 3, 5, 7 or (for small inputs) 16 threads is not
  SiLU over one.
* With every row a multiple of 8 tokens, matrix products keep to one path: MKL has another for blocks with one
  to three rows left over. ``LEAST_TOKENS`` keeps small batches away from the paths for very few rows.

On a GPU one batch runs at a time, and the promise is a tolerance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Barrier
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from m3build.capture import LayerCapture, capture_each
from m3build.model.device import dtype_name
from m3build.model.load import LoadedModel
from m3build.model.shape import MemoryShape
from m3build.selection import get_selector
from m3build.selection.base import References, Selector
from m3build_formats.errors import MismatchError, ResourceError
from m3build_formats.layout import UNUSED_SLOT

LADDER_STEP = 8
LEAST_TOKENS = 64
DEFAULT_BATCH_TOKENS = 16384
# A core is no faster with more, which would only take more memory.
MOST_THREAD_TOKENS = 4096

TokenIds: TypeAlias = Sequence[int] | NDArray[np.integer[Any]]
"""The token ids of one reference, without the reference BOS."""


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Memories of some references, on the model's device, in the model's number type.

    ``indices`` are those of the references in the sequence that was given. Over the shape's head list (N
    heads) and its S slots: ``keys`` (after RoPE) and ``values`` (B, N, S, d), ``positions`` uint8 (B, N, S)
    counted from the reference's first token, ascending, 255 in slots beyond its tokens, where keys and values
    are zero. ``queries`` (B, memory layers, Hq, Q, d) after RoPE, if they were asked for. ``tokens`` is how
    many tokens the model ran for this batch, padding included.
    """

    indices: tuple[int, ...]
    keys: torch.Tensor
    values: torch.Tensor
    positions: torch.Tensor
    queries: torch.Tensor | None
    tokens: int


def padded_length(tokens: int, bos: int) -> int:
    """Length of the row of a reference of that many tokens after ``bos`` ids of reference BOS."""
    return -(-(bos + tokens) // LADDER_STEP) * LADDER_STEP


class ReferenceEncoder:
    """Writes the explicit memories of references (Memory³ §3.1 to §3.3) with one model, shape and selection
    rule.

    ``batch_tokens`` bounds the tokens in flight, padding included (one reference always runs); a thread of a
    CPU takes at most 4,096 of them. ``threads`` is how many batches run at once on a CPU: by default torch's
    own number of threads. ``queries`` asks for that many queries of each reference, evenly spread over its
    tokens, to measure errors of attention with. None of them changes a bit of a memory.

    As a context manager it keeps its threads from one call to the next until it is left; otherwise each call
    starts its own, and what the allocator set aside for a thread is not given back when the thread ends.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        selector: Selector | None = None,
        batch_tokens: int = DEFAULT_BATCH_TOKENS,
        threads: int | None = None,
        queries: int = 0,
    ) -> None:
        self._model = model
        self._shape = model.shape
        self._selector = selector or get_selector(model.shape.selection)
        self._threads, self._batch_tokens = 1, batch_tokens
        if model.device.type == "cpu":
            self._threads = max(1, threads or torch.get_num_threads())
            self._batch_tokens = min(batch_tokens, self._threads * MOST_THREAD_TOKENS)
        self._queries = queries
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        if self._model.device.type == "cpu":
            self._pool = _single_threaded_pool(self._threads)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def encode(self, references: Sequence[TokenIds]) -> Iterator[EncodedBatch]:
        """Memories of references, given as token ids without the reference BOS, batch by batch in an order
        that follows from their lengths.

        Raises ResourceError if a batch does not fit into memory, MismatchError if the model yields keys or
        values that are not finite.
        """
        batches = self._batches(references)
        if self._model.device.type != "cpu":
            for indices in batches:
                yield self._encode(references, indices)
            return
        with nullcontext(self._pool) if self._pool else _single_threaded_pool(self._threads) as pool:
            yield from _in_order(
                pool, self._threads + 1, batches, lambda indices: self._encode(references, indices)
            )

    def _batches(self, references: Sequence[TokenIds]) -> list[tuple[int, ...]]:
        """Indices of each batch: one padded length each, under the budget of one thread; the longest rows
        first."""
        bos = len(self._model.reference_bos_ids)
        lengths: dict[int, list[int]] = {}
        for index, ids in enumerate(references):
            if not 1 <= len(ids) <= self._shape.reference_tokens:
                raise ValueError(
                    f"reference {index} has {len(ids)} tokens, not 1 to {self._shape.reference_tokens}"
                )
            lengths.setdefault(padded_length(len(ids), bos), []).append(index)
        whole = sum(length * len(indices) for length, indices in lengths.items())
        # A small input is shared out evenly: how references are batched changes nothing but the time.
        budget = min(self._batch_tokens, whole) // self._threads
        batches: list[tuple[int, ...]] = []
        for length, indices in sorted(lengths.items(), reverse=True):
            step = max(1, budget // length)
            batches.extend(tuple(indices[start : start + step]) for start in range(0, len(indices), step))
        return batches

    def _encode(self, references: Sequence[TokenIds], indices: tuple[int, ...]) -> EncodedBatch:
        try:
            with torch.no_grad():
                return self._encode_batch(references, indices)
        except (torch.OutOfMemoryError, MemoryError) as error:
            raise self._out_of_memory() from error
        except RuntimeError as error:
            # The CPU allocator has no exception of its own.
            if "allocate memory" in str(error) or "out of memory" in str(error):
                raise self._out_of_memory() from error
            raise

    def _out_of_memory(self) -> ResourceError:
        return ResourceError(
            f"out of memory on {self._model.device.type} while encoding references;"
            f" lower --batch-tokens (now {self._batch_tokens})."
        )

    def _encode_batch(self, references: Sequence[TokenIds], indices: tuple[int, ...]) -> EncodedBatch:
        model, shape = self._model, self._shape
        bos = model.reference_bos_ids
        lengths = torch.tensor([len(references[index]) for index in indices])
        length = padded_length(int(lengths[0]), len(bos))
        rows = max(len(indices), -(-LEAST_TOKENS // length))
        ids = np.zeros((rows, length), np.int64)
        ids[:, : len(bos)] = bos
        for row, index in enumerate(indices):
            ids[row, len(bos) : len(bos) + len(references[index])] = references[index]
        ids[len(indices) :] = ids[0]
        asked = _spread(lengths, self._queries).to(model.device) + len(bos)
        queries: list[torch.Tensor] = []

        def receive(layer: LayerCapture) -> None:
            at = asked[:, None, :, None].expand(-1, layer.query.shape[1], -1, layer.query.shape[3])
            queries.append(layer.rotated_query[:count].gather(2, at))

        count = len(indices)
        keys, values, positions = write_memories(
            model.base,
            torch.from_numpy(ids).to(model.device),
            lengths,
            len(bos),
            shape,
            self._selector,
            receive if self._queries else None,
        )
        if not bool(torch.isfinite(keys).all() & torch.isfinite(values).all()):
            raise MismatchError(
                f"{model.name} yields keys or values that are not finite in {dtype_name(model.dtype)};"
                " use --dtype float32 or bfloat16."
            )
        return EncodedBatch(
            indices=indices,
            keys=keys,
            values=values,
            positions=positions,
            queries=torch.stack(queries, dim=1) if queries else None,
            tokens=rows * length,
        )


def write_memories(
    base: torch.nn.Module,
    ids: torch.Tensor,
    lengths: torch.Tensor,
    bos: int,
    shape: MemoryShape,
    selector: Selector,
    receive: Callable[[LayerCapture], None] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write the memories of references: keys, values (B, N, S, d) and kept positions (B, N, S) as in
    ``EncodedBatch``, for one forward pass of ``base`` over ``ids`` (at least B rows, T).

    A row is ``bos`` ids of reference BOS, then ``lengths`` (B,) of its own, then any padding; rows after the
    B that have lengths are run and left out. ``receive`` is shown each memory layer's capture. Compiling and
    training both write through this; it is differentiable in the model's weights.
    """
    count = len(lengths)
    places = torch.arange(ids.shape[1])
    mask = (places >= bos) & (places < (bos + lengths)[:, None])
    own_rows = References(ids[:count].cpu(), mask.to(ids.device), bos)
    parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def take(layer: LayerCapture) -> None:
        if receive is not None:
            receive(layer)
        layer = layer.rows(count).heads(shape.heads_of(layer.layer))
        positions = selector.keep(layer, own_rows, shape.sparse_tokens)
        parts.append(
            (
                take_kept(layer.rotated_key, positions, bos),
                take_kept(layer.value, positions, bos),
                positions,
            )
        )

    capture_each(base, ids, shape.memory_layers, take)
    keys, values, positions = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    return keys, values, positions


def take_kept(vectors: torch.Tensor, positions: torch.Tensor, first: int) -> torch.Tensor:
    """Of vectors (B, H, T, d) those at kept positions (B, H, S), counted from column ``first``: (B, H, S, d),
    zero in unused slots."""
    unused = positions == UNUSED_SLOT
    at = (positions.long() + first).masked_fill(unused, 0)
    kept = vectors.gather(2, at[..., None].expand(-1, -1, -1, vectors.shape[-1]))
    return kept.masked_fill_(unused[..., None], 0)


def _spread(lengths: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` positions evenly over each length: the middles of as many equal parts; int64 (B, count)."""
    return (2 * torch.arange(count) + 1) * lengths[:, None] // (2 * max(count, 1))


def _single_threaded_pool(threads: int) -> ThreadPoolExecutor:
    """A pool of that many threads, in each of which torch's operators use that thread alone.

    torch keeps the number per thread, but a new thread starts with the number that was set last anywhere; so
    all are begun at once and the caller's number is set again.
    """
    before = torch.get_num_threads()
    begun = Barrier(threads + 1)
    pool = ThreadPoolExecutor(threads, "m3build-encode")
    for _ in range(threads):
        pool.submit(_use_one_thread, begun)
    begun.wait()
    torch.set_num_threads(before)
    return pool


def _use_one_thread(begun: Barrier) -> None:
    # A thread takes over the number that was set last anywhere when it first asks for it, and would forget
    # what was set before: so it is made to ask first.
    torch.get_num_threads()
    torch.set_num_threads(1)
    begun.wait()


def _in_order(
    pool: ThreadPoolExecutor,
    ahead: int,
    batches: Sequence[tuple[int, ...]],
    work: Callable[[tuple[int, ...]], EncodedBatch],
) -> Iterator[EncodedBatch]:
    """Results in the order of ``batches``, with at most ``ahead`` begun before they are asked for."""
    pending: deque[Future[EncodedBatch]] = deque()
    try:
        for batch in batches:
            pending.append(pool.submit(work, batch))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()
