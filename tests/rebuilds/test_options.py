"""Which options shape a stored memory, given its text: each of them changes the code key, and each other one
stands here with the reason why it does not. An option that is on neither list fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from cheap_builds import cheap_builds, directory_of
from models import save_tiny_model
from small_corpus import build, sentence

from m3build.config import CompileOptions, RunOptions
from m3build.model import load_model
from m3build.pipeline.codec_stage import memory_key

OPTIONS: Final = {*CompileOptions.__dataclass_fields__, *RunOptions.__dataclass_fields__}

# Another value than in BASE for every option that shapes a memory.
SHAPES: Final[dict[str, Any]] = {
    "memory_layers": "1",
    "memory_heads": "0:0;1:0,1",
    "sparse_tokens": "4",
    "reference_bos": "Text:",
    "select": "first",
    "dtype": "bfloat16",
    "codec": "SQ4",
    "codec_scope": "layer",
}
# These take more than another value: a test of their own below.
SHAPES_BY_OTHER_MEANS: Final = ("model", "device", "codec_from", "retrain")
DOES_NOT: Final = {
    "text_field": "which text there is; a memory is of its token ids",
    "id_field": "names documents",
    "title_field": "which text there is",
    "keep_fields": "metadata",
    "encoding": "which text there is",
    "encoding_errors": "which text there is",
    "max_document_bytes": "which text there is",
    "title": "which text there is: a title is part of the reference text",
    "near_duplicates": "which chunks there are",
    "shard_chunks": "where a row lies",
    "reference_tokens": "where texts are cut; a chunk that both cut alike has one memory",
    "embedder": "vectors of retrieval",
    "index": "vectors of retrieval",
    "exclude": "which documents there are",
    "text_only": "when a memory is made",
    "batch_tokens": "how many references run at once",
    "workers": "how many processes do the same work",
    "trust_remote_code": "whether a model may be loaded; what it computes is told by its fingerprint",
    "max_rejects": "when a build stops",
    "drift": "when a build warns",
    "rebuild": "whether other options are allowed",
    "readmit": "which documents there are",
    "allow_shrink": "when a build stops",
    "rehash": "which files are read",
    "embedder_from": "vectors of retrieval",
}
OTHER_VALUES: Final[dict[str, Any]] = {
    "title": True,
    "shard_chunks": 2,
    "reference_tokens": 64,
    "max_document_bytes": 1 << 20,
    "encoding": "latin-1",
    "encoding_errors": "replace",
    "index": "Flat",
    "exclude": ("0.txt",),
    "batch_tokens": 64,
    "workers": 2,
    "max_rejects": "5",
    "drift": "25%",
    "rehash": True,
    "allow_shrink": True,
}
BASE: Final = {"codec": "SQ8", "dtype": "float32", "shard_chunks": 4}


@pytest.fixture(autouse=True)
def cheap() -> Iterator[None]:
    with cheap_builds():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A corpus of six chunks and a bank of it."""
    place = tmp_path_factory.mktemp("options")
    directory_of({f"{i}.txt": sentence(i) for i in range(6)}, place / "corpus")
    with cheap_builds():
        build(place / "corpus", place / "bank", tiny_llama, **BASE)
    return place


def code_key(place: Path, model: Path, to: Path, **options: Any) -> str:
    return str(build(place / "corpus", to / "bank", model, **{**BASE, **options}).manifest.code_key)


@pytest.fixture(scope="module")
def base_key(place: Path) -> str:
    from m3build_formats.bank import read_manifest

    return read_manifest(place / "bank").code_key


def test_every_option_is_on_one_list() -> None:
    listed = [*SHAPES, *SHAPES_BY_OTHER_MEANS, *DOES_NOT]
    assert len(listed) == len(set(listed))
    assert set(listed) == OPTIONS
    assert all(DOES_NOT.values())


@pytest.mark.parametrize("option", SHAPES)
def test_an_option_that_shapes_memories_changes_the_code_key(
    option: str, place: Path, base_key: str, tmp_path: Path, tiny_llama: Path
) -> None:
    assert code_key(place, tiny_llama, tmp_path, **{option: SHAPES[option]}) != base_key


def test_the_other_options_leave_the_code_key_as_it_is(
    place: Path, base_key: str, tmp_path: Path, tiny_llama: Path
) -> None:
    """With the codec taken over, for one that is trained on other texts is another one."""
    assert set(OTHER_VALUES) <= set(DOES_NOT)
    given = {**OTHER_VALUES, "codec_from": str(place / "bank")}
    assert code_key(place, tiny_llama, tmp_path, **given) == base_key


def test_model_and_codec_change_the_code_key(
    place: Path, base_key: str, tmp_path: Path, tiny_llama: Path
) -> None:
    other = save_tiny_model(tmp_path / "model", seed=5)
    keys = {base_key, code_key(place, other, tmp_path / "a")}
    directory_of({f"{i}.txt": sentence(50 + i) for i in range(30)}, tmp_path / "corpus")
    grown = build(tmp_path / "corpus", tmp_path / "b", tiny_llama, **BASE)
    keys.add(grown.manifest.code_key)
    taken = {"codec_from": str(tmp_path / "b")}
    assert code_key(place, tiny_llama, tmp_path / "c", **taken) == grown.manifest.code_key
    build(place / "corpus", tmp_path / "d", tiny_llama, **BASE)
    kept = build(tmp_path / "corpus", tmp_path / "d", tiny_llama, **BASE)
    assert kept.manifest.code_key == base_key
    trained = build(tmp_path / "corpus", tmp_path / "d", tiny_llama, retrain=True, **BASE)
    assert trained.manifest.code_key == grown.manifest.code_key
    assert len(keys) == 3


def test_the_class_of_device_changes_the_code_key(tiny_llama: Path) -> None:
    model = load_model(str(tiny_llama), device="cpu", dtype="float32")
    elsewhere = replace(model, device=torch.device("cuda"))
    assert memory_key(model, "f") != memory_key(elsewhere, "f")
