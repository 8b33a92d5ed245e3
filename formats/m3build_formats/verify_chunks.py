"""Whether the documents and chunks of a shard keep the rules of SPEC.md.

Whole columns at a time where it can; holds the ids and documents of one shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import compute

from m3build_formats.canonical_json import canonical_json, parse_json
from m3build_formats.layout import (
    DATA_DIRECTORY,
    MAX_CHUNK_CHARACTERS,
    MAX_DOCUMENT_ID_BYTES,
    MAX_METADATA_BYTES,
    MAX_TITLE_BYTES,
    reference_text,
)
from m3build_formats.manifest import Manifest
from m3build_formats.shard import Shard
from m3build_formats.verify_report import Problem

if TYPE_CHECKING:
    from numpy.typing import NDArray


_LIMITS: Final = {
    "id": MAX_DOCUMENT_ID_BYTES,
    "source": MAX_DOCUMENT_ID_BYTES,
    "title": MAX_TITLE_BYTES,
    "metadata": MAX_METADATA_BYTES,
}


class Documents:
    """What the chunks of a shard refer to: ids, lengths and counts of its documents."""

    def __init__(self) -> None:
        self.ids: Any = pa.array([], pa.string())
        self.characters = np.zeros(0, np.uint64)
        self.chunks = np.zeros(0, np.uint32)
        self.file = ""

    def read(self, shard: Shard) -> Iterator[Problem]:
        self.file = f"{DATA_DIRECTORY}/{shard.entry.documents_file.name}"
        batches = list(shard.document_batches())
        if batches:
            self.ids = pa.concat_arrays([batch.column("id") for batch in batches])
            self.characters = np.concatenate([batch.column("characters").to_numpy() for batch in batches])
            self.chunks = np.concatenate([batch.column("chunks").to_numpy() for batch in batches])
        row = 0
        for batch in batches:
            for name, limit in _LIMITS.items():
                sizes = compute.binary_length(batch.column(name)).to_numpy()
                for over in np.flatnonzero(sizes > limit).tolist():
                    yield Problem(
                        self.file, row + over, "values within the limits", f"{name} of over {limit} bytes"
                    )
            for text in batch.column("metadata").to_pylist():
                if problem := _metadata_problem(text):
                    yield Problem(self.file, row, "metadata is a canonical JSON object", problem)
                row += 1


def _metadata_problem(text: str) -> str | None:
    try:
        value = parse_json(text.encode())
        return None if isinstance(value, dict) and canonical_json(value) == text else "is in another form"
    except ValueError as error:
        return str(error)


def check_chunks(
    manifest: Manifest, shard: Shard, documents: Documents, tokens_of_rows: NDArray[np.uint16]
) -> Iterator[Problem]:
    file = f"{DATA_DIRECTORY}/{shard.entry.chunks.name}"
    seen: set[bytes] = set()
    counted = np.zeros(shard.documents, np.uint64)
    first, previous = 0, (-1, -1)
    for batch in shard.chunk_batches():
        tokens = batch.column("tokens").to_numpy()
        tokens_of_rows[first : first + len(tokens)] = tokens
        lengths = np.zeros(len(tokens), np.int64)
        columns = (batch.column(name).to_pylist() for name in ("id", "title", "text"))
        for row, (identity, title, text) in enumerate(zip(*columns, strict=True)):
            whole = reference_text(title, text)
            lengths[row] = len(whole)
            if len(whole) > MAX_CHUNK_CHARACTERS:
                yield Problem(
                    file,
                    first + row,
                    "values within the limits",
                    f"a reference text of {len(whole)} characters",
                )
            if hashlib.sha256(whole.encode()).digest() != identity:
                yield Problem(
                    file,
                    first + row,
                    "an id is the SHA-256 of its text",
                    f"id {identity.hex()[:16]}… is another text's",
                )
            if identity in seen:
                yield Problem(
                    file,
                    first + row,
                    "one row for each text of a shard",
                    f"id {identity.hex()[:16]}… is there twice",
                )
            seen.add(identity)
        for row, message in _token_faults(batch, tokens, lengths, manifest.memory["reference_tokens"]):
            yield Problem(file, first + row, "tokens lie in order within the text", message)
        rows, starts, ends, owner = _occurrences(batch)
        for row, message in _occurrence_faults(batch, documents, rows, starts, ends, owner):
            yield Problem(file, first + row, "occurrences lie within their documents", message)
        counted += np.bincount(rows[rows < shard.documents], minlength=shard.documents).astype(np.uint64)
        places = np.flatnonzero(np.diff(owner, prepend=-1))
        for place in places.tolist():
            current = (int(rows[place]), int(starts[place]))
            if current <= previous:
                yield Problem(
                    file,
                    first + int(owner[place]),
                    "rows in order of first occurrence",
                    f"{current} follows {previous}",
                )
            previous = current
        first += len(tokens)
    if len(documents.chunks) != len(counted):
        return  # a documents table that cannot be read is a problem of its own
    for row in np.flatnonzero(counted != documents.chunks).tolist():
        message = f"says {int(documents.chunks[row])} chunks, the chunks table has {int(counted[row])}"
        yield Problem(documents.file, row, "documents count their chunks", message)


def _token_faults(
    batch: Any, tokens: NDArray[Any], lengths: NDArray[Any], most: int
) -> Iterator[tuple[int, str]]:
    column = batch.column("token_ends")
    starts = column.offsets.to_numpy().astype(np.int64)
    ends = column.values.to_numpy().astype(np.int64)
    counts = np.diff(starts)
    for row in np.flatnonzero(counts != tokens).tolist():
        yield row, f"says {int(tokens[row])} tokens, but has {int(counts[row])} token ends"
    for row in np.flatnonzero((tokens < 1) | (tokens > most)).tolist():
        yield row, f"has {int(tokens[row])} tokens, expected 1 to {most}"
    owner = np.repeat(np.arange(len(counts)), counts)
    ends = ends[starts[0] : starts[-1]]
    falling = np.flatnonzero((np.diff(ends) < 0) & (np.diff(owner) == 0))
    for row in np.unique(owner[falling]).tolist():
        yield row, "its token ends are not ascending"
    for row in np.unique(owner[ends > lengths[owner]]).tolist():
        yield row, "a token ends beyond the text"


def _occurrences(batch: Any) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Document row, start, end of every occurrence, and the chunk row that it belongs to."""
    column = batch.column("occurrences")
    values = column.flatten()
    rows, starts, ends = (values.field(name).to_numpy() for name in ("row", "start", "end"))
    owner = np.repeat(np.arange(len(column)), np.diff(column.offsets.to_numpy()))
    return rows.astype(np.int64), starts, ends, owner


