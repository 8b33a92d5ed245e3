"""A version of a bank as one word: ``bank@3``."""

from __future__ import annotations

import os
import re
from typing import Final

_AT_VERSION: Final = re.compile(r"(.+)@([0-9]{1,18})", re.ASCII | re.DOTALL)


def split_version(name: str | os.PathLike[str]) -> tuple[str, int | None]:
    """The path of a bank, and the version where ``name`` ends with ``@`` and its number.

    A directory that is really called so wins: its whole name is the path.
    """
    text = os.fspath(name)
    match = None if os.path.isdir(text) else _AT_VERSION.fullmatch(text)
    return (match[1], int(match[2])) if match else (text, None)
