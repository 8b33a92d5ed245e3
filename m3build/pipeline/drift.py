"""Whether codec and embedder, which an incremental build keeps, still fit what came in.

Both were made from the corpus as it was. So of the references that are new to the bank some are drawn by the
hash of their ids, and three figures are taken of them beside those at training:

- ``key_error`` and ``value_error`` of the codec, measured as on the references held out at training;
- ``ngram_weight`` of the lexical embedder: the mean weight (inverse document frequency) of an n-gram in a
  reference. It is the surprise, in nats, of a text's n-grams under the document frequencies that the embedder
  keeps: the more of a text was hardly or never counted, the higher it is, and the less the weights tell its
  rare n-grams from its common ones. What it was at training follows from the stored frequencies alone, with
  each text left out of them once. Measured on five kinds of text: on 256 references of other documents of the
  same kind it is within 3 % of that on average, on another kind 5 to 240 % higher. Recall of the index would
  not do: it says how well FAISS finds the nearest vectors, and is 1 for exact search whatever the weights
  are. A neural embedder learns nothing from the corpus, so there is nothing to drift.

A build warns where a figure grew by more than ``--drift`` and by more than chance explains: twice the
standard error of the difference, which groups of the sample estimate. For in some codecs a few outliers make
up most of the error: without that, up to half of the samples of 32 references of the very kind that was
trained on would have warned. With it none did for ``auto`` and up to one in six for ``SQ8``, while samples
of other kinds of text all warned with ``auto``, and with ``SQ8`` all but a few (at worst one in three did, of
32 references of encyclopedic English after stories).

Nothing here is written: versions are the same with and without it. It costs the encoding of the drawn
references once more, which is a fifth of the new ones or ``JUDGED_REFERENCES``, whichever is more, and at
most ``HELD_OUT_REFERENCES``.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from m3build.embed.lexical import LexicalEmbedder
from m3build.model import LoadedModel
from m3build.pipeline.codec_sample import (
    ERROR_QUERIES,
    HELD_OUT_REFERENCES,
    HELD_OUT_SHARE,
    codes_of,
    encode_sample,
    errors_of,
)
from m3build.pipeline.codec_stage import PreparedCodec
from m3build.pipeline.drift_report import JUDGED_REFERENCES, Drift, Figure
from m3build.pipeline.memory_stage import OldMemories
from m3build.pipeline.places import Drawn, Place, by_shard
from m3build.pipeline.retrieval_stage import PreparedRetrieval
from m3build.pipeline.shard_stage import ShardedCorpus, StagedShard
from m3build.pipeline.written import texts_of_rows
from m3build.progress import Progress
from m3build_formats.data_directory import DataDirectory
from m3build_formats.manifest import Manifest

GROUPS: Final = 8
CODEC_FIGURES: Final = ("key_error", "value_error")


def measure_drift(
    kept: Manifest,
    limit: float,
    batch_tokens: int,
    model: LoadedModel,
    codec: PreparedCodec,
    retrieval: PreparedRetrieval,
    stored: OldMemories | None,
    code_key: str,
    sharded: ShardedCorpus,
    data: DataDirectory,
    progress: Progress,
) -> Drift | None:
    """How far the new references of a build are from what the codec and the embedder of ``kept`` were made
    from; notes it where that is past ``limit``, a share. None where nothing is new, or neither of them was
    kept or is one that a corpus shapes.

    ``stored`` are the memories that the build could copy, if there are any, ``code_key`` is the build's.
    """
    keeps_codec = codec.file is not None and kept.files.codec == codec.file
    embedder = retrieval.embedder if kept.files.embedder == retrieval.file else None
    if not keeps_codec and not isinstance(embedder, LexicalEmbedder):
        return None
    drawn, count = draw_new(kept, stored, code_key, sharded)
    if not len(drawn):
        return None
    figures: list[Figure] = []
    with progress.stage("drift", len(drawn), "references") as stage:
        if keeps_codec:
            figures += _codec_figures(codec, model, batch_tokens, sharded, drawn)
        if isinstance(embedder, LexicalEmbedder):
            figures.append(_embedder_figure(embedder, sharded, data, drawn))
        stage.advance(len(drawn))
    drift = Drift(count, len(drawn), limit, tuple(figures))
    if (warning := drift.warning()) is not None:
        progress.note(warning)
    return drift


def draw_new(
    kept: Manifest, stored: OldMemories | None, code_key: str, sharded: ShardedCorpus
) -> tuple[Drawn, int]:
    """The new references with the smallest ids, ascending, and how many new ones there are.

    New is what the version ``kept`` has no memory of, so that a build which was stopped on the way draws as
    one which was not. Only shards that the version does not have as they are get looked through.
    """
    warm = [shard for shard in kept.shards if shard.memories is not None and kept.code_key == code_key]
    names = {shard.memories.name for shard in warm if shard.memories is not None}
    whole = set() if kept.cold else {shard.chunks.sha256 for shard in warm}
    count = 0

    def new() -> Iterator[Place]:
        nonlocal count
        for shard in sharded.shards:
            if shard.chunks.sha256 in whole:
                continue
            here = list(_first_here(shard, sharded))
            found_of = (
                stored.of_references(key for key, _, _ in here) if stored is not None else [None] * len(here)
            )
            for place, found in zip(here, found_of, strict=True):
                if found is None or found[0].entry.name not in names:
                    count += 1
                    yield place

    smallest = heapq.nsmallest(HELD_OUT_REFERENCES, new())
    drawn = smallest[: max(JUDGED_REFERENCES, count // HELD_OUT_SHARE)]
    return np.array([place[1:] for place in drawn], np.int32).reshape(-1, 2), count


def _first_here(shard: StagedShard, sharded: ShardedCorpus) -> Iterator[Place]:
    keys = [raw.tobytes() for raw in shard.ids()]
    for row, (key, first) in enumerate(zip(keys, sharded.places.firsts(keys), strict=True)):
        if first == (shard.number, row):
            yield key, shard.number, row


def _codec_figures(
    codec: PreparedCodec,
    model: LoadedModel,
    batch_tokens: int,
    sharded: ShardedCorpus,
    drawn: Drawn,
) -> list[Figure]:
    sample = encode_sample(model, sharded, drawn, batch_tokens, ERROR_QUERIES)
    codes = codes_of(codec.codec, sample)
    new = errors_of(codec.codec, codes, sample, model)
    groups = [errors_of(codec.codec, codes[part], sample.part(part), model) for part in _groups(len(drawn))]
    held_out = codec.facts.get("held_out") or len(drawn)
    return [
        Figure(
            name,
            codec.facts.get(name),
            new[name],
            _standard_error([group[name] for group in groups], len(drawn) / held_out),
        )
        for name in CODEC_FIGURES
    ]


def _embedder_figure(
    embedder: LexicalEmbedder, sharded: ShardedCorpus, data: DataDirectory, drawn: Drawn
) -> Figure:
    texts = [""] * len(drawn)
    for shard, rows, places in by_shard(drawn):
        found = texts_of_rows(data.path, sharded.shards[shard].chunks, rows)
        for at, text in zip(places, found, strict=True):
            texts[at] = text
    groups = [embedder.weight_of(texts[part]) for part in _groups(len(drawn))]
    # At training all texts of a large sample counted: that side adds no error to speak of.
    error = _standard_error(groups, 0.0)
    return Figure("ngram_weight", embedder.weight_at_training(), embedder.weight_of(texts), error)


def _groups(sampled: int) -> list[slice]:
    """Groups of a sample in the order of its ids, which is a random one; none of one that is too small."""
    if sampled < JUDGED_REFERENCES:
        return []
    return [slice(group, None, GROUPS) for group in range(GROUPS)]


def _standard_error(groups: Sequence[float | None], ratio: float) -> float | None:
    """That of the difference between the whole sample and training, from the values of equal groups of the
    sample; ``ratio``: how much larger the sample is than what was measured at training."""
    values = [value for value in groups if value is not None]
    if len(values) < 2:
        return None
    of_sample = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return of_sample * float(np.sqrt(1 + ratio))
