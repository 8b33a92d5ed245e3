"""Puts an evaluation into a bank, as a new version that differs from the evaluated one in nothing else.

Needs the standard library only. What was measured holds for what a version contains, whatever its number: so
it goes on top of the current version where that holds the same (another evaluation came first, or a
rollback), and nowhere else.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Final

from m3build_formats.commit import BankWriter
from m3build_formats.errors import BusyError
from m3build_formats.evaluation_file import write_evaluation
from m3build_formats.history import same_contents
from m3build_formats.manifest import Manifest, VersionContents

OPERATION: Final = "eval"
WAIT_SECONDS: Final = 10.0
_TRIES: Final = 5


def store_evaluation(
    path: str | os.PathLike[str],
    evaluated: Manifest,
    evaluation: object,
    *,
    wait_seconds: float = WAIT_SECONDS,
) -> Manifest | None:
    """Commits a version with ``evaluation``, a JSON value, as its evaluation file, and returns its manifest;
    None where the current version no longer holds what ``evaluated`` does.

    Another writer is waited for ``wait_seconds``. Raises BusyError, CorruptError, ResourceError, UsageError,
    and ValueError for a value without a canonical form or over the format's limit.
    """
    end = time.monotonic() + wait_seconds
    for _ in range(_TRIES):
        with BankWriter(path, wait_seconds=max(0.0, end - time.monotonic())) as writer:
            current = writer.current()
            if current is None or not same_but_evaluation(current, evaluated):
                return None
            entry = write_evaluation(writer, evaluation)
            contents = replace(
                current.contents, operation=OPERATION, files=replace(current.files, eval=entry)
            )
            try:
                return writer.commit(contents, current)
            except BusyError:
                # Somebody who takes no lock made a version in between.
                continue
    raise BusyError(f"{os.fspath(path)}: {_TRIES} times another version appeared first; try again later")


def same_but_evaluation(one: VersionContents, other: VersionContents) -> bool:
    """Whether two versions hold the same apart from an evaluation."""

    def bare(version: VersionContents) -> VersionContents:
        contents = version.contents if isinstance(version, Manifest) else version
        return replace(contents, files=replace(contents.files, eval=None))

    return same_contents(bare(one), bare(other))
