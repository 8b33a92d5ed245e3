"""What a build says about documents that were to be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

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
