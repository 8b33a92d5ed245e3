"""The exit code that belongs to an exception; the table is in the README."""

from __future__ import annotations

import click

from m3build_formats.errors import M3Error

BUG, RESOURCES, INTERRUPTED, TERMINATED = 1, 6, 130, 143


class Terminated(BaseException):
    """SIGTERM arrived. Not an Exception, so that nothing on the way out takes it for a failure of its own."""


def exit_code_of(error: BaseException) -> int:
    """Of whatever ended a command."""
    match error:
        case M3Error() | click.ClickException():
            return error.exit_code
        case click.Abort() | KeyboardInterrupt():
            return INTERRUPTED
        case Terminated():
            return TERMINATED
        case MemoryError() | OSError():
            return RESOURCES
        case SystemExit():
            return error.code if isinstance(error.code, int) else 0
    return BUG
