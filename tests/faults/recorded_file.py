"""A file object whose reads can be watched, shortened, and made to fail."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Protocol


class Watcher(Protocol):
    """What a file tells of its reads: a `Recorder`."""

    def read_call(self, name: str, descriptor: int, action: Callable[[], Any]) -> Any: ...
    def shortened(self, size: int) -> int: ...
    def forget(self, descriptor: int) -> None: ...


class RecordedFile(io.FileIO):
    """Takes over a descriptor and closes it."""

    def __init__(self, recorder: Watcher, descriptor: int) -> None:
        super().__init__(descriptor, "rb")
        self._recorder = recorder

    def readinto(self, buffer: Any, /) -> int | None:
        view = memoryview(buffer).cast("B")
        part = view[: self._recorder.shortened(view.nbytes)]
        result: int | None = self._recorder.read_call(
            "readinto", self.fileno(), lambda: io.FileIO.readinto(self, part)
        )
        return result

    def readall(self) -> bytes:
        result: bytes = self._recorder.read_call("readall", self.fileno(), lambda: io.FileIO.readall(self))
        return result

    def close(self) -> None:
        if not self.closed:
            self._recorder.forget(self.fileno())
        super().close()
