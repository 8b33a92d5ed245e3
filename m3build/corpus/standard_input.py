"""Standard input as a source: JSON lines, written to disk first, so that they can be read twice, in ranges,
and after an interruption."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import BinaryIO

from m3build.corpus.compression import MAGIC
from m3build.corpus.discover import STANDARD_INPUT
from m3build.corpus.source import SourceFile
from m3build_formats.errors import ResourceError

_COPY_BYTES = 1024 * 1024


def spool_standard_input(stream: BinaryIO, directory: str | os.PathLike[str]) -> SourceFile:
    """Copies ``stream`` to a file of its own in ``directory`` and gives it as the source file named ``-``;
    the caller deletes ``path`` in the end.

    Compressed input is recognized by its first bytes. Raises ResourceError if the disk does not take it;
    nothing is left behind then.
    """
    handle, path = tempfile.mkstemp(prefix="standard-input-", suffix=".jsonl", dir=directory)
    try:
        with open(handle, "wb") as copy:
            shutil.copyfileobj(stream, copy, _COPY_BYTES)
            size = copy.tell()
        with open(path, "rb") as spooled:
            head = spooled.read(max(map(len, MAGIC)))
    except BaseException as error:
        Path(path).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ResourceError(
                f"standard input could not be spooled to {os.fspath(directory)}: {error.strerror or error}"
            ) from error
        raise
    compression = next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)
    return SourceFile(path, STANDARD_INPUT, size, "jsonl", compression, named=True)
