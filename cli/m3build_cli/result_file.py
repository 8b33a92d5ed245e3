"""The file that tells how a command ended, whatever happens: for schedulers that see neither its output nor,
at times, its exit code.

It is there from the beginning, with ``outcome`` "running", so that what an earlier run left is never taken
for this one's; what kills the process on the spot leaves it so. At the end it says "done" or "failed", the
exit code, and what was made or what went wrong. It is replaced whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from m3build_cli.exit_codes import INTERRUPTED, TERMINATED, exit_code_of
from m3build_formats.errors import UsageError


class ResultFile:
    """Takes the result of a command; ``put`` may be called once there is one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.result: dict[str, Any] | None = None
        self.exit_code = 0

    def put(self, result: dict[str, Any], exit_code: int = 0) -> None:
        """What the command found, and the exit code that goes with it."""
        self.result, self.exit_code = result, exit_code

    def write(self, fields: dict[str, Any]) -> None:
        """Replace the file. Raises OSError."""
        if self._path is None:
            return
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        temporary.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        temporary.replace(self._path)


@contextmanager
def result_file(path: Path | None) -> Iterator[ResultFile]:
    """A result file for the time of the block: ends with what was put, or with the exception that ended it.
    ``path`` None writes none. Raises UsageError where its directory is not there."""
    if path is not None and not path.parent.is_dir():
        raise UsageError(f"--result {path}: {path.parent} is no directory")
    file = ResultFile(path)
    file.write({"outcome": "running", "pid": os.getpid()})
    try:
        yield file
    except BaseException as error:
        code = exit_code_of(error)
        file.write(
            {"outcome": "failed", "exit_code": code, "error": type(error).__name__, "message": _words(error)}
        )
        raise
    outcome = "failed" if file.exit_code else "done"
    file.write({"outcome": outcome, "exit_code": file.exit_code, "result": file.result})


def _words(error: BaseException) -> str:
    if isinstance(error, click.ClickException):
        return error.format_message()
    if exit_code_of(error) in (INTERRUPTED, TERMINATED):
        return "stopped: run the same command again to go on"
    return str(error)
