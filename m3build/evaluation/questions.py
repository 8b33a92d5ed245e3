"""Questions with the documents that answer them, from files in BEIR's layout.

``queries.jsonl`` has an object with ``_id`` and ``text`` a line; ``qrels.tsv`` has the columns query id,
document id and score, with or without a line of headings. A score over 0 says that the document answers the
query. Document ids are those of the bank (``compile --id-field _id`` takes BEIR's).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from m3build_formats.errors import InputError, UsageError


@dataclass(frozen=True, slots=True)
class Questions:
    """Question i is ``texts[i]`` and is answered by any of the documents ``answers[i]``; ``unanswered``
    counts queries of the file that no line of the judgements names."""

    texts: tuple[str, ...]
    answers: tuple[frozenset[str], ...]
    unanswered: int

    def __len__(self) -> int:
        return len(self.texts)


def read_questions(queries: Path, qrels: Path) -> Questions:
    """The questions of two files.

    Raises UsageError (no such file), InputError that names the line that is not as it should be, or where no
    query has an answer.
    """
    judged = _judgements(qrels)
    texts: list[str] = []
    answers: list[frozenset[str]] = []
    unanswered = 0
    seen: set[str] = set()
    for number, line in _lines(queries):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise InputError(f"{queries}, line {number}: is no JSON ({error})") from None
        if not isinstance(record, dict) or not isinstance(record.get("text"), str) or "_id" not in record:
            raise InputError(f"{queries}, line {number}: is no object with _id and a string text")
        identity = str(record["_id"])
        if identity in seen:
            raise InputError(f"{queries}, line {number}: a second query with the _id {identity!r}")
        seen.add(identity)
        if identity in judged:
            texts.append(record["text"])
            answers.append(frozenset(judged[identity]))
        else:
            unanswered += 1
    if not texts:
        raise InputError(f"{queries}: no query has an answer in {qrels}")
    return Questions(tuple(texts), tuple(answers), unanswered)


def _judgements(qrels: Path) -> dict[str, list[str]]:
    judged: dict[str, list[str]] = {}
    for number, line in _lines(qrels):
        columns = line.split("\t")
        try:
            query, document, score = columns
            relevant = float(score) > 0
        except ValueError:
            if number == 1 and len(columns) == 3:
                continue  # headings
            raise InputError(
                f"{qrels}, line {number}: is not a query id, a document id and a score with tabs between"
            ) from None
        if relevant:
            judged.setdefault(query, []).append(document)
    return judged


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UsageError(f"{path}: there is no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 ({error})") from None
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