def _occurrence_faults(
    batch: Any,
    documents: Documents,
    rows: NDArray[Any],
    starts: NDArray[Any],
    ends: NDArray[Any],
    owner: NDArray[Any],
) -> Iterator[tuple[int, str]]:
    for row in np.setdiff1d(np.arange(batch.num_rows), owner).tolist():
        yield row, "has no occurrence"
    known = rows < len(documents.ids)
    for place in np.flatnonzero(~known).tolist():
        yield int(owner[place]), f"names document row {int(rows[place])} of {len(documents.ids)}"
    limits = np.zeros(len(rows), np.uint64)
    limits[known] = documents.characters[rows[known]]
    for place in np.flatnonzero(known & ((starts >= ends) | (ends > limits))).tolist():
        yield (
            int(owner[place]),
            f"span {int(starts[place])} to {int(ends[place])} of {int(limits[place])} characters",
        )
    names = batch.column("occurrences").flatten().field("document").to_pylist()
    expected = (
        documents.ids.take(pa.array(np.where(known, rows, 0))).to_pylist() if len(documents.ids) else []
    )
    for place, (name, identity) in enumerate(zip(names, expected, strict=False)):
        if known[place] and name != identity:
            yield (
                int(owner[place]),
                f"names document {name[:60]!r}, but row {int(rows[place])} is {identity[:60]!r}",
            )
    within = np.diff(owner) == 0
    earlier = (np.diff(rows) < 0) | ((np.diff(rows) == 0) & (starts[1:] <= starts[:-1]))
    for row in np.unique(owner[1:][within & earlier]).tolist():
        yield row, "its occurrences are not in order"
