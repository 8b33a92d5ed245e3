"""A corpus as a dictionary, and random edits of it: what laws about rebuilds are tried on.

A document is a tuple of sentence numbers, a file is one document (``.txt``) or a list of them (``.jsonl``).
Edits are drawn as small integers that are taken modulo what there is, so that every script is a valid one and
a failing script shrinks to a short one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Final

import hypothesis.strategies as st
from small_corpus import sentence

Document = tuple[int, ...]
Corpus = dict[str, tuple[Document, ...]]

KINDS: Final = ("add", "change", "delete", "move", "reorder", "duplicate")
# A file that stays, so that there always is something to compile.
ANCHOR: Final = "m-anchor.txt"


@dataclass(frozen=True)
class Edit:
    """One edit; ``at`` and ``to`` choose file, document and place, ``number`` is a sentence."""

    kind: str
    at: int
    to: int
    number: int


edits = st.builds(
    Edit,
    st.sampled_from(KINDS),
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 60),
)


def base_corpus() -> Corpus:
    """Eight files: documents of different lengths, records, and one text that stands in two files."""
    text = {
        f"{name}.txt": (tuple(range(100 + 10 * i, 103 + 10 * i + i % 4)),) for i, name in enumerate("bdfhq")
    }
    return {
        **text,
        ANCHOR: ((1, 2, 3),),
        "e-copy.txt": text["d.txt"],
        "k.jsonl": tuple((200 + i, 201 + i) for i in range(0, 12, 2)),
    }


def edited(corpus: Corpus, edit: Edit) -> Corpus:
    """The corpus after an edit."""
    new = dict(corpus)
    names = sorted(name for name in corpus if name != ANCHOR)
    free = f"{'acgjprz'[edit.to % 7]}{edit.number}.txt"
    if edit.kind == "add" or not names:
        new[free] = (tuple(range(edit.number, edit.number + 1 + edit.at % 5)),)
        return new
    name = names[edit.at % len(names)]
    documents = list(new[name])
    at = edit.to % len(documents)
    if edit.kind == "change":
        words = list(documents[at])
        words[edit.number % len(words)] = 300 + edit.number
        documents[at] = tuple(words)
        new[name] = tuple(documents)
    elif edit.kind == "delete":
        if name.endswith(".jsonl") and len(documents) > 1:
            del documents[at]
            new[name] = tuple(documents)
        else:
            del new[name]
    elif edit.kind == "move":
        new["below/" + free.replace(".txt", name[name.index(".") :])] = new.pop(name)
    elif edit.kind == "reorder":
        if name.endswith(".jsonl"):
            documents.append(documents.pop(at))
            new[name] = tuple(documents)
        else:
            others = [other for other in names if other.endswith(".txt") and name.endswith(".txt")]
            other = others[edit.to % len(others)]
            new[name], new[other] = new[other], new[name]
    elif name.endswith(".jsonl"):
        documents.insert(edit.number % (len(documents) + 1), documents[at])
        new[name] = tuple(documents)
    else:
        new[free] = new[name]
    return new


def files_of(corpus: Corpus) -> dict[str, str]:
    """The corpus as files: text by name."""
    found = {}
    for name, documents in corpus.items():
        texts = [" ".join(sentence(number) for number in document) for document in documents]
        if name.endswith(".jsonl"):
            found[name] = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        else:
            found[name] = texts[0]
    return found
