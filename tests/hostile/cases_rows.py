"""Tables that parse, with rows that break the rules of SPEC.md: readers return what is there and never more,
``verify`` names the row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from case import add
from forge import JSON, Forge
from good_bank import POSITIONS, SLOTS, VECTOR

from m3build_formats.layout import reference_text

Change = Callable[[list[JSON]], object]
HEAD_CODES = SLOTS * VECTOR


def _rows(forge: Forge, kind: str, change: Change) -> None:
    entry = forge.shard()[kind]
    table = forge.table(entry).read()
    rows = table.to_pylist()
    change(rows)
    forge.put_rows(entry, pa.Table.from_pylist(rows, table.schema))


def _retitled(row: JSON, **changed: Any) -> None:
    """A row with other text, the id that belongs to it, and as many tokens as before."""
    row.update(changed)
    whole = reference_text(row["title"], row["text"])
    row["id"] = hashlib.sha256(whole.encode()).digest()
    row["token_ends"] = [1] * row["tokens"]


def _occurrence(place: int, number: int, **changed: Any) -> Change:
    return lambda rows: rows[place]["occurrences"][number].update(changed)


CHUNKS: Mapping[str, Change] = {
    "an id of another text": lambda rows: rows[4].update(id=bytes(32)),
    "an id twice": lambda rows: rows[4].update(rows[3], occurrences=rows[4]["occurrences"]),
    "a token that ends beyond the text": lambda rows: rows[4]["token_ends"].__setitem__(-1, 65_535),
    "tokens that end in falling order": lambda rows: rows[4]["token_ends"].reverse(),
    "another number of tokens than ends": lambda rows: rows[4].update(tokens=65_535),
    "no token": lambda rows: rows[4].update(tokens=0, token_ends=[]),
    "more tokens than references have": lambda rows: rows[4].update(tokens=129, token_ends=[1] * 129),
    "a span that runs backwards": _occurrence(4, 0, start=161, end=160),
    "an empty span": _occurrence(4, 0, start=160, end=160),
    "a span beyond its document": _occurrence(4, 0, end=2**64 - 1),
    "another document's name": _occurrence(4, 0, document="second-0"),
    "a document's name of a megabyte": _occurrence(4, 0, document="x" * (1 << 20)),
    "occurrences out of order": lambda rows: rows[3]["occurrences"].reverse(),
    "rows out of order": lambda rows: rows.reverse(),
    "a text over the limit": lambda rows: _retitled(rows[4], text="x" * 65_536),
    "a text of a megabyte": lambda rows: _retitled(rows[4], text="chunk 3 of shard 1 " * 60_000),
}
for _name, _change in CHUNKS.items():
    add(
        f"chunks with {_name}",
        lambda forge, change=_change: _rows(forge, "chunks", change),  # type: ignore[misc]
        error="",
        verified=False,
        commands=_name == "a span that runs backwards",
    )

BEARABLE: Mapping[str, Change] = {
    "NUL and controls": lambda rows: _retitled(rows[4], text="\0\x1b[2J\x07\u202e\ufeff\U0010ffff"),
    "a title with line feeds": lambda rows: _retitled(rows[4], title="\n\n", text="\n"),
    "an empty text": lambda rows: _retitled(rows[4], title="Title", text=""),
    "a text of one bucket": lambda rows: _retitled(rows[4], text="a" * 65_000),
    "a text of many scripts": lambda rows: _retitled(rows[4], text="ก文字ｱ가\u0300\u200b" * 3_000),
}
for _name, _change in BEARABLE.items():
    add(
        f"chunks with {_name}",
        lambda forge, change=_change: _rows(forge, "chunks", change),  # type: ignore[misc]
        error="",
        verified=True,
        commands=True,
    )

for _name, _row in (("a document that is not there", 2), ("a document of row 2^32 - 1", 2**32 - 1)):
    add(
        f"chunks with {_name}",
        lambda forge, row=_row: _rows(  # type: ignore[misc]
            forge, "chunks", lambda rows: [place.update(row=row) for r in rows for place in r["occurrences"]]
        ),
        step="search",
        words="document row",
    )

add(
    "chunks without an occurrence",
    lambda forge: _rows(forge, "chunks", lambda rows: [row.update(occurrences=[]) for row in rows]),
    step="search",
    words="no occurrence",
    commands=True,
)

DOCUMENTS: Mapping[str, Change] = {
    "another count of chunks": lambda rows: rows[0].update(chunks=0),
    "2^32 - 1 chunks": lambda rows: rows[0].update(chunks=2**32 - 1),
    "metadata that is no JSON": lambda rows: rows[0].update(metadata="{"),
    "metadata that is no object": lambda rows: rows[0].update(metadata="[]"),
    "metadata with a key twice": lambda rows: rows[0].update(metadata='{"a":1,"a":2}'),
    "metadata with NaN": lambda rows: rows[0].update(metadata='{"a":NaN}'),
    "metadata that is nested too deep": lambda rows: rows[0].update(metadata='{"a":' * 50_000 + "}" * 50_000),
    "metadata with white space": lambda rows: rows[0].update(metadata='{"a": 1}'),
    "metadata of a long integer": lambda rows: rows[0].update(metadata='{"a":' + "9" * 5000 + "}"),
    "metadata over the limit": lambda rows: rows[0].update(metadata='{"a":"' + "x" * (1 << 20) + '"}'),
    "an id over the limit": lambda rows: rows[1].update(id="x" * 4097),
    "a source over the limit": lambda rows: rows[0].update(source="x" * 4097),
    "a title over the limit": lambda rows: rows[0].update(title="x" * 65_537),
}  # fmt: skip
for _name, _change in DOCUMENTS.items():
    add(
        f"documents with {_name}",
        lambda forge, change=_change: _rows(forge, "documents_file", change),  # type: ignore[misc]
        error="",
        verified=False,
    )

add(
    "documents with odd sources",
    lambda forge: _rows(
        forge,
        "documents_file",
        lambda rows: [row.update(source="../../\x1b[2J/etc/passwd", position=2**64 - 1) for row in rows],
    ),
    error="",
    verified=True,
    commands=True,
)


def _memory(forge: Forge, change: Callable[[np.ndarray, np.ndarray], object]) -> None:
    """Changes codes (rows, bytes) and positions (rows, heads, slots) in place."""

    def edit(rows: list[JSON]) -> None:
        block = np.array([np.frombuffer(row["memory"], np.uint8) for row in rows])
        change(block[:, :-POSITIONS], block[:, -POSITIONS:].reshape(len(block), -1, SLOTS))
        for row, changed in zip(rows, block, strict=True):
            row["memory"] = changed.tobytes()

    _rows(forge, "memories", edit)


MEMORIES: Mapping[str, Callable[[np.ndarray, np.ndarray], object]] = {
    "positions that descend": lambda codes, kept: kept[4, 1].__setitem__(slice(None), [2, 1, 0]),
    "a position twice": lambda codes, kept: kept[4, 1].__setitem__(slice(None), [1, 1, 2]),
    "a position beyond the tokens": lambda codes, kept: kept[4, 1].__setitem__(2, 254),
    "an unused slot before a used one": lambda codes, kept: kept[4, 1].__setitem__(slice(None), [255, 1, 2]),
    "codes in an unused slot": lambda codes, kept: codes[4].__setitem__(HEAD_CODES - 1, 1),
    "all codes 255": lambda codes, kept: codes.__setitem__(slice(None), 255),
}
for _name, _alter in MEMORIES.items():
    add(
        f"memories with {_name}",
        lambda forge, change=_alter: _memory(forge, change),  # type: ignore[misc]
        error="",
        verified=False,
    )


def _nothing_kept(codes: np.ndarray, kept: np.ndarray) -> None:
    codes[:] = 0
    kept[:] = 255


add(
    "memories of which no head kept a token",
    lambda forge: _memory(forge, _nothing_kept),
    # Such rows are cold, and the manifest says that none is.
    error="MismatchError",
    step="read",
    words="has no memory yet",
    verified=False,
)


def _vectors(forge: Forge, value: float) -> None:
    def edit(rows: list[JSON]) -> None:
        for row in rows[::2]:
            row["embedding"] = [np.float16(value)] * len(row["embedding"])

    _rows(forge, "embeddings", edit)


for _name, _value in (("NaN", np.nan), ("infinity", np.inf), ("minus infinity", -np.inf)):
    add(
        f"embeddings that are {_name}",
        lambda forge, value=_value: _vectors(forge, value),  # type: ignore[misc]
        step="exact search",
        words="not finite",
    )
add("embeddings that are all zero", lambda forge: _vectors(forge, 0.0), error="", verified=True)
