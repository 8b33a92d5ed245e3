"""Messages between a build and its workers: pickled objects after their length in eight bytes, over pipes.

Pickle is safe here as nowhere else: both ends are processes of one build, and nothing of it reaches a disk.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator
from typing import Any

_LENGTH = struct.Struct("<Q")


def packed(message: object) -> bytes:
    """A message as a frame."""
    body = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Takes bytes as they come and gives the messages that are whole: nobody ever waits for the rest of a
    message from a process that may be gone."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> Iterator[Any]:
        """The messages that ``data`` completes."""
        self._bytes += data
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                return
            body = memoryview(self._bytes)[_LENGTH.size : end].tobytes()
            message = pickle.loads(body)  # noqa: S301 - from a process of this very build
            del self._bytes[:end]
            yield message
