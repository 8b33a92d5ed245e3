"""What a build says about documents that were to be left out, and about a codec of a bank that was of text
only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from m3build.config import Settings
from m3build_formats.manifest import Manifest


def exclusion_notes(
    given: Sequence[str], recorded: Mapping[str, Any] | None, matched: Counter[str], kept: Manifest | None
) -> Iterator[str]:
    """Notes on the patterns ``given`` to this build: those that match nothing, and what the codec may still
    hold of documents that a new one takes out.

    ``recorded`` are the settings of the bank's current version, ``kept`` is that version if its codec stays.
    """
    for pattern in given:
        if not matched[pattern]:
            yield f"--exclude {pattern}: no document matches; it is remembered all the same"
    new = set(given) - set((recorded or {}).get("exclude", ()))
    if kept is None or not any(matched[pattern] for pattern in new):
        return
    yield "older versions still hold what was excluded, until m3build gc --purge"
    if few := kept.codec.get("few_members"):
        yield (
            f"{few:,} centroids of the codec stand for fewer than three training vectors, and so may be "
            "close to a key or value of an excluded text: --retrain makes a new codec"
        )


def codec_note(kept: Manifest | None, settings: Settings) -> str | None:
    """What to know of a codec that was trained on what happened to be retrieved, when all is encoded."""
    if kept is None or settings.text_only or kept.files.codec is None:
        return None
    trained_on = kept.codec.get("trained_on")
    if not isinstance(trained_on, dict) or "corpus_references" in trained_on:
        return None
    return (
        f"the codec was trained on the first {trained_on.get('references')} references that were retrieved: "
        "--retrain trains one on all"
    )
