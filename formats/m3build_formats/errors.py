"""Every way in which m3build fails on purpose, each with the exit code that a command ends with.

The codes stand in one table (README, "Exit codes"); a class carries its code so that nothing has to map
messages to numbers. A message is one or two lines for people: what is wrong, where, and what to do about it.
"""

from __future__ import annotations

from typing import ClassVar


class M3Error(Exception):
    """Base of all expected failures. A failure that is not one of these is a bug (exit code 1)."""

    exit_code: ClassVar[int] = 1


class UsageError(M3Error):
    """The command or call cannot be meant this way: a bad option, a missing extra, a path not there."""

    exit_code = 2


class InputError(M3Error):
    """The input does not make a bank: nothing to compile, or too many rejects."""

    exit_code = 3


class MismatchError(M3Error):
    """Bank, model and options do not fit together."""

    exit_code = 4


class NewerFormatError(MismatchError):
    """The bank uses a format version or feature that this m3build does not know."""


class CorruptError(M3Error):
    """Bytes of a bank are not what its manifest says."""

    exit_code = 5


class ResourceError(M3Error):
    """Disk, memory, permission or another resource of the machine failed."""

    exit_code = 6


class GateError(M3Error):
    """A quality gate that the user asked for was not passed."""

    exit_code = 7


class BusyError(M3Error):
    """Another process holds the bank; the same command may work later."""

    exit_code = 8
