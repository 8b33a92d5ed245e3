"""How often Python looks for cycles of objects, in the processes that are m3build's own."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """Look after 50,000 new objects instead of some hundreds. Imports and corpora make millions of objects
    and hardly a cycle among them, and looking through them all is a tenth of the time of cutting a corpus.
    For whole processes: it is not for a library to decide."""
    gc.set_threshold(50_000, 10, 10)
