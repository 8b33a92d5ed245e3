"""m3build compiles text corpora into banks of Memory³ explicit memories (arXiv 2407.01178).

    import m3build
    m3build.compile("corpus/", "bank/", model="path-or-hub-id")
    bank = m3build.open_bank("bank/")
    hits = bank.search(["a question"], k=5)
    memories = bank.read(hits.ids[0])
    reader = m3build.attach(model, bank)          # the model now reads memories while it generates
    m3build.evaluate("bank/", text="held-out/")   # what the bank is worth

Importing this package imports nothing heavy; torch and transformers come in with the first call that needs a
model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3build.api import compile as compile
    from m3build.api import diff as diff
    from m3build.api import evaluate as evaluate
    from m3build.api import gc as gc
    from m3build.api import log as log
    from m3build.api import merge as merge
    from m3build.api import rollback as rollback
    from m3build.bank import Bank as Bank
    from m3build.bank import open_bank as open_bank
    from m3build.memories import Memories as Memories
    from m3build.reader import Reader as Reader
    from m3build.reader import attach as attach

__all__ = [
    "Bank",
    "Memories",
    "Reader",
    "attach",
    "compile",
    "diff",
    "evaluate",
    "gc",
    "log",
    "merge",
    "open_bank",
    "rollback",
]

_HOMES = {
    "compile": "m3build.api",
    "diff": "m3build.api",
    "evaluate": "m3build.api",
    "gc": "m3build.api",
    "log": "m3build.api",
    "merge": "m3build.api",
    "rollback": "m3build.api",
    "open_bank": "m3build.bank",
    "Bank": "m3build.bank",
    "Memories": "m3build.memories",
    "Reader": "m3build.reader",
    "attach": "m3build.reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'm3build' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
