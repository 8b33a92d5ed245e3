"""What is set in the processes that are m3build's own: it is not for a library to decide."""

from __future__ import annotations

import gc
import os


def set_up_process() -> None:
    """Settings of the interpreter and of Arrow, for whole processes; to be called before Arrow is imported.

    Python looks for cycles after 50,000 new objects instead of some hundreds: imports and corpora make
    millions of objects and hardly a cycle among them, and looking through them all is a tenth of the time of
    cutting a corpus. Arrow takes its memory from the C library: its own allocator kept some 20 MB more of
    what a build had freed, and the more the longer it ran. ``ARROW_DEFAULT_MEMORY_POOL``, where it is set,
    says otherwise.
    """
    gc.set_threshold(50_000, 10, 10)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
