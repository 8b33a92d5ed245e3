"""The embedder and the trained part of the index: kept, taken over, or fitted on references drawn by hash."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from m3build.config import RunOptions, Settings
from m3build.embed import Embedder, load_embedder, make_embedder
from m3build.embed.base import Arrays
from m3build.embed.lexical import NAME as LEXICAL
from m3build.index import IndexState, check_dimensions, choose_spec
from m3build.pipeline.shard_stage import ShardedCorpus
from m3build.pipeline.vector_stage import FIT_REFERENCES, sample_texts, train_index
from m3build.progress import Progress, Stage
from m3build_formats.arrays_file import read_arrays, write_arrays
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import CorruptError, MismatchError
from m3build_formats.manifest import FileEntry, Manifest


@dataclass(frozen=True, slots=True)
class PreparedRetrieval:
    """An embedder and an index state that are ready, and the file that holds both."""

    embedder: Embedder
    state: IndexState
    file: FileEntry


def check_retrieval(settings: Settings, run: RunOptions) -> None:
    """Find what is wrong with embedder and index asked for before any work is done. Raises UsageError."""
    spec = choose_spec(settings.index, 0)
    if run.embedder_from is not None:
        read_manifest(run.embedder_from)
    check_dimensions(spec, make_embedder(settings.embedder).dim)


def prepare_retrieval(
    settings: Settings,
    run: RunOptions,
    old: Manifest | None,
    sharded: ShardedCorpus,
    data: DataDirectory,
    progress: Progress,
) -> PreparedRetrieval:
    """Embedder and index state of the version ``old``, those of ``--embedder-from``, or new ones fitted on
    this corpus.

    Both are kept together: coarse centroids belong to one embedder's vectors. A damaged file of ``old`` is
    made again if this corpus gives the same one; raises CorruptError where it does not.
    """
    if run.embedder_from is not None:
        with open_bank(run.embedder_from) as files:
            arrays = files.embedder_arrays()
            embedder = _embedder_of(arrays, settings.embedder, run.embedder_from)
            whole, entry = files.whole_file("embedder"), files.manifest.files.embedder
            if whole is None or entry is None:
                raise MismatchError(f"{run.embedder_from} has no embedder to take over")
            data.add_file("embedder", whole)
            return PreparedRetrieval(embedder, IndexState.from_arrays(arrays), entry)
    kept = old.files.embedder if old is not None else None
    if kept is not None and data.is_sound(kept):
        arrays = dict(read_arrays(kept, memoryview((data.path / kept.name).read_bytes())))
        embedder = _embedder_of(arrays, settings.embedder, "the bank")
        return PreparedRetrieval(embedder, IndexState.from_arrays(arrays), kept)
    if kept is not None:
        progress.note("the bank's embedder file is missing or damaged: fitting it again")
    made = _fitted(settings, sharded, data, progress)
    if kept is not None and made.file != kept:
        raise CorruptError(
            "the bank's embedder file is missing or damaged, and these sources give another one: restore the "
            "file, or let --retrain make embedder and index anew"
        )
    return made


def _fitted(
    settings: Settings, sharded: ShardedCorpus, data: DataDirectory, progress: Progress
) -> PreparedRetrieval:
    """An embedder and an index state made from this corpus."""
    embedder = make_embedder(settings.embedder)
    count = min(FIT_REFERENCES, len(sharded.places))
    with progress.stage("fit", count, "references") as stage:
        embedder.fit(_counted(sample_texts(sharded.places, sharded.shards, data.path, count), stage))
    rows = sum(shard.rows for shard in sharded.shards)
    state = train_index(settings.index, rows, embedder, sharded.places, sharded.shards, data.path)
    file = write_arrays(data, "embedder", {**embedder.to_arrays(), **state.to_arrays()})
    return PreparedRetrieval(embedder, state, file)


def _embedder_of(arrays: Arrays, name: str, bank: str) -> Embedder:
    """The embedder that wrote ``arrays``: by the name that was asked for where there is one, since a bank
    keeps no path of a model.
    """
    if name == LEXICAL:
        return load_embedder(arrays)
    embedder = make_embedder(name)
    if not embedder.fits(arrays):
        raise MismatchError(
            f"{bank} was embedded by another embedder than {name}: its vectors cannot be compared"
        )
    return embedder


def _counted(texts: Iterable[str], stage: Stage) -> Iterator[str]:
    for text in texts:
        yield text
        stage.advance(1)
