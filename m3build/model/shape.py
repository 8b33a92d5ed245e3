"""Where memory sits in a model: layers, key-value heads, tokens kept. No torch here; plans and checks need
none.

Three sources, first wins: what the caller says, ``memory3.json`` in the model directory (a model trained to
read memories says there how), the paper's defaults: the first half of the layers, all key-value heads, 8
tokens of at most 128, 64-token query chunks, 5 references.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3build.model.memory3_file import MEMORY3_FILE
from m3build.selection import check_selection
from m3build_formats.errors import UsageError
from m3build_formats.layout import MAX_REFERENCE_TOKENS

DEFAULT_SPARSE_TOKENS = 8
DEFAULT_REFERENCE_TOKENS = 128
DEFAULT_REFERENCE_BOS = "Reference:"
DEFAULT_SELECTION = "memory3"
DEFAULT_QUERY_TOKENS = 64
DEFAULT_REFERENCES = 5


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a model's config says about its size. ``name`` is the directory's base name or the hub id, never
    an absolute path; ``architecture`` is transformers' model type, such as ``llama``."""

    name: str
    architecture: str
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int


@dataclass(frozen=True, slots=True)
class ShapeRequest:
    """What a caller asks for, in the notation of the command line or as plain values; None where nothing was
    said.

    ``memory_layers`` "0-3,6" or integers; ``memory_heads`` "4:0,1;5:2" or {layer: heads}; ``sparse_tokens`` a
    number or "all".
    """

    memory_layers: str | Sequence[int] | None = None
    memory_heads: str | Mapping[int, Sequence[int]] | None = None
    sparse_tokens: str | int | None = None
    reference_tokens: int | None = None
    reference_bos: str | None = None
    selection: str | None = None
    query_tokens: int | None = None
    references: int | None = None
    continuations: bool | None = None


@dataclass(frozen=True, slots=True)
class MemoryShape:
    """The shape of every memory of a bank.

    ``heads`` is the ordered list of (layer, key-value head) that hold memory, layers ascending, heads
    ascending within a layer: keys and values of a reference are arrays (len(heads), sparse_tokens, head_dim)
    over it. ``sparse_tokens`` is the number of slots per head. ``reference_bos`` is the text before every
    reference; the tokenizer's own BOS stands before it and is not part of it. Readers read ``references`` for
    each ``query_tokens``, with ``continuations`` each that is found and what follows it.
    """

    memory_layers: tuple[int, ...]
    heads: tuple[tuple[int, int], ...]
    sparse_tokens: int
    reference_tokens: int
    reference_bos: str
    selection: str
    query_tokens: int
    references: int
    continuations: bool
    layers: int
    query_heads: int
    kv_heads: int
    head_dim: int

    def heads_of(self, layer: int) -> tuple[int, ...]:
        """Key-value heads of a layer that hold memory, ascending."""
        return tuple(head for at, head in self.heads if at == layer)

    def record(self) -> dict[str, Any]:
        """The shape as a JSON object for a manifest: the keys of ``memory3.json``, all of them, then the
        model's own numbers."""
        return {
            "memory_layers": list(self.memory_layers),
            "memory_heads": {str(layer): list(self.heads_of(layer)) for layer in self.memory_layers},
            "sparse_tokens": self.sparse_tokens,
            "reference_tokens": self.reference_tokens,
            "reference_bos": self.reference_bos,
            "selection": self.selection,
            "query_tokens": self.query_tokens,
            "references": self.references,
            "continuations": self.continuations,
            "layers": self.layers,
            "query_heads": self.query_heads,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
        }


