"""Arrow files that are not what format 1 makes them: schemas, messages, buffers, footers."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa
from arrow_message import BUFFERS, HEADER_TYPE, NODES, VERSION, ArrowMessage
from case import add, case, each
from forge import JSON, Forge, arrow_table

Spoil = Callable[[Any], Any]
STEPS = {
    "chunks": "chunks",
    "documents_file": "documents",
    "memories": "memories",
    "embeddings": "embeddings",
}


class Owned:
    """What unpickling it would do is to import a module that the audit hook would see."""

    def __reduce__(self) -> tuple[Any, ...]:
        return __import__, ("antigravity",)


def _rewritten(forge: Forge, kind: str, change: Spoil, options: Any = None) -> JSON:
    """The table of a shard, changed as pyarrow table and written anew by pyarrow."""
    entry: JSON = forge.shard()[kind]
    forge.put_rows(entry, change(forge.table(entry).read()), options=options)
    return entry


def _typed(table: Any, name: str, kind: Any) -> Any:
    return table.set_column(
        table.schema.get_field_index(name), pa.field(name, kind, nullable=False), table[name].cast(kind)
    )


def _field(table: Any, name: str, change: Callable[[Any], Any]) -> Any:
    place = table.schema.get_field_index(name)
    return table.cast(table.schema.set(place, change(table.schema.field(name))))


def _extension(name: bytes, data: bytes) -> Spoil:
    metadata = {b"ARROW:extension:name": name, b"ARROW:extension:metadata": data}
    return lambda table: _field(table, "text", lambda field: field.with_metadata(metadata))


SCHEMAS: Mapping[str, tuple[str, Spoil]] = {
    "an extra column": ("chunks", lambda t: t.append_column(pa.field("x", pa.uint16(), False), t["tokens"])),
    "a column less": ("chunks", lambda t: t.drop_columns("title")),
    "columns in another order": ("documents_file", lambda t: t.select(t.schema.names[::-1])),
    "a column twice": ("chunks", lambda t: t.append_column(t.schema.field("text"), t["text"])),
    "another name": ("embeddings", lambda t: t.rename_columns(["vectors"])),
    "a nullable column": ("chunks", lambda t: _field(t, "text", lambda field: field.with_nullable(True))),
    "metadata of the schema": ("chunks", lambda t: t.replace_schema_metadata({"pandas": "{}"})),
    "metadata of a field": ("chunks", lambda t: _field(t, "text", lambda f: f.with_metadata({"a": "b"}))),
    "large strings": ("chunks", lambda t: _typed(t, "text", pa.large_string())),
    "string views": ("chunks", lambda t: _typed(t, "text", pa.string_view())),
    "binary for text": ("chunks", lambda t: _typed(t, "text", pa.binary())),
    "wider integers": ("chunks", lambda t: _typed(t, "tokens", pa.uint32())),
    "a dictionary": ("documents_file", lambda t: _typed(t, "source", pa.dictionary(pa.int8(), pa.string()))),
    "wider rows of memories": ("memories", lambda t: _typed(t, "memory", pa.large_binary())),
    "a list of another size": (
        "embeddings",
        lambda t: pa.table({"embedding": pa.array([[0.0] * 8] * len(t), pa.list_(pa.float16(), 8))}),
    ),
    "no columns": ("memories", lambda t: t.select([])),
    "an extension type": ("chunks", _extension(b"arrow.json", b"")),
    "an unknown extension type": ("chunks", _extension(b"\xff\xfe" * 1000, b"x" * 100_000)),
    "a pickled extension type": ("chunks", _extension(b"arrow.py_extension_type", pickle.dumps(Owned()))),
}  # fmt: skip


@each(SCHEMAS, step="open", words="other columns|schema does not parse|too few")
def a_table_with(forge: Forge, change: tuple[str, Spoil]) -> None:
    """Any schema but the one that format 1 gives."""
    _rewritten(forge, *change)


def _head(forge: Forge, change: Callable[[bytes], bytes]) -> None:
    entry = forge.shard()["chunks"]
    table = forge.table(entry)
    table.head = change(table.head)
    forge.put_table(entry, table)


@each(
    {
        "another magic": lambda head: b"ARROW2" + head[6:],
        "no schema": lambda head: head[:8] + b"\xff\xff\xff\xff\0\0\0\0",
        "garbage": lambda head: head[:16] + b"\xaa" * (len(head) - 16),
        "a length below zero": lambda head: head[:12] + b"\x80\xff\xff\xff" + head[16:],
        "a length of 2 GB": lambda head: head[:12] + b"\xff\xff\xff\x7f" + head[16:],
        "big-endian data": lambda head: head[:8] + ArrowMessage(head[8:]).to_big_endian().to_bytes(),
    },
    step="open",
    words="not an Arrow file|schema does not parse|other columns",
)
def a_table_whose_head_has(forge: Forge, change: Callable[[bytes], bytes]) -> None:
    """The head is checked against its digest, then parsed with care."""
    _head(forge, change)


@case(error="", same=True, verified=True)
def a_table_whose_head_ends_at_an_odd_place(forge: Forge) -> None:
    """The batches then lie at odd addresses, which reading must bear."""
    for kind in ("chunks", "documents_file", "memories", "embeddings"):
        entry = forge.shard()[kind]
        table = forge.table(entry)
        table.head += b"\0"
        forge.put_table(entry, table)


@each({"lz4": "lz4", "zstd": "zstd"}, step="chunks", words="compressed")
def buffers_compressed_with(forge: Forge, codec: Any) -> None:
    """The smallest of bombs."""
    _rewritten(forge, "chunks", lambda table: table, pa.ipc.IpcWriteOptions(compression=codec))


def _bomb(forge: Forge, kind: str) -> None:
    """Each buffer says that it decompresses to 2^40 bytes."""
    entry = _rewritten(forge, kind, lambda table: table, pa.ipc.IpcWriteOptions(compression="zstd"))
    table = forge.table(entry)
    table.tail += bytes(8192)  # enough bytes for its rows
    message = ArrowMessage(table.batches[0])
    for number in range(message.count(BUFFERS)):
        start, length = message.buffer(number)
        if length >= 8:
            message.set("<q", start, 1 << 40)
    table.batches[0] = message.to_bytes()
    forge.put_table(entry, table)


for _kind, _step in STEPS.items():
    add(
        f"a compressed bomb in {_step}",
        lambda forge, kind=_kind: _bomb(forge, kind),  # type: ignore[misc]
        step=_step,
        words="compressed",
    )


@case(error="CorruptError", step="documents", words="compressed")
def compressed_documents_of_a_shard_of_few_chunks(forge: Forge) -> None:
    """So few that ``verify`` gets through all of them, and then compares counts with documents it has not."""
    entry = forge.shard(1)["documents_file"]
    forge.put_rows(entry, forge.table(entry).read(), options=pa.ipc.IpcWriteOptions(compression="lz4"))


def _poked(kind: str, change: Callable[[ArrowMessage], object]) -> Callable[[Forge], None]:
    def spoil(forge: Forge) -> None:
        entry = forge.shard()[kind]
        table = forge.table(entry)
        message = ArrowMessage(table.batches[0])
        change(message)
        table.batches[0] = message.to_bytes()
        forge.put_table(entry, table)

    return spoil


def _last_offset(message: ArrowMessage, number: int, value: int) -> None:
    start, length = message.buffer(number)
    message.set("<i", start + length - 4, value)


def _first_offset(message: ArrowMessage, number: int, value: int) -> None:
    message.set("<i", message.buffer(number)[0], value)


# Buffers of a chunks batch: id 0 validity, 1 bytes; text 2, 3 offsets, 4 bytes; title 5, 6, 7; tokens 8, 9;
# token_ends 10, 11 offsets, items 12, 13; occurrences 14, 15 offsets, struct 16, document 17, 18, 19, row 20,
# 21, start 22, 23, end 24, 25. Nodes: id 0, text 1, title 2, tokens 3, token_ends 4, items 5, occurrences 6,
# struct 7, document 8, row 9, start 10, end 11.
MESSAGES: Mapping[str, Callable[[ArrowMessage], object]] = {
    "2^62 rows": lambda m: m.set_rows(1 << 62),
    "rows below zero": lambda m: m.set_rows(-1),
    "a row more": lambda m: m.set_rows(41),
    "a row less": lambda m: m.set_rows(39),
    "no rows": lambda m: m.set_rows(0),
    "a column of 2^62": lambda m: m.set_node(1, length=1 << 62),
    "a column below zero": lambda m: m.set_node(1, length=-1),
    "a shorter column": lambda m: m.set_node(1, length=39),
    "2^62 nulls": lambda m: m.set_node(1, nulls=1 << 62),
    "a null without a bitmap": lambda m: m.set_node(1, nulls=1),
    "2^62 items": lambda m: m.set_node(5, length=1 << 62),
    "fewer items than offsets": lambda m: m.set_node(5, length=1),
    "a struct shorter than its list": lambda m: m.set_node(7, length=1),
    "a struct's field shorter than it": lambda m: m.set_node(9, length=1),
    "a buffer beyond the body": lambda m: m.set_buffer(4, offset=1 << 40),
    "a buffer before the body": lambda m: m.set_buffer(4, offset=-8),
    "a buffer of 2^62": lambda m: m.set_buffer(4, length=1 << 62),
    "a buffer below zero": lambda m: m.set_buffer(4, length=-8),
    "an empty buffer of ids": lambda m: m.set_buffer(1, length=0),
    "an empty buffer of offsets": lambda m: m.set_buffer(3, length=0),
    "a short buffer of integers": lambda m: m.set_buffer(9, length=8),
    "no nodes": lambda m: m.set_count(NODES, 0),
    "a million nodes": lambda m: m.set_count(NODES, 1_000_000),
    "a buffer less": lambda m: m.set_count(BUFFERS, 25),
    "2^31 buffers": lambda m: m.set_count(BUFFERS, 1 << 31),
    "a body of 2^62": lambda m: m.set_body_length(1 << 62),
    "a body below zero": lambda m: m.set_body_length(-1),
    "an empty body": lambda m: m.set_body_length(0),
    "a schema's type": lambda m: m.set("<B", m.place(m.message, HEADER_TYPE), 1),
    "a dictionary's type": lambda m: m.set("<B", m.place(m.message, HEADER_TYPE), 2),
    "a tensor's type": lambda m: m.set("<B", m.place(m.message, HEADER_TYPE), 4),
    "no type": lambda m: m.set("<B", m.place(m.message, HEADER_TYPE), 99),
    "a future version": lambda m: m.set("<h", m.place(m.message, VERSION), 77),
    "metadata of 2 GB": lambda m: m.set("<i", 4, (1 << 31) - 1),
    "metadata below zero": lambda m: m.set("<i", 4, -8),
    "text offsets that run backwards": lambda m: m.set("<i", m.buffer(3)[0] + 8, 1 << 20),
    "a text offset below zero": lambda m: _first_offset(m, 3, -1000),
    "a text offset beyond the text": lambda m: _last_offset(m, 3, 1 << 30),
    "a list offset beyond its items": lambda m: _last_offset(m, 11, 1 << 30),
    "list offsets that run backwards": lambda m: m.set("<i", m.buffer(11)[0] + 8, 1 << 20),
    "an occurrence offset below zero": lambda m: _first_offset(m, 15, -7),
    "a document name beyond the names": lambda m: _last_offset(m, 18, 1 << 30),
    "text that is not UTF-8": lambda m: m.set("<B", m.buffer(4)[0] + 3, 0xFF),
    "a title that is not UTF-8": lambda m: m.set("<B", m.buffer(7)[0], 0x80),
    "a document name cut in a character": lambda m: m.set("<B", m.buffer(19)[0] + 2, 0xE6),
}


@each(MESSAGES, step="chunks", words="does not parse|rows, expected|nulls|message")
def a_batch_with(forge: Forge, change: Callable[[ArrowMessage], object]) -> None:
    """Fields that no writer would write; the digest is right."""
    _poked("chunks", change)(forge)


SHORT: Mapping[str, Callable[[ArrowMessage], object]] = {
    "documents_file": lambda m: m.set_node(2, length=1),
    "memories": lambda m: m.set_buffer(1, length=8),
    "embeddings": lambda m: m.set_buffer(2, length=8),
}
for _kind, _change in SHORT.items():
    add(
        f"a short buffer of {STEPS[_kind]}", _poked(_kind, _change), step=STEPS[_kind], words="does not parse"
    )


def _nulled(rows: list[JSON], path: tuple[Any, ...]) -> list[JSON]:
    place: Any = rows
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = None
    return rows


def _with_null(table: Any, path: tuple[Any, ...]) -> Any:
    """The same columns with a null, which their schema does not allow."""
    rows = _nulled(table.to_pylist(), path)

    def nullable(kind: Any) -> Any:
        if pa.types.is_fixed_size_list(kind):
            return pa.list_(pa.field("item", nullable(kind.value_type)), kind.list_size)
        if pa.types.is_list(kind):
            return pa.list_(pa.field("item", nullable(kind.value_type)))
        if pa.types.is_struct(kind):
            return pa.struct([pa.field(field.name, nullable(field.type)) for field in kind])
        return kind

    loose = pa.schema([pa.field(field.name, nullable(field.type)) for field in table.schema])
    return pa.Table.from_pylist(rows, loose)


def _null_in(forge: Forge, kind: str, path: tuple[Any, ...]) -> None:
    """A null in a table whose head says that there are none."""
    entry = forge.shard()[kind]
    table = forge.table(entry)
    table.batches = arrow_table(_with_null(table.read(), path), table.each).batches
    forge.put_table(entry, table)


NULLS: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "text": ("chunks", (3, "text")),
    "token end": ("chunks", (3, "token_ends", 1)),
    "list of occurrences": ("chunks", (3, "occurrences")),
    "occurrence": ("chunks", (3, "occurrences", 0)),
    "field of an occurrence": ("chunks", (3, "occurrences", 0, "start")),
    "dimension of a vector": ("embeddings", (2, "embedding", 5)),
    "vector": ("embeddings", (2, "embedding")),
    "document id": ("documents_file", (1, "id")),
    "memory": ("memories", (1, "memory")),
}
for _name, (_kind, _path) in NULLS.items():
    add(
        f"a null {_name}",
        lambda forge, kind=_kind, path=_path: _null_in(forge, kind, path),  # type: ignore[misc]
        step=STEPS[_kind],
        words="nulls|does not parse",
    )


@each(
    {
        "nothing but the end": b"\xff\xff\xff\xff\0\0\0\0",
        "zeros": bytes(64),
        "half a message": b"\xff\xff\xff\xff\x80\0\0\0" + bytes(10),
        "one byte": b"\xff",
    },
    step="chunks",
    words="does not parse|message",
)
def a_batch_that_is(forge: Forge, data: bytes) -> None:
    """No message at all."""
    entry = forge.shard()["chunks"]
    table = forge.table(entry)
    table.batches[0] = data
    forge.put_table(entry, table)


@case(step="chunks", words="schema message")
def a_schema_in_place_of_a_batch(forge: Forge) -> None:
    """A whole message of another kind."""
    entry = forge.shard()["chunks"]
    table = forge.table(entry)
    table.batches[0] = table.head[8:]
    forge.put_table(entry, table)


@case(error="", same=True, verified=False)
def bytes_after_a_message_in_its_batch(forge: Forge) -> None:
    """They are hashed with it and not looked at; only the footer, now in another place, is missed."""
    entry = forge.shard()["memories"]
    table = forge.table(entry)
    table.tail = b""
    table.batches[0] += hashlib.sha256(b"x").digest() * 100
    forge.put_table(entry, table)


@each(
    {
        "no footer": lambda table: b"",
        "garbage": lambda table: b"\xaa" * 300 + b"\x20\1\0\0ARROW1",
        "a footer of 2 GB": lambda table: table.tail[:-10] + b"\xff\xff\xff\x7fARROW1",
        "a footer below zero": lambda table: table.tail[:-10] + b"\xff\xff\xff\xffARROW1",
        "another file's footer": lambda table: arrow_table(table.read(), 7).tail,
    },
    error="",
    same=True,
    verified=False,
)
def a_table_that_ends_in(forge: Forge, tail: Callable[[Any], bytes]) -> None:
    """Readers of banks do not use the footer; ``verify`` looks at it for the readers that do."""
    for kind in ("chunks", "embeddings"):
        entry = forge.shard()[kind]
        table = forge.table(entry)
        table.tail = tail(table)
        forge.put_table(entry, table)
