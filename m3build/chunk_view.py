"""One chunk of a bank as a person wants to see it: text, sources, and which tokens each memory head kept. Needs no model and no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from m3build.records import reference_text
from m3build.search import Source, sources_of
from m3build_formats.errors import UsageError
from m3build_formats.layout import UNUSED_SLOT
from m3build_formats.open_bank import BankFiles


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A chunk with its kept tokens.

    ``text`` is the reference text (title included, if it has one); token i covers ``text[spans[i][0]:spans[i][1]]``. ``kept`` holds, for each
    (layer, key-value head), the kept tokens in ascending order; it is empty for a bank without memories.
    """

    id: str
    text: str
    title: str
    spans: tuple[tuple[int, int], ...]
    sources: tuple[Source, ...]
    kept: dict[tuple[int, int], tuple[int, ...]]

    def to_json(self) -> dict[str, Any]:
        """The view as one JSON object."""
        return {
            "id": self.id,
            "title": self.title,
            "text": self.text,
            "tokens": len(self.spans),
            "sources": [
                {"document": s.document, "source": s.source, "position": s.position, "start": s.start, "end": s.end}
                for s in self.sources
            ],
            "token_spans": [list(span) for span in self.spans],
            "kept": [
                {"layer": layer, "head": head, "tokens": list(tokens)} for (layer, head), tokens in self.kept.items()
            ],
        }


def view_chunk(files: BankFiles, prefix: str) -> ChunkView:
    """The chunk whose id (hex) starts with ``prefix``. Raises UsageError where none or more than one does, CorruptError."""
    places = files.find(prefix)
    shard_number, row = places[0].shard, places[0].row
    shard = files.shards[shard_number]
    chunk = shard.chunk(row)
    text = reference_text(chunk.title, chunk.text)
    ends = [int(end) for end in chunk.token_ends]
    starts = [0, *ends[:-1]]
    kept: dict[tuple[int, int], tuple[int, ...]] = {}
    if shard.has_memories:
        memory = files.manifest.memory
        slots, codes = int(memory["sparse_tokens"]), files.manifest.row_codes_bytes
        positions = shard.memories([row])[0, codes:].reshape(-1, slots)
        heads = [
            (layer, head)
            for layer, members in zip(memory["memory_layers"], memory["memory_heads"], strict=True)
            for head in members
        ]
        for name, slot_row in zip(heads, positions, strict=True):
            kept[name] = tuple(int(p) for p in slot_row if p != UNUSED_SLOT)
    sources = tuple(sources_of(files.shards, [(p.shard, p.row) for p in places]))
    return ChunkView(
        chunk.id.hex(), text, chunk.title, tuple(zip(starts, ends, strict=True)), sources, kept
    )


def marked_tokens(view: ChunkView, layer: int | None, head: int | None) -> dict[int, int]:
    """How many of the chosen heads (of one layer, of one head number, or all) kept each token: token → heads.

    Raises UsageError for a layer or head that holds no memory.
    """
    chosen = [
        tokens
        for (at, number), tokens in view.kept.items()
        if (layer is None or at == layer) and (head is None or number == head)
    ]
    if not chosen:
        have = ", ".join(f"{at}:{number}" for at, number in view.kept) or "none"
        raise UsageError(f"no memory head with layer {layer}, head {head}; this bank has (layer:head) {have}")
    counts: dict[int, int] = {}
    for tokens in chosen:
        for token in tokens:
            counts[token] = counts.get(token, 0) + 1
    return counts
