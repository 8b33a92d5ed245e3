"""The readers of sources that are fuzzed, one target a format, and one for compressed files.

An input is a byte of options and the bytes of a file. Whatever these are, a reader gives documents and
rejects and raises nothing; what it gives can be stored; ranges of the file in a row give what the whole file
does; and nothing is lost or made up: where another library can count the records of the file, there are no
more documents, and with the rejects no fewer.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.feather
import pyarrow.ipc
import pyarrow.parquet
import zstandard

from m3build.corpus import SourceFile, SourceOptions, read_range, split
from m3build.corpus.registry import formats
from m3build.corpus.source import SourceRange
from m3build.records import Document, Reject

FORMATS = ("text", "markdown", "html", "rst", "jsonl", "json", "csv", "tsv", "parquet", "arrow")
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
ENCODINGS = ("utf-8", "utf-8", "utf-8", "latin-1", "utf-16", "gb18030", "shift_jis", "utf-8")
TABLES = ("parquet", "arrow")
ONE_DOCUMENT = ("text", "markdown", "html", "rst")
SMALL_DOCUMENT, SMALL_RANGE = 300, 64

Records = Sequence[Document | Reject]


@cache
def _place() -> tempfile.TemporaryDirectory[str]:
    fast = Path("/dev/shm")
    return tempfile.TemporaryDirectory(dir=fast if fast.is_dir() else None)


def read_source(name: str, data: bytes) -> bool:
    """A file of a format. The byte of options says encoding, strict or replace, and a low limit for a
    document."""
    if not data:
        return False
    options = _options(data[0])
    records, parts = _read(name, None, data[1:], options)
    _check_storable(records)
    rejected = any(isinstance(record, Reject) for record in records)
    documents = [record for record in records if isinstance(record, Document)]
    if name == "jsonl" or not rejected:
        if documents != [record for record in parts if isinstance(record, Document)]:
            raise AssertionError("the ranges of a file hold other documents than the file")
        if len(records) != len(parts):
            raise AssertionError("the ranges of a file hold more or fewer rejects than the file")
    # What is wrong with a file beside its records is a reject too.
    # One in a table may stand for all that follows.
    count = None if rejected and name in TABLES else _records_in(name, data[1:], options)
    if count is not None and not len(documents) <= count <= len(records):
        rejects = len(records) - len(documents)
        raise AssertionError(f"{count} records became {len(documents)} documents and {rejects} rejects")
    return not rejected


def read_compressed(data: bytes) -> bool:
    """JSON lines in a compressed file; the first byte says by what."""
    if not data:
        return False
    records, _ = _read(
        "jsonl",
        COMPRESSIONS[data[0] % len(COMPRESSIONS)],
        data[1:],
        SourceOptions(max_document_bytes=1 << 16),
    )
    _check_storable(records)
    return all(isinstance(record, Document) for record in records)


def _options(byte: int) -> SourceOptions:
    return SourceOptions(
        title_field="title",
        keep_fields=("kept",),
        encoding=ENCODINGS[byte & 7],
        encoding_errors="replace" if byte & 8 else "strict",
        max_document_bytes=SMALL_DOCUMENT if byte & 16 else 1 << 20,
        range_bytes=SMALL_RANGE,
    )


def _read(name: str, compression: str | None, data: bytes, options: SourceOptions) -> tuple[Records, Records]:
    path = Path(_place().name, "file")
    path.write_bytes(data)
    file = SourceFile(str(path), f"file.{name}", len(data), name, compression)
    whole = list(read_range(SourceRange(file), options))
    return whole, [record for part in split(file, options) for record in read_range(part, options)]


def _check_storable(records: Records) -> None:
    for record in records:
        if isinstance(record, Document):
            for text in (record.id, record.source, record.title, record.text):
                text.encode("utf-8")
            if any(not 0 <= heading.start <= len(record.text) for heading in record.headings):
                raise AssertionError("a heading outside of its document")
        else:
            f"{record.where} {record.reason}".encode()
            if len(record.reason) > 2000:
                raise AssertionError("a reason in too many words")


def _records_in(name: str, data: bytes, options: SourceOptions) -> int | None:
    """How many records a file holds by another library's account; None where that has none."""
    if name in ONE_DOCUMENT:
        return 1
    if name in TABLES:
        try:
            table = _table(name, data)
        except (pa.ArrowException, OSError, ValueError, NotImplementedError):
            return None
        return table.num_rows if "text" in table.column_names else None
    if options.encoding != "utf-8" or data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return None
    if name == "jsonl":
        return sum(bool(line.decode("utf-8", "replace").strip()) for line in data.split(b"\n"))
    try:
        text = data.decode("utf-8")
        if name == "json":
            value = json.loads(text)
            return len(value) if isinstance(value, list) else 1
        separator = "," if name == "csv" else "\t"
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True))
    except (ValueError, RecursionError, csv.Error):
        return None
    rows = [row for row in rows if row]
    return len(rows) - 1 if rows and rows[0].count("text") == 1 else None


