"""The codec of a bank: kept, taken over, or trained on references drawn by hash; with its errors on vectors
that it was not trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from m3build.codec.codec import Codec
from m3build.codec.encoder import TorchEncoder
from m3build.codec.members import few_members
from m3build.codec.presets import Resolved, resolve_codec
from m3build.codec.rows import Scope, codebook_count
from m3build.codec.spec import CodecSpec
from m3build.codec.train import train_codec, training_vectors_wanted
from m3build.config import RunOptions, Settings
from m3build.encode import ReferenceEncoder
from m3build.model import LoadedModel, MemoryShape
from m3build.model.memory3_file import asked_codec
from m3build.pipeline.codec_sample import (
    ERROR_QUERIES,
    HELD_OUT_REFERENCES,
    HELD_OUT_SHARE,
    encode_sample,
    held_out_errors,
)
from m3build.pipeline.ledger import Ledger, piece_key
from m3build.pipeline.memory_stage import Encode
from m3build.pipeline.shard_stage import ShardedCorpus
from m3build.plan import memory_plan, model_shape, write_flops
from m3build.progress import Progress
from m3build_formats.arrays_file import write_arrays
from m3build_formats.bank import open_bank, read_manifest
from m3build_formats.data_directory import DataDirectory
from m3build_formats.errors import CorruptError, MismatchError
from m3build_formats.manifest import FileEntry, Manifest

# A sample is held in memory in float32 while it is trained on, and so bounded in bytes too.
MAX_SAMPLE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class PreparedCodec:
    """A codec that is ready, its file (None for ``none``, which has no arrays) and what the manifest says of
    it.
    """

    codec: Codec
    file: FileEntry | None
    facts: dict[str, Any]

    @property
    def row_bytes(self) -> int:
        """Bytes of a memory row: codes, then one byte a kept position."""
        return self.codec.row_bytes + len(self.codec.heads) * self.codec.slots

    @contextmanager
    def row_encoder(self, model: LoadedModel, batch_tokens: int) -> Iterator[Encode]:
        """A function from token ids of references to their memory rows, to be used until the context is
        left."""
        quantizer = TorchEncoder(self.codec, model.device)

        def encode(
            tokens: Sequence[NDArray[np.uint32]],
        ) -> Iterator[tuple[tuple[int, ...], NDArray[np.uint8]]]:
            with torch.inference_mode():
                for batch in references.encode(tokens):
                    codes = quantizer.encode(batch.keys, batch.values, batch.positions)
                    row = torch.cat([codes, batch.positions.flatten(1).to(codes.device)], dim=1)
                    yield batch.indices, row.cpu().numpy()

        with ReferenceEncoder(model, batch_tokens=batch_tokens) as references:
            yield encode


def prepare_codec(
    settings: Settings,
    run: RunOptions,
    old: Manifest | None,
    model: LoadedModel,
    fingerprint: str,
    sharded: ShardedCorpus,
    data: DataDirectory,
    ledger: Ledger,
    progress: Progress,
) -> PreparedCodec:
    """The codec of the version ``old``, that of ``--codec-from``, or a new one trained on this corpus.

    A build of text only trains none: until memories are there, the codec is ``none``. A damaged codec file of
    ``old`` is made again if this corpus gives the same one. Raises CorruptError where it does not,
    MismatchError when a codec that is taken over was made for memories of another shape.
    """
    if run.codec_from is not None:
        return _taken_over(Path(run.codec_from), model, data)
    if old is not None:
        _refuse_other_shape("the bank", old, model)
    if old is not None and codec_is_open(old):
        old = None
    if old is not None:
        if old.files.codec is None or data.is_sound(old.files.codec):
            codec = Codec.from_arrays(_arrays_of(data, old.files.codec), old.codec)
            return PreparedCodec(codec, old.files.codec, dict(old.codec))
        if settings.text_only:
            raise CorruptError(
                "the bank's codec file is missing or damaged: restore it, or name a bank that has the same "
                "codec with --codec-from"
            )
        progress.note("the bank's codec file is missing or damaged: training it again")
    elif settings.text_only:
        return unquantized(model.shape, settings.codec_scope, asked_codec(settings.codec, model.directory))
    made = _trained(settings, run, model, fingerprint, sharded, data, ledger, progress)
    if old is None:
        return made
    if made.file != old.files.codec:
        raise CorruptError(
            "the bank's codec file is missing or damaged, and these sources give another one: restore the "
            "file, or let --retrain encode all memories anew"
        )
    return PreparedCodec(made.codec, made.file, dict(old.codec))


def _trained(
    settings: Settings,
    run: RunOptions,
    model: LoadedModel,
    fingerprint: str,
    sharded: ShardedCorpus,
    data: DataDirectory,
    ledger: Ledger,
    progress: Progress,
) -> PreparedCodec:
    """A codec trained on this corpus, or found finished by an earlier, stopped build."""
    references = len(sharded.places)
    held_out = min(HELD_OUT_REFERENCES, references // HELD_OUT_SHARE)
    scope: Scope = settings.codec_scope  # type: ignore[assignment]
    resolved = spec_for(settings.codec, scope, model, references - held_out)
    for warning in resolved.warnings:
        progress.note(warning)
    spec = resolved.spec
    wanted = references_wanted(spec, scope, model.shape)
    key = piece_key(
        "codec",
        {
            "memory": memory_key(model, fingerprint),
            "spec": str(spec),
            "scope": scope,
            "sample": _digest(sharded, held_out + wanted),
        },
    )
    if (done := ledger.get(key)) is not None:
        entry = FileEntry.from_json(done["entry"]) if done["entry"] else None
        if entry is None or data.is_sound(entry):
            codec = Codec.from_arrays(_arrays_of(data, entry), done["facts"])
            return PreparedCodec(codec, entry, done["facts"])
    training = min(wanted, references - held_out) if spec.is_trained else 0
    with progress.stage("sample", held_out + training, "references") as stage:
        places = sharded.places
        tested = encode_sample(model, sharded, places.smallest(held_out), run.batch_tokens, ERROR_QUERIES)
        stage.advance(held_out)
        sample = encode_sample(model, sharded, places.smallest(training, held_out), run.batch_tokens)
        stage.advance(training)
    with progress.stage("codec", codebook_count(scope, model.shape.heads), "codebooks") as stage:
        codec = train_codec(
            spec, scope, model.shape.heads, sample.keys, sample.values, sample.positions, model.device.type
        )
        stage.advance(codebook_count(scope, model.shape.heads))
    facts = {
        **codec.facts(),
        "trained_on": {"references": training, "corpus_references": references},
        **few_members(codec, sample.keys, sample.values, sample.positions),
        **held_out_errors(codec, tested, model, progress),
    }
    entry = write_arrays(data, "codec", codec.to_arrays()) if spec.is_trained else None
    ledger.put(key, {"entry": entry.to_json() if entry else None, "facts": facts})
    return PreparedCodec(codec, entry, facts)


def memory_key(model: LoadedModel, fingerprint: str) -> dict[str, Any]:
    """All that shapes the keys, values and kept positions of a reference, given its token ids: the write key
    but for these.
    """
    shape = model.shape
    return {
        "model": fingerprint,
        "rope": model.rope,
        "dtype": str(model.dtype),
        "device": model.device.type,
        "reference_bos_ids": list(model.reference_bos_ids),
        "heads": [list(head) for head in shape.heads],
        "selection": shape.selection,
        "sparse_tokens": shape.sparse_tokens,
    }


def code_key(model: LoadedModel, fingerprint: str, codec: PreparedCodec) -> str:
    """A hash of all that shapes a stored memory given its text."""
    # Not the file alone: that of SQ4 and of SQ8 may hold the same numbers.
    stored = [str(codec.codec.spec), codec.file.sha256 if codec.file else None]
    return piece_key("code", {**memory_key(model, fingerprint), "codec": stored})


def codec_is_open(manifest: Manifest) -> bool:
    """Whether a bank's codec is still to be chosen: one of text only, without a memory or with memories that
    are stored unquantized since there were too few of them to train what was asked for."""
    settings = manifest.sources.get("settings") or {}
    return (
        manifest.files.codec is None
        and settings.get("text_only") is True
        and (manifest.codec.get("wanted", settings.get("codec")) != "none" or manifest.cold == manifest.rows)
    )


def unquantized(shape: MemoryShape, codec_scope: str, wanted: str) -> PreparedCodec:
    """The codec ``none`` of a bank that is to have the codec ``wanted`` once memories are there."""
    scope: Scope = codec_scope  # type: ignore[assignment]
    codec = Codec(CodecSpec(), scope, shape.heads, shape.head_dim, shape.sparse_tokens, {})
    facts = {**codec.facts(), "key_error": None, "value_error": None, "wanted": wanted}
    return PreparedCodec(codec, None, facts)


def check_codec(settings: Settings, run: RunOptions, model: LoadedModel) -> None:
    """Find what is wrong with the codec asked for before any work is done.

    Raises UsageError for a codec that does not fit the model's heads or a bank that is not there,
    MismatchError for one whose codec was made for memories of another shape.
    """
    if run.codec_from is not None:
        _refuse_other_shape(Path(run.codec_from), read_manifest(run.codec_from), model)
    resolve_codec(
        asked_codec(settings.codec, model.directory), model.shape.head_dim, training_vectors=1 << 60
    )


def _taken_over(bank: Path, model: LoadedModel, data: DataDirectory) -> PreparedCodec:
    manifest = read_manifest(bank)
    _refuse_other_shape(bank, manifest, model)
    with open_bank(bank, version=manifest.version) as files:
        codec = Codec.from_arrays(files.codec_arrays(), manifest.codec)
        # Byte for byte: codes and code key belong to this file, and another pyarrow might write it otherwise.
        if (whole := files.whole_file("codec")) is not None:
            data.add_file("codec", whole)
    facts = {name: value for name, value in manifest.codec.items() if name != "wanted"}
    return PreparedCodec(codec, manifest.files.codec, facts)


def _refuse_other_shape(bank: Path | str, manifest: Manifest, model: LoadedModel) -> None:
    there, shape = manifest.codec, model.shape
    expected = ([list(head) for head in shape.heads], shape.head_dim, shape.sparse_tokens)
    if (there["heads"], there["head_dim"], there["slots"]) != expected:
        raise MismatchError(
            f"the codec of {bank} is for {len(there['heads'])} heads of dimension {there['head_dim']} with "
            f"{there['slots']} tokens kept, the model writes {len(shape.heads)} of dimension "
            f"{shape.head_dim} with {shape.sparse_tokens}: it cannot be taken over"
        )


def spec_for(text: str, scope: Scope, model: LoadedModel, references: int) -> Resolved:
    """What a codec string or preset comes to for memories of this model, trained on ``references`` of
    them."""
    vectors = _vectors(model.shape)
    return resolve_codec(
        asked_codec(text, model.directory),
        model.shape.head_dim,
        training_vectors=int(references * (vectors / codebook_count(scope, model.shape.heads))),
        forward_flops=write_flops(
            model_shape(model.facts),
            memory_plan(model.shape, len(model.reference_bos_ids)),
            model.shape.memory_layers[-1],
        ),
        vectors=vectors,
    )


def references_wanted(spec: CodecSpec, scope: Scope, shape: MemoryShape) -> int:
    """How many references a codec is trained on, where there are as many."""
    per_codebook = _vectors(shape) / codebook_count(scope, shape.heads)
    reference_bytes = _vectors(shape) * shape.head_dim * 4
    wanted = int(-(-training_vectors_wanted(spec) // per_codebook))
    return min(wanted, max(1, MAX_SAMPLE_BYTES // reference_bytes))


def _vectors(shape: MemoryShape) -> int:
    """Keys and values of a reference at most."""
    return 2 * len(shape.heads) * shape.sparse_tokens


def _digest(sharded: ShardedCorpus, count: int) -> str:
    digest = hashlib.sha256()
    for key in sharded.places.smallest_ids(count):
        digest.update(key)
    return digest.hexdigest()


def _arrays_of(data: DataDirectory, entry: FileEntry | None) -> dict[str, NDArray[Any]]:
    from m3build_formats.arrays_file import read_arrays

    if entry is None:
        return {}
    return dict(read_arrays(entry, memoryview((data.path / entry.name).read_bytes())))
