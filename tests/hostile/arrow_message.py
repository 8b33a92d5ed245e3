"""Changes single fields of an encapsulated Arrow message, which no writer would write so.

A message is 0xFFFFFFFF, the length of its metadata, the metadata (a FlatBuffers table ``Message``) and the
body. Slots are those of Arrow's Message.fbs and Schema.fbs.
"""

from __future__ import annotations

import struct

VERSION, HEADER_TYPE, HEADER, BODY_LENGTH = range(4)
ROWS, NODES, BUFFERS, COMPRESSION = range(4)
ENDIANNESS = 0
_METADATA = 8


class ArrowMessage:
    """An encapsulated message as bytes to change in place."""

    def __init__(self, data: bytes) -> None:
        self.data = bytearray(data)
        self.message = _METADATA + self._get("<I", _METADATA)
        header = self.place(self.message, HEADER)
        self.header = header + self._get("<I", header)

    def place(self, table: int, slot: int) -> int:
        """Where a field of a table stands; KeyError where the table leaves it out."""
        vtable = table - self._get("<i", table)
        offset = self._get("<H", vtable + 4 + 2 * slot) if 4 + 2 * slot < self._get("<H", vtable) else 0
        if not offset:
            raise KeyError(slot)
        return table + offset

    def set(self, form: str, place: int, value: int) -> ArrowMessage:
        """Writes a number, in the form of `struct`, at a place."""
        struct.pack_into(form, self.data, place, value)
        return self

    def set_rows(self, rows: int) -> ArrowMessage:
        """Says another number of rows of the batch."""
        return self.set("<q", self.place(self.header, ROWS), rows)

    def set_body_length(self, length: int) -> ArrowMessage:
        """Says another length of the body."""
        return self.set("<q", self.place(self.message, BODY_LENGTH), length)

    def set_node(self, number: int, *, length: int | None = None, nulls: int | None = None) -> ArrowMessage:
        """Says other facts of a column or child, counted depth first."""
        return self._set_pair(NODES, number, length, nulls)

    def set_buffer(
        self, number: int, *, offset: int | None = None, length: int | None = None
    ) -> ArrowMessage:
        """Says another place of a buffer in the body."""
        return self._set_pair(BUFFERS, number, offset, length)

    def set_count(self, slot: int, count: int) -> ArrowMessage:
        """Says another number of nodes or buffers."""
        return self.set("<I", self._vector(slot), count)

    def count(self, slot: int) -> int:
        """Number of nodes or buffers."""
        return self._get("<I", self._vector(slot))

    def buffer(self, number: int) -> tuple[int, int]:
        """Start in ``data`` and length of a buffer."""
        pair = self._vector(BUFFERS) + 4 + 16 * number
        body = _METADATA + self._get("<i", 4)
        return body + self._get("<q", pair), self._get("<q", pair + 8)

    def to_big_endian(self) -> ArrowMessage:
        """Makes a schema message claim big-endian data: its vtable gets a place that holds a 1."""
        vtable = self.header - self._get("<i", self.header)
        for place in range(self.header + 4, len(self.data) - 2, 2):
            if self._get("<h", place) == 1:
                return self.set("<H", vtable + 4 + 2 * ENDIANNESS, place - self.header)
        raise ValueError("no place in the message holds a 1")

    def to_bytes(self) -> bytes:
        """The message as it now is."""
        return bytes(self.data)

    def _vector(self, slot: int) -> int:
        place = self.place(self.header, slot)
        return place + self._get("<I", place)

    def _set_pair(self, slot: int, number: int, first: int | None, second: int | None) -> ArrowMessage:
        pair = self._vector(slot) + 4 + 16 * number
        if first is not None:
            self.set("<q", pair, first)
        if second is not None:
            self.set("<q", pair + 8, second)
        return self

    def _get(self, form: str, place: int) -> int:
        value: int = struct.unpack_from(form, self.data, place)[0]
        return value
