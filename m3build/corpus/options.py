"""How sources are read: one frozen dataclass that every reader gets.

The values are checked here, once, so that a reader never meets an unknown encoding or an absurd limit
half-way through a corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from m3build_formats.errors import UsageError

DEFAULT_MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
DEFAULT_RANGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of reading.

    ``text_field``, ``id_field``, ``title_field`` and ``keep_fields`` name fields of records (JSON keys,
    table columns); they say nothing about files that are one document. ``encoding`` holds where a file has
    no byte order mark (and, for HTML, names no encoding); ``encoding_errors`` "strict" rejects the record
    that cannot be decoded, "replace" puts U+FFFD. ``max_document_bytes`` bounds one document or record as
    stored in the decompressed file, and so the memory of a reader. ``range_bytes`` is the size aimed at
    when a file is cut into ranges. ``exclude`` are patterns of documents to leave out (see ``exclusion``).
    Raises UsageError for a value that cannot be meant.
    """

    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    keep_fields: tuple[str, ...] = ()
    encoding: str = "utf-8"
    encoding_errors: Literal["strict", "replace"] = "strict"
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES
    range_bytes: int = DEFAULT_RANGE_BYTES
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, value in (("--text-field", self.text_field), ("--id-field", self.id_field)):
            if value == "":
                raise UsageError(f"{option}: the name of a field cannot be empty")
        if "" in self.keep_fields or self.title_field == "":
            raise UsageError("--title-field, --keep-field: the name of a field cannot be empty")
        if "" in self.exclude:
            raise UsageError("--exclude: a pattern cannot be empty")
        if len(set(self.keep_fields)) != len(self.keep_fields):
            raise UsageError("--keep-field: a field is named twice")
        try:
            # str.encode refuses codecs that do not make text ("hex", "zip"); codecs.lookup would not, and
            # bytes.decode looks at nothing if there are no bytes.
            " ".encode(self.encoding)
        except (LookupError, ValueError) as error:
            raise UsageError(f"--encoding {self.encoding!r}: Python knows no such text encoding") from error
        if self.encoding_errors not in ("strict", "replace"):
            raise UsageError(f"--encoding-errors {self.encoding_errors!r}: expected strict or replace")
        if self.max_document_bytes < 1:
            raise UsageError(f"--max-document-bytes {self.max_document_bytes}: expected a number above 0")
        if self.range_bytes < 1:
            raise UsageError(f"range_bytes {self.range_bytes}: expected a number above 0")

    @property
    def fields(self) -> tuple[str, ...]:
        """Every field a reader needs, each once, in a fixed order: for readers that can leave out the
        others."""
        named = (self.text_field, self.id_field, self.title_field, *self.keep_fields)
        return tuple(dict.fromkeys(name for name in named if name is not None))
