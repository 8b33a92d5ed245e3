"""Rows of Arrow record batches as documents: what Parquet and Arrow files have in common.

Values are taken out one at a time, strings as buffers whose size is looked at first, so that a batch of
long strings is never held twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from m3build.corpus.compression import open_bytes
from m3build.corpus.encoding import undecodable
from m3build.corpus.options import SourceOptions
from m3build.corpus.record import document_of_record
from m3build.corpus.source import WHOLE_FILE, BadInput, SourceFile
from m3build.records import Document, Reject

if TYPE_CHECKING:
    import pyarrow as pa

# A compressed table is unpacked to disk, since it must be entered at its end. These bound what a bomb can
# fill.
UNPACKED_RATIO = 200
UNPACKED_BYTES = 256 * 1024 * 1024
_COPY_BYTES = 1024 * 1024


def open_table(file: SourceFile) -> BinaryIO:
    """The file, opened for reading at any place; a compressed one as an unlinked temporary copy. Raises
    BadInput for one that grows too much."""
    if file.compression is None:
        return open(file.path, "rb")
    limit = max(UNPACKED_BYTES, UNPACKED_RATIO * file.bytes)
    copy = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        with open_bytes(file) as stream:
            while piece := stream.read(_COPY_BYTES):
                copy.write(piece)
                if copy.tell() > limit:
                    raise BadInput(
                        WHOLE_FILE,
                        f"decompresses to more than {limit:,} bytes; decompress it yourself if that is right",
                    )
        copy.seek(0)
    except BaseException:
        copy.close()
        raise
    return copy


def check_columns(schema: pa.Schema, options: SourceOptions) -> list[str]:
    """The columns to read, in order. Raises BadInput if the text or id column is missing or of a type that
    can hold none."""
    names: list[str] = list(schema.names)
    shown = ", ".join(repr(name[:40]) for name in names[:10]) or "none"
    for kind, name in (("text", options.text_field), ("id", options.id_field)):
        if name is not None and name not in names:
            raise BadInput(WHOLE_FILE, f"no {kind} column {name!r}; the columns are {shown}")
        if name is not None and names.count(name) > 1:
            raise BadInput(WHOLE_FILE, f"more than one column {name!r}")
    wanted = schema.field(options.text_field).type
    if not is_text(wanted):
        raise BadInput(WHOLE_FILE, f"the text column {options.text_field!r} holds {wanted}, not strings")
    return [name for name in options.fields if names.count(name) == 1]


def is_text(kind: pa.DataType) -> bool:
    """Whether values of an Arrow type can be read as strings."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_string_view(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_binary_view(kind)
        or types.is_null(kind)
    )


def rows(
    batch: pa.RecordBatch, first: int, file: SourceFile, options: SourceOptions
) -> Iterator[Document | Reject]:
    """The documents of a batch whose first row is row ``first`` of the file."""
    columns = {name: batch.column(name) for name in batch.schema.names}
    texts = {name for name, column in columns.items() if is_text(column.type)}
    for index in range(batch.num_rows):
        where = f"row {first + index}"
        fields: dict[str, object] = {}
        try:
            for name, column in columns.items():
                scalar = column[index]
                fields[name] = _string(scalar, options) if name in texts else scalar.as_py()
        except UnicodeDecodeError as error:
            yield Reject(file.name, where, undecodable(error.encoding, error))
        except BadInput as problem:
            yield Reject(file.name, where, problem.reason)
        except (ValueError, OverflowError, NotImplementedError) as error:
            # pyarrow raises the last for types that have no Python value.
            yield Reject(file.name, where, f"a value that cannot be read: {first_line(error)}")
        else:
            yield document_of_record(fields, file, first + index, where, options)


def _string(scalar: Any, options: SourceOptions) -> str | None:
    if hasattr(scalar, "dictionary"):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    buffer = scalar.as_buffer()
    if buffer.size > options.max_document_bytes:
        raise BadInput(
            "", f"a record of more than {options.max_document_bytes:,} bytes; raise --max-document-bytes"
        )
    # Arrow strings are UTF-8, and binary columns of text are taken for --encoding.
    is_utf8 = "binary" not in str(scalar.type)
    return str(buffer.to_pybytes(), "utf-8" if is_utf8 else options.encoding, options.encoding_errors)


def first_line(error: Exception) -> str:
    """The first line of a library's message, for a reason."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