def resolve_shape(facts: ModelFacts, request: ShapeRequest, stored: Mapping[str, Any]) -> MemoryShape:
    """The shape of memories of a model. ``stored`` is what ``read_memory3`` returned, {} without the
    file.

    Memory layers that were asked for set the file's ``memory_heads`` aside. Heads given without layers make
    their layers the memory layers; given with layers, a layer that is not named keeps all of its heads.
    Raises UsageError for whatever the model does not have.
    """
    said = request.memory_layers is not None or request.memory_heads is not None
    layers_given = request.memory_layers if said else stored.get("memory_layers")
    heads_given = request.memory_heads if said else stored.get("memory_heads")
    where = "--memory-layers" if said else f"{MEMORY3_FILE}: memory_layers"
    where_heads = "--memory-heads" if said else f"{MEMORY3_FILE}: memory_heads"

    chosen: Mapping[int, tuple[int, ...]] = {}
    if heads_given is not None:
        chosen = parse_heads(heads_given, facts.layers, facts.kv_heads, where_heads)
    if layers_given is not None:
        layers = parse_layers(layers_given, facts.layers, where)
    elif chosen:
        layers = tuple(sorted(chosen))
    else:
        # The first half (§3.4); a model of one layer has no smaller half than that layer.
        layers = tuple(range(max(1, facts.layers // 2)))
    stray = sorted(set(chosen) - set(layers))
    if stray:
        raise UsageError(f"{where_heads}: layer {stray[0]} is not a memory layer ({_listed(layers)}).")
    heads = tuple((at, head) for at in layers for head in chosen.get(at, range(facts.kv_heads)))

    def number(name: str, default: int, most: int) -> int:
        value = getattr(request, name)
        if value is not None:
            return _whole(value, f"--{name.replace('_', '-')}", most)
        return _whole(stored.get(name, default), f"{MEMORY3_FILE}: {name}", most)

    reference_tokens = number("reference_tokens", DEFAULT_REFERENCE_TOKENS, MAX_REFERENCE_TOKENS)
    sparse_asked = request.sparse_tokens
    sparse_where = "--sparse-tokens"
    if sparse_asked is None:
        sparse_asked, sparse_where = stored.get("sparse_tokens"), f"{MEMORY3_FILE}: sparse_tokens"
    if sparse_asked is None:
        sparse_tokens = min(DEFAULT_SPARSE_TOKENS, reference_tokens)
    elif sparse_asked == "all":
        sparse_tokens = reference_tokens
    else:
        sparse_tokens = _whole(sparse_asked, sparse_where, reference_tokens, or_all=True)
    selection = request.selection or stored.get("selection", DEFAULT_SELECTION)
    reference_bos = request.reference_bos
    if reference_bos is None:
        reference_bos = stored.get("reference_bos", DEFAULT_REFERENCE_BOS)
    return MemoryShape(
        memory_layers=layers,
        heads=heads,
        sparse_tokens=sparse_tokens,
        reference_tokens=reference_tokens,
        reference_bos=reference_bos,
        selection=check_selection(selection),
        query_tokens=number("query_tokens", DEFAULT_QUERY_TOKENS, 1 << 20),
        references=number("references", DEFAULT_REFERENCES, 1 << 20),
        continuations=_yes_or_no(
            stored.get("continuations", False) if request.continuations is None else request.continuations
        ),
        layers=facts.layers,
        query_heads=facts.query_heads,
        kv_heads=facts.kv_heads,
        head_dim=facts.head_dim,
    )


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"continuations must be true or false, not {value!r}.")
    return value


def parse_layers(given: str | Sequence[int], layers: int, where: str = "--memory-layers") -> tuple[int, ...]:
    """Layer numbers from "0-3,6" or a list of integers; ascending, each once. Raises UsageError for any that
    the model does not have."""
    found = _numbers(given, where) if isinstance(given, str) else [_index(n, where) for n in given]
    if not found:
        raise UsageError(f"{where}: no layer given.")
    for n in found:
        if n >= layers:
            raise UsageError(f"{where}: no layer {n}; the model has layers 0 to {layers - 1}.")
    return tuple(sorted(set(found)))


def parse_heads(
    given: str | Mapping[Any, Sequence[int]], layers: int, kv_heads: int, where: str = "--memory-heads"
) -> dict[int, tuple[int, ...]]:
    """Key-value heads by layer from "4:0,1;5:2" or {layer: heads}. Raises UsageError for what the model does
    not have."""
    pairs: list[tuple[Any, str | Sequence[int]]] = []
    if isinstance(given, str):
        for part in given.split(";"):
            before, colon, after = part.partition(":")
            if not colon:
                raise UsageError(f"{where}: '{part}' is not LAYER:HEADS, as in 4:0,1;5:2.")
            pairs.append((before.strip(), after))
    else:
        pairs.extend(given.items())
    chosen: dict[int, tuple[int, ...]] = {}
    for named, heads in pairs:
        (layer,) = parse_layers([_index(named, where)], layers, where)
        numbers = _numbers(heads, where) if isinstance(heads, str) else [_index(n, where) for n in heads]
        if not numbers:
            raise UsageError(f"{where}: no heads for layer {layer}.")
        if layer in chosen:
            raise UsageError(f"{where}: layer {layer} is given twice.")
        for n in numbers:
            if n >= kv_heads:
                raise UsageError(f"{where}: no key-value head {n}; the model has heads 0 to {kv_heads - 1}.")
        chosen[layer] = tuple(sorted(set(numbers)))
    return dict(sorted(chosen.items()))


def _numbers(text: str, where: str) -> list[int]:
    """Numbers of "0-3,6"."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,6})\s*(?:-\s*([0-9]{1,6})\s*)?", part)
        if match is None:
            raise UsageError(f"{where}: '{part}' is neither a number nor a range such as 0-3.")
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise UsageError(f"{where}: the range '{part.strip()}' runs backwards.")
        found.extend(range(low, high + 1))
    return found


def _index(value: Any, where: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,6}", value):
        return int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UsageError(f"{where}: {value!r} is not a number from 0.")
    return value


def _whole(value: Any, where: str, most: int, or_all: bool = False) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise UsageError(
            f"{where} must be a number from 1 to {most}{' or all' if or_all else ''}, not {value!r}."
        )
    return value


def _listed(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
