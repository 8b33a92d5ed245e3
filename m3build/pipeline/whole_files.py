"""Scratch files that appear under their name only when they are whole."""

from __future__ import annotations

import os
from pathlib import Path


def temporary_of(path: Path) -> Path:
    """Where to write what is to become ``path``."""
    # Of this process alone: a worker whose build is gone may still be about to end.
    return path.with_suffix(f".{os.getpid()}.tmp")


def place(temporary: Path, path: Path, is_whole: bool) -> None:
    """Give a file that is whole its name; any other goes. Raises OSError when the disk does not take it."""
    if is_whole:
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    else:
        temporary.unlink(missing_ok=True)
