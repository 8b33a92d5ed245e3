"""Manifests whose numbers do not fit each other or the files: sizes, rows, places of batches, repeats."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from case import add, case, each
from forge import JSON, Forge

DIGEST = "0" * 32


def _claim(entry: JSON, rows: int, each_batch: int, **changed: Any) -> None:
    """Rows that are not there, with as many batches as they need, all inside the file."""
    batches, count = entry["batches"], -(-rows // each_batch)
    head = batches["head"]["bytes"]
    batches.update(rows=each_batch, ends=list(range(head + 1, head + 1 + count)), digests=[DIGEST] * count)
    entry.update(rows=rows, **changed)


def _grown(forge: Forge, entry: JSON, size: int) -> None:
    """Gives a table bytes after its end, where nobody looks."""
    table = forge.table(entry)
    table.tail += bytes(max(0, size - entry["bytes"]))
    forge.put_table(entry, table)


@case(step="open", words="too few for 2000000000 rows")
def two_billion_chunks_in_a_small_file(forge: Forge) -> None:
    """Row counts are believed only as far as bytes are there."""
    shard, rows = forge.shard(), 2_000_000_000
    for kind, batch in (("chunks", 65_536), ("memories", 65_536), ("embeddings", 65_536)):
        _grown(forge, shard[kind], 1 << 16)
        _claim(shard[kind], rows, batch)
    shard["rows"] = rows
    forge.manifest["counts"]["chunks"] = rows + 7


@case(step="open", words="too few for 1000000 rows")
def a_million_documents_in_a_small_file(forge: Forge) -> None:
    """The same for documents."""
    entry = forge.shard()["documents_file"]
    _claim(entry, 1_000_000, 65_536)
    forge.shard()["documents"] = 1_000_000


@case(step="open", words="too few")
def memory_rows_of_a_quarter_gigabyte(forge: Forge) -> None:
    """As wide as the format allows, in a file of some kilobytes."""
    forge.manifest["codec"]["bytes_per_vector"] = (1 << 27) // 9
    forge.manifest["row_bytes"]["codes"] = 2 * 9 * ((1 << 27) // 9)


@each({"twice": 1 << 13, "largest": 1 << 16, "smaller": 8}, step="open", words="too few|other columns")
def other_dimensions_of_embeddings(forge: Forge, dim: int) -> None:
    """The manifest says another width than the schema."""
    forge.manifest["embedder"]["dim"] = dim


EDITS: dict[str, tuple[str, str, Any]] = {
    "more slots than row bytes": ("manifest", "row_bytes", lambda m: m["memory"].update(sparse_tokens=255)),
    "more bytes a vector": ("manifest", "row_bytes", lambda m: m["codec"].update(bytes_per_vector=1 << 28)),
    "more codes than slots": ("manifest", "row_bytes", lambda m: m["row_bytes"].update(codes=1 << 28)),
    "a file of 512 TB": ("open", "bytes", lambda m: m["shards"][0]["chunks"].update(bytes=1 << 49)),
    "another shard's chunks": (
        "manifest",
        "expected the shard's",
        lambda m: m["shards"][0].update(chunks=m["shards"][1]["chunks"]),
    ),
    "a shard twice": ("manifest", "counts", lambda m: m["shards"].append(m["shards"][0])),
    "more cold rows than rows": ("manifest", "counts.cold", lambda m: m["counts"].update(cold=1 << 40)),
    "no cold row, and a shard without memories": (
        "manifest",
        "counts.cold",
        lambda m: (m["counts"].update(cold=0), m["shards"][0].update(memories=None)),
    ),
    "an index in place of a codec": (
        "manifest",
        "files.codec",
        lambda m: m["files"].update(codec=m["shards"][0]["index"]),
    ),
    "a base that is newer": (
        "manifest",
        "base.version",
        lambda m: m.update(base={"version": 2, "sha256": "0" * 64}),
    ),
    "memory heads for another layer count": (
        "manifest",
        "memory_heads",
        lambda m: m["memory"].update(memory_heads=[[0]]),
    ),
    "a head twice": ("manifest", "memory_heads", lambda m: m["memory"].update(memory_heads=[[0, 0], [1]])),
    "layers that descend": ("manifest", "memory_layers", lambda m: m["memory"].update(memory_layers=[2, 0])),
    "a layer without heads": (
        "manifest",
        "at least one",
        lambda m: m["memory"].update(memory_heads=[[0], []]),
    ),
}
for _name, (_step, _words, _edit) in EDITS.items():
    add(_name, lambda forge, edit=_edit: edit(forge.manifest), step=_step, words=_words)  # type: ignore[misc]

BATCH_EDITS: dict[str, tuple[str, Any]] = {
    "no ends": ("manifest", lambda b: b.update(ends=[])),
    "an end too many": ("manifest", lambda b: b["ends"].append(b["ends"][-1] + 8)),
    "ends that descend": ("manifest", lambda b: b.update(ends=b["ends"][::-1])),
    "two equal ends": ("manifest", lambda b: b.update(ends=[b["ends"][0], b["ends"][0], b["ends"][2]])),
    "an end inside the head": ("manifest", lambda b: b.update(ends=[17, *b["ends"][1:]])),
    "an end beyond the file": ("manifest", lambda b: b.update(ends=[*b["ends"][:2], 1 << 40])),
    "an end of 2^53 - 1": ("manifest", lambda b: b.update(ends=[*b["ends"][:2], (1 << 53) - 1])),
    "an end below zero": ("manifest", lambda b: b.update(ends=[-1, *b["ends"][1:]])),
    "an end that is a float": ("manifest", lambda b: b.update(ends=[*b["ends"][:2], float(b["ends"][2])])),
    "an end that is a string": ("manifest", lambda b: b.update(ends=[*b["ends"][:2], str(b["ends"][2])])),
    "an end that is true": ("manifest", lambda b: b.update(ends=[True, *b["ends"][1:]])),
    "a digest too few": ("manifest", lambda b: b["digests"].pop()),
    "a digest of another length": ("manifest", lambda b: b["digests"].append(b["digests"].pop() + "0")),
    "an end one byte early": ("chunks", lambda b: b["ends"].append(b["ends"].pop() - 1)),
    "a head one byte short": ("open", lambda b: b["head"].update(bytes=b["head"]["bytes"] - 1)),
    "a head of the magic alone": ("open", lambda b: b["head"].update(bytes=16)),
    "a head of 15 bytes": ("manifest", lambda b: b["head"].update(bytes=15)),
    "a head longer than the file": ("manifest", lambda b: b["head"].update(bytes=1 << 19)),
    "no rows a batch": ("manifest", lambda b: b.update(rows=0)),
    "2^52 rows a batch": ("manifest", lambda b: b.update(rows=1 << 52)),
}


def _with_true_digests(forge: Forge, entry: JSON) -> None:
    """Hashes what the edited places name, where they name anything."""
    from m3build_formats.arrow_file import batch_digest

    batches, data = entry["batches"], forge.data(entry)
    batches["head"]["digest"] = batch_digest(data[: batches["head"]["bytes"]])
    starts = [batches["head"]["bytes"], *batches["ends"]]
    batches["digests"] = [batch_digest(data[a:b]) for a, b in zip(starts, batches["ends"], strict=False)]


def _edit_batches(forge: Forge, step: str, edit: Any) -> None:
    entry = forge.shard()["chunks"]
    forge.put_rows(entry, forge.table(entry).read(), 16)
    edit(entry["batches"])
    if step != "manifest":
        _with_true_digests(forge, entry)


for _name, (_step, _edit) in BATCH_EDITS.items():
    add(
        f"batches: {_name}",
        lambda forge, step=_step, edit=_edit: _edit_batches(forge, step, edit),  # type: ignore[misc]
        step=_step,
        words="chunks",
    )


@case(step="chunks", words="rows, expected")
def batches_that_each_hold_all_rows(forge: Forge) -> None:
    """Three ends, each a whole table: more rows than the manifest has."""
    entry = forge.shard()["chunks"]
    table = forge.table(entry)
    table.batches, table.each = table.batches * 3, 16
    forge.put_table(entry, table)


@case(error="", verified=True)
def the_same_shard_twenty_times_more(forge: Forge) -> None:
    """Nothing forbids it; each search result still comes once."""
    shards = forge.manifest["shards"]
    shards.extend(deepcopy(shards[1]) for _ in range(20))
    forge.manifest["counts"]["chunks"] += 140
    forge.manifest["index"]["vectors"] += 140


@case(step="open", words="bytes, expected")
def the_same_name_with_another_size(forge: Forge) -> None:
    """One name, two entries: the size is looked at for each."""
    shards = forge.manifest["shards"]
    shards.append(deepcopy(shards[1]))
    shards[2]["index"]["bytes"] += 1
    forge.manifest["counts"]["chunks"] += 7


@case(step="chunks", words="rows, expected")
def the_same_name_with_other_batches(forge: Forge) -> None:
    """One name, two entries: each is checked by its own batches."""
    shards = forge.manifest["shards"]
    shards.append(deepcopy(shards[1]))
    shard = shards[2]
    shard["rows"] = 6
    for kind in ("chunks", "memories", "embeddings"):
        shard[kind]["rows"] = 6
    forge.manifest["counts"]["chunks"] += 6


@case(error="", verified=True)
def a_bank_without_shards(forge: Forge) -> None:
    """Empty, and searched in peace."""
    forge.manifest["shards"] = []
    forge.manifest["counts"]["chunks"] = forge.manifest["index"]["vectors"] = 0


@case(error="CorruptError", step="codec", words="arrays", verified=True)
def a_bank_without_codec_and_embedder_files(forge: Forge) -> None:
    """Text and bytes are read; what needs the arrays says so."""
    forge.manifest["files"].update(codec=None, embedder=None, rejects=None, eval=None)


@case(step="open", words="other columns")
def tables_of_each_others_kind(forge: Forge) -> None:
    """Memories that are embeddings, with the right name for it."""
    shard = forge.shard()
    rows = shard["memories"]["rows"]
    wrong = dict(shard["embeddings"])
    shard["memories"].update(wrong, rows=rows)
    shard["memories"]["name"] = f"{wrong['sha256']}.memories.arrow"
    forge.files[shard["memories"]["name"]] = forge.files[wrong["name"]]


@case(error="", verified=True)
def counts_beyond_the_corpus(forge: Forge) -> None:
    """What cannot be checked from inside is repeated as it is."""
    for name in forge.manifest["counts"]:
        if name != "chunks":
            forge.manifest["counts"][name] = 2**53 - 1
    forge.manifest["counts"]["unheard of"] = int(np.int64(7))
