"""Which references each query chunk of held-out text reads: retrieved, given in a file, or drawn at random.

Design choices:

- Retrieval never sees the tokens that are predicted: a query chunk reads what the one before it in its window
  retrieved, and the first reads none. ``own`` retrieves with the chunk itself, as a prompt does (the paper's
  way of generating); part of what it then predicts was in the query.
- With ``continuations`` a chunk that is found is followed by the one with which its document goes on, also
  where the former is left out.
- References that hold the text under test are left out (``overlap``), and the next ones found take their
  place: ``SPARE`` more are asked for. The text under test is what is read at once: the whole of a document,
  or of a long one the windows around.
- As many are drawn at random for a query chunk as it reads, each bank row as likely as any other, by a seed
  and the place of the chunk alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from m3build.bank import Bank
from m3build.evaluation.held_out import HeldOut
from m3build.evaluation.overlap import overlaps
from m3build.evaluation.windows import Window
from m3build.records import reference_text
from m3build_formats.errors import InputError, UsageError

Query = Literal["previous", "own"]
Fixed = Mapping[tuple[str, int], tuple[str, ...]]
SPARE = 10
_Place = tuple[int, int]
_MOST_DRAWS = 20


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """A chunk of the bank: id in hex, place, token ids without the reference BOS, and its reference text."""

    id: str
    shard: int
    row: int
    ids: tuple[int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Reads:
    """For each query chunk of a window the references that it reads, best first (each with its continuation
    behind it, where that is asked for), and as many at random."""

    window: Window
    found: tuple[tuple[Reference, ...], ...]
    random: tuple[tuple[Reference, ...], ...]


class References:
    """Finds what windows read. ``left_out`` counts references that overlapped too much, once for each query
    chunk that would have read one."""

    def __init__(
        self,
        bank: Bank,
        tokenizer: Any,
        number: int,
        *,
        query: Query = "previous",
        continuations: bool = False,
        limit: float,
        seed: int = 0,
        fixed: Fixed | None = None,
    ) -> None:
        self._bank = bank
        self._tokenizer = tokenizer
        self._number = number
        self._query = query
        self._continuations = continuations
        self._limit = limit
        self._seed = seed
        self._fixed = fixed
        self.left_out = 0
        self._known: dict[tuple[int, int], Reference] = {}
        self._starts = [0]
        for shard in bank.files.shards:
            self._starts.append(self._starts[-1] + shard.rows)
        if not self._starts[-1]:
            raise InputError("the bank holds no chunks")

    def of(self, document: HeldOut, windows: Sequence[Window]) -> list[Reads]:
        """What some windows of a document, one after the other, read. Raises CorruptError, UsageError (an id
        of the file that the bank does not hold)."""
        # Texts repeat their references within a document; across documents there is no bound on them.
        self._known.clear()
        overlapping: dict[str, bool] = {}
        # The first token of a window is the BOS, or stands in the window before.
        under_test = [token for window in windows for token in window.ids[1:]]

        def fits(reference: Reference) -> bool:
            if reference.id not in overlapping:
                overlapping[reference.id] = overlaps(under_test, reference.ids, self._limit)
            return not overlapping[reference.id]

        found = self._given(document, windows) if self._fixed is not None else self._retrieved(windows)
        reads = []
        for window, of_window in zip(windows, found, strict=True):
            kept = []
            for places in of_window:
                fitting: list[Reference] = []
                for place in places:
                    if len(fitting) == self._number:
                        break
                    reference = self._reference(*place)
                    if fits(reference):
                        fitting.append(reference)
                    else:
                        self.left_out += 1
                kept.append(tuple(fitting))
            at_random = tuple(
                self._drawn(document.id, window.first_chunk + chunk, len(some), fits)
                for chunk, some in enumerate(kept)
            )
            reads.append(Reads(window, tuple(kept), at_random))
        return reads

    def _retrieved(self, windows: Sequence[Window]) -> list[list[list[_Place]]]:
        asked: dict[str, list[_Place]] = {}
        texts = []
        for window in windows:
            of_window = []
            for chunk in range(window.chunks):
                source = chunk if self._query == "own" else chunk - 1
                ids = window.of_chunk(source) if source >= 0 else ()
                text = self._tokenizer.decode(list(ids), skip_special_tokens=True) if ids else ""
                of_window.append(text if text.strip() else None)
            texts.append(of_window)
        distinct = list(dict.fromkeys(text for some in texts for text in some if text is not None))
        if distinct and self._number:
            hits = self._bank.search(distinct, self._number + SPARE, continuations=self._continuations)
            for text, some in zip(distinct, hits, strict=True):
                asked[text] = [(hit.shard, hit.row) for hit in some]
        return [[asked.get(text, []) if text is not None else [] for text in some] for some in texts]

    def _given(self, document: HeldOut, windows: Sequence[Window]) -> list[list[list[_Place]]]:
        fixed = self._fixed or {}
        return [
            [
                [
                    (place.shard, place.row)
                    for identity in fixed.get((document.id, window.first_chunk + chunk), ())
                    for place in self._bank.files.find(identity)[:1]
                ]
                for chunk in range(window.chunks)
            ]
            for window in windows
        ]

    def _drawn(
        self, document: str, chunk: int, number: int, fits: Callable[[Reference], bool]
    ) -> tuple[Reference, ...]:
        drawn: dict[str, Reference] = {}
        for attempt in range(number * _MOST_DRAWS):
            if len(drawn) == number:
                break
            digest = hashlib.sha256(f"{self._seed}\n{chunk}\n{attempt}\n{document}".encode()).digest()
            reference = self._at(int.from_bytes(digest[:8]) % self._starts[-1])
            if fits(reference):
                drawn.setdefault(reference.id, reference)
        return tuple(drawn.values())

    def _at(self, row: int) -> Reference:
        from bisect import bisect_right

        shard = bisect_right(self._starts, row) - 1
        return self._reference(shard, row - self._starts[shard])

    def _reference(self, shard: int, row: int) -> Reference:
        if (shard, row) not in self._known:
            chunk = self._bank.files.shards[shard].chunk(row)
            text = reference_text(chunk.title, chunk.text)
            ids = tuple(self._tokenizer.encode(text, add_special_tokens=False))
            self._known[shard, row] = Reference(chunk.id.hex(), shard, row, ids, text)
        return self._known[shard, row]


def read_fixed(path: Path) -> Fixed:
    """References by document id and number of the query chunk, from lines of JSON such as ``{"document":
    "d1", "chunk": 3, "references": ["ab12…"]}``. Raises UsageError (no such file), InputError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error})") from None
    fixed: dict[tuple[str, int], tuple[str, ...]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        found = record if isinstance(record, dict) else {}
        document, chunk, listed = (found.get(key) for key in ("document", "chunk", "references"))
        if (
            not isinstance(document, str)
            or type(chunk) is not int
            or not isinstance(listed, list)
            or not all(isinstance(item, str) for item in listed)
        ):
            raise InputError(
                f"{path}, line {number}: is no object with a document id, a chunk number and a list of "
                "references by id"
            )
        fixed[document, chunk] = tuple(listed)
    return fixed
