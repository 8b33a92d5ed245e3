"""What an evaluation can be told, checked before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from m3build.evaluation.gate import Condition, Source, parse_conditions
from m3build.evaluation.overlap import LIMIT
from m3build_formats.errors import UsageError


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """Options of ``m3build eval``; None means "as the bank or its model has it", or "not asked for".

    ``text``: held-out sources; ``queries`` and ``qrels``: files in BEIR's layout. ``references``: how many
    each query chunk reads, with ``continuations`` each that is found and what its document goes on with;
    ``reference_file``: fixed ones instead of retrieval. ``window``: tokens of a context at most. ``control``:
    a model without memories to compare with. ``overlap``: references over this share are left out.
    ``documents``, ``tokens``: limits of a draw by ``seed``. ``by_rank``: also measure each rank of reference
    by itself. ``require``: conditions of the gate.
    """

    text: tuple[str, ...] = ()
    queries: str | None = None
    qrels: str | None = None
    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    query: Literal["previous", "own"] = "previous"
    references: int | None = None
    continuations: bool | None = None
    reference_file: str | None = None
    window: int | None = None
    control: str | None = None
    overlap: float = LIMIT
    documents: int | None = None
    tokens: int | None = None
    seed: int = 0
    batch_tokens: int = 4096
    text_field: str = "text"
    id_field: str | None = None
    encoding: str = "utf-8"
    by_rank: bool = False
    require: tuple[str, ...] = ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """What is measured: ``text``, ``queries`` or both; ``control`` beside the text."""
        asked: tuple[tuple[Source, object], ...] = (
            ("text", self.text),
            ("queries", self.queries),
            ("control", self.text and self.control),
        )
        return tuple(source for source, given in asked if given)

    def conditions(self) -> tuple[Condition, ...]:
        """The conditions of the gate. Raises UsageError for these and any other option that cannot be
        meant."""
        if not self.text and not self.queries:
            raise UsageError("what to evaluate on? Name held-out text with --text, questions with --queries")
        if (self.queries is None) != (self.qrels is None):
            raise UsageError("--queries and --qrels go together")
        if self.control is not None and not self.text:
            raise UsageError("--control is compared on held-out text: name it with --text")
        if self.query not in ("previous", "own"):
            raise UsageError(f"--query is previous or own, not {self.query!r}")
        if self.continuations not in (None, True, False):
            raise UsageError(f"continuations is {self.continuations!r}; give True or False")
        for name, value, least in (
            ("--references", self.references, 1),
            ("--window", self.window, 2),
            ("--documents", self.documents, 1),
            ("--tokens", self.tokens, 2),
            ("--batch-tokens", self.batch_tokens, 1),
        ):
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}; give at least {least}")
        if not 0 <= self.overlap <= 1:
            raise UsageError(f"--overlap is a share from 0 to 1, not {self.overlap}")
        for path in (self.queries, self.qrels, self.reference_file):
            if path is not None and not Path(path).is_file():
                raise UsageError(f"{path}: there is no such file")
        return parse_conditions(self.require, self.sources)
