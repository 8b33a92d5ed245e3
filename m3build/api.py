"""What the commands do to banks, as one call each: ``m3build.compile`` (the whole way from files to a bank),
``merge``, ``gc``, ``log``, ``diff``, ``rollback``, ``evaluate``. The command line is a shell around the same
functions.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from m3build.config import CompileOptions, RunOptions
from m3build_formats.errors import UsageError

if TYPE_CHECKING:
    from m3build.evaluation.evaluate import Evaluation
    from m3build.pipeline.merge_result import MergeResult
    from m3build.pipeline.result import CompileResult
    from m3build_formats.diff_report import Difference
    from m3build_formats.gc import GcReport
    from m3build_formats.history import UnreadableVersion, Version
    from m3build_formats.rollback import Rollback


def compile(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    bank: str | os.PathLike[str],
    **options: Any,
) -> CompileResult:
    """Compile sources into a bank, or make the bank equal to its sources again.

    ``sources`` are directories, files and globs; ``bank`` is a directory, made if it is not there.
    ``options`` are the fields of ``m3build.config.CompileOptions`` and ``RunOptions``, named as on the
    command line with underscores (``model=``, ``sparse_tokens=`` …); those that may be given more than once
    take one string or several. Raises the errors of
    ``m3build_formats.errors``, each for one way to fail.
    """
    from m3build.pipeline.build import compile_bank

    listed = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    run_fields, compile_fields = RunOptions.__dataclass_fields__, CompileOptions.__dataclass_fields__
    if unknown := sorted(set(options) - set(run_fields) - set(compile_fields)):
        raise UsageError(f"compile knows no option {', '.join(unknown)}")
    lists = ("keep_fields", "exclude", "readmit")
    given: dict[str, Any] = {k: _names(v) if k in lists else v for k, v in options.items()}
    return compile_bank(
        [os.fspath(s) for s in listed],
        bank,
        CompileOptions(**{k: v for k, v in given.items() if k in compile_fields}),
        RunOptions(**{k: v for k, v in given.items() if k in run_fields}),
    )


def _names(given: str | Iterable[str] | None) -> tuple[str, ...] | None:
    """Names or patterns, of which one may be given alone."""
    return (given,) if isinstance(given, str) else None if given is None else tuple(given)


def merge(
    banks: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    prefer: Literal["first", "last"] | None = None,
    embedder_from: str | os.PathLike[str] | None = None,
) -> MergeResult:
    """Make a new bank of the documents of several, without encoding anything again.

    ``out`` must not be there or be empty. A document that several banks hold with the same content is one;
    ``prefer`` says which bank's to take where the content differs. Embeddings and index are made anew, with
    the embedder of the bank ``embedder_from`` if one is named. Raises MismatchError for banks that do not fit
    together, InputError for documents that differ under one id, and the other errors of
    ``m3build_formats.errors``.
    """
    from m3build.pipeline.merge import merge_banks

    taken = None if embedder_from is None else os.fspath(embedder_from)
    return merge_banks(banks, out, prefer=prefer, embedder_from=taken)


def gc(
    bank: str | os.PathLike[str],
    *,
    keep: int | None = None,
    grace: str | float | None = None,
    purge: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 0.0,
) -> GcReport:
    """Remove all but the newest ``keep`` versions of a bank (default 10), and the files that only they need.

    ``grace`` ("30s", "15m", "1h", "7d", or seconds; default 1h) spares what was current or made that short
    ago; ``purge`` keeps the current version alone, at once, and empties build/. Raises the errors of
    ``m3build_formats.gc.collect``.
    """
    from m3build_formats.gc import collect

    return collect(bank, keep=keep, grace=grace, purge=purge, dry_run=dry_run, wait_seconds=wait_seconds)


def log(bank: str | os.PathLike[str], limit: int | None = None) -> tuple[Version | UnreadableVersion, ...]:
    """The versions of a bank, newest first; at most the ``limit`` newest. One whose manifest cannot be read
    is there as an ``UnreadableVersion``.

    Raises UsageError (no bank, no version yet), ResourceError.
    """
    from m3build_formats.history import versions

    return versions(bank, limit)


def diff(a: str | os.PathLike[str], b: str | os.PathLike[str] | None = None, limit: int = 10) -> Difference:
    """What changed from ``a`` to ``b``: each is the path of a bank, meaning its current version, or
    ``"path@version"``. At most ``limit`` ids are listed of each kind of change.

    Without ``b``: from the version that the current one was made from; with ``"path@version"`` from that
    version to the current one. Raises UsageError, CorruptError, NewerFormatError, BusyError, ResourceError.
    """
    from m3build_formats.diff import diff_versions

    return diff_versions(a, b, limit)


def rollback(
    bank: str | os.PathLike[str],
    version: int,
    *,
    quick: bool = False,
    readmit: Collection[str] = (),
    wait_seconds: float = 10.0,
) -> Rollback:
    """Commit a new version of ``bank`` that holds what ``version`` held; nothing is overwritten.

    Its files are hashed first, or with ``quick`` only looked for. Raises UsageError (no such version),
    MismatchError (documents that were excluded since would come back, and ``readmit`` does not name their
    patterns), CorruptError (it is not whole), BusyError (another process writes for ``wait_seconds``),
    ResourceError.
    """
    from m3build_formats.rollback import rollback as roll_back

    return roll_back(bank, version, quick=quick, readmit=_names(readmit) or (), wait_seconds=wait_seconds)


def evaluate(
    bank: str | os.PathLike[str], *, version: int | None = None, store: bool = True, **options: Any
) -> Evaluation:
    """Measure what a bank is worth: its loss on held-out text, its retrieval on questions, its cost.

    ``options`` are the fields of ``m3build.evaluation.options.EvalOptions``; ``text`` (sources) or
    ``queries`` and ``qrels`` (files in BEIR's layout) is needed. With ``store`` the results become a version
    of the bank.
    ``require`` is judged, and ``Evaluation.enforce()`` raises GateError for what did not hold. Raises the
    errors of ``m3build_formats.errors``.
    """
    from m3build.evaluation.evaluate import evaluate_bank
    from m3build.evaluation.options import EvalOptions

    if unknown := sorted(set(options) - set(EvalOptions.__dataclass_fields__)):
        raise UsageError(f"evaluate knows no option {', '.join(unknown)}")
    text = options.get("text", ())
    listed = [text] if isinstance(text, str | os.PathLike) else list(text)
    given = {**options, "text": tuple(os.fspath(source) for source in listed)}
    given["require"] = _names(options.get("require")) or ()
    for name in ("queries", "qrels", "reference_file", "model"):
        if given.get(name) is not None:
            given[name] = os.fspath(given[name])
    return evaluate_bank(bank, EvalOptions(**given), version=version, store=store)
