"""A version of a bank as one word: ``bank@3``."""

from __future__ import annotations

import os
import re
from typing import Final

from m3build_formats.bank import is_bank
from m3build_formats.errors import UsageError

_AT_VERSION: Final = re.compile(r"(.+)@([0-9]{1,18})", re.ASCII | re.DOTALL)


def split_version(name: str | os.PathLike[str]) -> tuple[str, int | None]:
    """The path of a bank, and the version where ``name`` ends with ``@`` and its number.

    A directory that is really called so wins: its whole name is the path. Raises UsageError for a bank with
    anything but a number behind the ``@``.
    """
    text = os.fspath(name)
    match = None if os.path.isdir(text) else _AT_VERSION.fullmatch(text)
    if match:
        return match[1], int(match[2])
    path, at, version = text.rpartition("@")
    if at and not os.path.exists(text) and is_bank(path):
        raise UsageError(f"{text}: a version is a number, as m3build log {path} lists them, not {version!r}")
    return text, None
