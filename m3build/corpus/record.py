"""From the fields of a record to a Document: the same rules for JSON, CSV, Parquet and Arrow.

A record needs its text field, a string (the empty string is an empty document; null, a missing field or
another type is a reject), and, if ``--id-field`` is given, an id (a string or an integer). A missing title
is "", a missing kept field is left out. Kept values are made fit for JSON.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

from m3build.corpus.encoding import has_surrogates, replace_surrogates
from m3build.corpus.identity import content_hash
from m3build.corpus.options import SourceOptions
from m3build.corpus.source import SourceFile
from m3build.records import Document, Reject

MAX_METADATA_DEPTH = 32
_NO_METADATA: Mapping[str, object] = {}


class _BadField(ValueError):
    pass


def document_of_record(
    fields: Mapping[str, object], file: SourceFile, position: int, where: str, options: SourceOptions
) -> Document | Reject:
    """The document that a record holds, or the reason why it holds none. ``where`` is the place that a
    reject names."""
    try:
        text = _text(fields, options)
        title = _title(fields, options.title_field)
        metadata = _kept(fields, options)
        if options.encoding_errors == "replace":
            text, title = _replaced(text), _replaced(title)
        hashed = content_hash(text, title, metadata)
        if options.id_field is None:
            identity = f"{file.name}#{hashed}"
        else:
            identity = _id(fields, options.id_field)
            identity.encode()
    except _BadField as error:
        return Reject(file.name, where, str(error))
    except UnicodeEncodeError:
        return Reject(
            file.name,
            where,
            f"a lone surrogate, or bytes that are not {options.encoding}, in the text or a kept field;"
            " give --encoding or --encoding-errors replace",
        )
    return Document(identity, file.name, position, text, title, metadata)


def _text(fields: Mapping[str, object], options: SourceOptions) -> str:
    name = options.text_field
    value = fields.get(name)
    if isinstance(value, str):
        return value
    if name not in fields:
        raise _BadField(f"no text field {name!r}; name it with --text-field")
    raise _BadField(f"the text field {name!r} is {_kind(value)}, not a string")


def _title(fields: Mapping[str, object], name: str | None) -> str:
    value = fields.get(name) if name is not None else None
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise _BadField(f"the title field {name!r} is {_kind(value)}, not a string")


def _id(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name not in fields:
        raise _BadField(f"no id field {name!r}")
    raise _BadField(f"the id field {name!r} is {_kind(value)}, not a string or an integer")


def _kept(fields: Mapping[str, object], options: SourceOptions) -> Mapping[str, object]:
    if not options.keep_fields:
        return _NO_METADATA
    replacing = options.encoding_errors == "replace"
    return {name: json_value(fields[name], replacing) for name in options.keep_fields if name in fields}


def json_value(value: object, replacing: bool = False, depth: int = 0) -> object:
    """``value`` as JSON can write it: times in ISO 8601, decimals as strings, bytes as UTF-8 or
    hexadecimal, NaN and infinities as null.

    Raises ValueError for nesting beyond MAX_METADATA_DEPTH and for types with no such form.
    """
    if depth > MAX_METADATA_DEPTH:
        raise _BadField(f"a kept field is nested more than {MAX_METADATA_DEPTH} levels deep")
    match value:
        case str():
            return _replaced(value) if replacing else value
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case list() | tuple():
            return [json_value(item, replacing, depth + 1) for item in value]
        case dict():
            return {str(key): json_value(item, replacing, depth + 1) for key, item in value.items()}
        case datetime() | date() | time():
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case Decimal() | UUID():
            return str(value)
        case bytes():
            try:
                return value.decode()
            except UnicodeDecodeError:
                return value.hex()
    raise _BadField(f"a kept field is {_kind(value)}, which JSON cannot hold")


def _replaced(text: str) -> str:
    return replace_surrogates(text) if has_surrogates(text) else text


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case "":
            return "empty"
        case dict():
            return "an object"
        case list():
            return "a list"
    return f"of type {type(value).__name__}"
