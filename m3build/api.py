"""``m3build.compile``: the whole way from files to a bank as one call. The command line is a shell around the
same function.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from m3build.config import CompileOptions, RunOptions
from m3build_formats.errors import UsageError

if TYPE_CHECKING:
    from m3build.pipeline.result import CompileResult


def compile(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    bank: str | os.PathLike[str],
    **options: Any,
) -> CompileResult:
    """Compile sources into a bank, or make the bank equal to its sources again.

    ``sources`` are directories, files and globs; ``bank`` is a directory, made if it is not there.
    ``options`` are the fields of ``m3build.config.CompileOptions`` and ``RunOptions``, named as on the
    command line with underscores (``model=``, ``sparse_tokens=`` …). Raises the errors of
    ``m3build_formats.errors``, each for one way to fail.
    """
    from m3build.pipeline import compile_bank

    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    run_fields, compile_fields = RunOptions.__dataclass_fields__, CompileOptions.__dataclass_fields__
    if unknown := sorted(set(options) - set(run_fields) - set(compile_fields)):
        raise UsageError(f"compile knows no option {', '.join(unknown)}")
    return compile_bank(
        [os.fspath(s) for s in listed],
        bank,
        CompileOptions(**{k: v for k, v in options.items() if k in compile_fields}),
        RunOptions(**{k: v for k, v in options.items() if k in run_fields}),
    )