def _table(name: str, data: bytes) -> pa.Table:
    if name == "parquet":
        return pa.parquet.read_table(io.BytesIO(data), use_threads=False)
    try:
        return pa.ipc.open_file(data).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(data).read_all()


_RECORDS = [
    {"id": "a", "title": "One", "text": "The first text.\nIts second line.", "kept": 1},
    {"id": "b", "title": "", "text": "Zweiter Text, “quoted”.", "kept": None},
    {"id": "c", "title": "三", "text": "第三段文字。", "kept": 2},
]
_TEXTS = {
    "text": ["Plain text.\n\nA paragraph, naïve and 漢字.\n", "x\r\ny\rz\x0b\x0c\u2028end"],
    "markdown": [
        "# Title\n\nText with `code`.\n\n## Below\n\n```sh\n# no heading\n```\n",
        "A\n===\n\nB\n---\n",
    ],
    "html": [
        "<html><head><title>T</title><meta charset='utf-8'><style>p{}</style></head><body><h1>Head</h1>"
        "<p>One &amp; two&nbsp;&#x4e2d;</p><pre>a\n b</pre><script>no()</script><ul><li>x<li>y</ul></body>",
        "<!doctype html><table><tr><td>a<td>b</table><!-- c --><p>z<br>w",
    ],
    "rst": ["Title\n=====\n\nText::\n\n    code\n\n.. note:: this\n\nBelow\n-----\n\nMore *text*.\n"],
    "jsonl": [
        "".join(json.dumps(record) + "\n" for record in _RECORDS),
        '{"text": "\\u00e9"}\n\n[1]\n{"text": 3}',
    ],
    "json": [json.dumps(_RECORDS), json.dumps({"text": "One object."}), ' [ {"text":"a"} , {"text":"b"} ] '],
    "csv": ['id,title,text,kept\na,One,"first, ""text""\nline",1\nb,,second,\n', "text\r\nx\r\ny\r\n"],
    "tsv": ["id\ttext\na\tfirst\nb\tsecond text\n"],
}


def source_seeds(name: str) -> list[bytes]:
    """Sound files of a format with all kinds of options."""
    if name == "compressed":
        text = _TEXTS["jsonl"][0].encode() * 40
        packed = (gzip.compress(text, mtime=0), bz2.compress(text), lzma.compress(text))
        return [bytes([i]) + data for i, data in enumerate((*packed, zstandard.compress(text)))]
    if name in _TEXTS:
        return [
            bytes([byte]) + text.encode(ENCODINGS[byte & 7], "replace")
            for text in _TEXTS[name]
            for byte in (0, 4, 8 + 3, 16)
        ]
    table = pa.Table.from_pylist(_RECORDS * 20)
    files = []
    for compression in ("none", "zstd"):
        sink = io.BytesIO()
        if name == "parquet":
            pa.parquet.write_table(table, sink, row_group_size=25, compression=compression)
        else:
            pa.feather.write_feather(
                table,
                sink,
                compression="uncompressed" if compression == "none" else compression,
                chunksize=25,
            )
        files.append(sink.getvalue())
    if name == "arrow":
        sink = io.BytesIO()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, 25)
        files.append(sink.getvalue())
    return [bytes([byte]) + data for data in files for byte in (0, 16)]


def read_any_source(data: bytes) -> bool:
    """All of them as one target: the first byte says which."""
    if not data:
        return False
    number = data[0] % (len(FORMATS) + 1)
    return read_compressed(data[1:]) if number == len(FORMATS) else read_source(FORMATS[number], data[1:])


def any_source_seeds() -> list[bytes]:
    """Sound files of every format."""
    names = (*FORMATS, "compressed")
    return [bytes([number]) + seed for number, name in enumerate(names) for seed in source_seeds(name)]


def source_targets() -> dict[str, tuple[Callable[[bytes], bool], Callable[[], list[bytes]]]]:
    """What to run and to start from, by name. Every format there is must be among them."""
    if set(formats()) != set(FORMATS):
        raise AssertionError(f"formats that are not fuzzed, or are gone: {set(formats()) ^ set(FORMATS)}")
    found: dict[str, tuple[Callable[[bytes], bool], Callable[[], list[bytes]]]]
    found = {name: (partial(read_source, name), partial(source_seeds, name)) for name in FORMATS}
    found["compressed"] = (read_compressed, partial(source_seeds, "compressed"))
    return {**found, "sources": (read_any_source, any_source_seeds)}
