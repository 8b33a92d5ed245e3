"""What a build can be told, and how that turns into settings.

Three sources, first wins: what the caller says, what the bank was built with, the defaults here.
``CompileOptions`` holds only what the caller said (``None`` = not said); ``Settings`` holds a value for
everything that shapes a bank and is recorded in its manifest; ``RunOptions`` holds what changes how a build
runs and never what comes out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from m3build.model.source import DEFAULT_MODEL
from m3build_formats.errors import MismatchError, UsageError


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What the caller asked for; ``None`` means "as the bank has it, else the default". Each field is an
    option of ``m3build compile``.
    """

    model: str | None = None
    text_field: str | None = None
    id_field: str | None = None
    title_field: str | None = None
    keep_fields: tuple[str, ...] | None = None
    encoding: str | None = None
    encoding_errors: str | None = None
    max_document_bytes: int | None = None
    title: bool | None = None
    near_duplicates: float | None = None
    shard_chunks: int | None = None
    memory_layers: str | None = None
    memory_heads: str | None = None
    sparse_tokens: str | None = None
    reference_tokens: int | None = None
    reference_bos: str | None = None
    select: str | None = None
    dtype: str | None = None
    codec: str | None = None
    codec_scope: str | None = None
    embedder: str | None = None
    index: str | None = None
    exclude: tuple[str, ...] | None = None
    text_only: bool | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that shapes a bank, with a value for each; ``None`` where "none" is the value or the model
    decides (memory layers and so on).

    ``codec`` and ``index`` are what was asked for (``auto`` included); what they came to stands in the
    manifest's codec and index facts. ``exclude`` is all that was ever excluded and not readmitted, sorted.
    ``text_only``: memories are left to be made at first retrieval.
    """

    model: str = DEFAULT_MODEL
    text_field: str = "text"
    id_field: str | None = None
    title_field: str | None = None
    keep_fields: tuple[str, ...] = ()
    encoding: str = "utf-8"
    encoding_errors: str = "strict"
    max_document_bytes: int = 64 << 20
    title: bool = False
    near_duplicates: float = 0.0
    shard_chunks: int = 4096
    memory_layers: str | None = None
    memory_heads: str | None = None
    sparse_tokens: str | None = None
    reference_tokens: int | None = None
    reference_bos: str | None = None
    select: str | None = None
    dtype: str = "auto"
    codec: str = "auto"
    codec_scope: str = "kind"
    embedder: str = "lexical"
    index: str = "auto"
    exclude: tuple[str, ...] = ()
    text_only: bool = False

    def to_json(self) -> dict[str, Any]:
        """The settings as a JSON object, as the manifest's ``settings`` keeps them."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How a build runs and what it may do; nothing here is remembered. ``workers`` None: one a core, at most
    8. ``rebuild``, ``retrain``, ``readmit`` and the codec and embedder taken over decide what is made anew;
    nothing else changes a byte of what comes out on one kind of machine.

    ``drift``: by how much the codec's errors and the embedder's weights may be higher on what is new than at
    training before the build warns (:mod:`m3build.pipeline.drift`).
    """

    device: str = "auto"
    batch_tokens: int = 16384
    workers: int | None = None
    trust_remote_code: bool = False
    max_rejects: str = "1%"
    drift: str = "10%"
    rebuild: bool = False
    retrain: bool = False
    readmit: tuple[str, ...] = ()
    allow_shrink: bool = False
    rehash: bool = False
    codec_from: str | None = None
    embedder_from: str | None = None


@dataclass(frozen=True, slots=True)
class RejectLimit:
    """How many rejects a build bears: a count, which stops it at once, or a share of the records, looked at
    when the input is read.
    """

    count: int | None
    share: float | None


def parse_reject_limit(text: str) -> RejectLimit:
    """``"100"`` or ``"2.5%"``. Raises UsageError for anything else."""
    if match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", text.strip()):
        share = float(match[1]) / 100
        if share <= 1:
            return RejectLimit(None, share)
    elif re.fullmatch(r"\d{1,18}", text.strip()):
        return RejectLimit(int(text), None)
    raise UsageError(f"--max-rejects is a count or a percentage such as 100 or 1%, not {text!r}")


def parse_drift_limit(text: str) -> float:
    """The share that ``"10%"`` stands for, 0.1; it may be over 1. Raises UsageError for anything else."""
    if match := re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*%", text.strip()):
        return float(match[1]) / 100
    raise UsageError(f"--drift is a percentage such as 10%, not {text!r}")


def resolve(
    options: CompileOptions,
    recorded: Mapping[str, Any] | None,
    rebuild: bool,
    readmit: tuple[str, ...] = (),
) -> Settings:
    """Settings for a build: what was said, else what the bank records, else the defaults.

    ``recorded`` is the ``settings`` object of the bank's manifest, or None for a new bank. Raises
    MismatchError, naming every difference, when something said differs from the bank and ``rebuild`` is
    false; UsageError for a pattern to ``readmit`` that is not excluded. Exclusions add up: what a bank
    excludes stays excluded, with ``rebuild`` too, until it is readmitted. A bank of text only may be warmed
    at any time, since nothing that it has changes; the way back takes ``rebuild``.
    """
    said = {f.name: getattr(options, f.name) for f in fields(options) if getattr(options, f.name) is not None}
    old = {k: v for k, v in (recorded or {}).items() if k in Settings.__dataclass_fields__}
    if recorded is not None:
        old.setdefault("text_only", False)
    # The model is compared by its fingerprint once it is loaded, not by the path someone typed.
    free = {"model", "exclude", *(["text_only"] if options.text_only is False else [])}
    differing = [
        name
        for name, value in said.items()
        if name in old and name not in free and _plain(value) != old[name]
    ]
    if differing and not rebuild:
        listed = "; ".join(
            f"{option_name(name)} is {_shown(old[name])} in the bank, {_shown(said[name])} here"
            for name in differing
        )
        raise MismatchError(
            f"the bank was built with other options: {listed}. Leave them out, or build anew with --rebuild"
        )
    merged = {**old, **said}
    if "keep_fields" in merged:
        merged["keep_fields"] = tuple(merged["keep_fields"])
    excluded = {*old.get("exclude", ()), *said.get("exclude", ())}
    if unknown := sorted(set(readmit) - excluded):
        there = ", ".join(sorted(excluded)) or "nothing"
        raise UsageError(f"--readmit {unknown[0]}: is not excluded; the bank excludes {there}")
    merged["exclude"] = tuple(sorted(excluded - set(readmit)))
    settings = Settings(**merged)
    _check(settings)
    return settings


def option_name(field_name: str) -> str:
    """The command-line option of a field."""
    return "--" + {"keep_fields": "keep_field"}.get(field_name, field_name).replace("_", "-")


def _check(settings: Settings) -> None:
    if settings.encoding_errors not in ("strict", "replace"):
        raise UsageError(f"--encoding-errors is strict or replace, not {settings.encoding_errors!r}")
    if not 0 <= settings.near_duplicates <= 1:
        raise UsageError(
            f"--near-duplicates is a similarity from 0 (off) to 1, not {settings.near_duplicates}"
        )
    if not 1 <= settings.shard_chunks <= 1 << 20:
        raise UsageError(f"--shard-chunks is a number from 1 to {1 << 20}, not {settings.shard_chunks}")
    if settings.max_document_bytes < 1:
        raise UsageError(f"--max-document-bytes is at least 1, not {settings.max_document_bytes}")
    try:
        "".encode(settings.encoding)
    except LookupError:
        raise UsageError(f"--encoding {settings.encoding!r} is not an encoding that Python knows") from None


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: object) -> str:
    return "unset" if value is None or value == [] else str(value)
