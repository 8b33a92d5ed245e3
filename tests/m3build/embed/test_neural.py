"""The sentence-transformers embedder, with a stand-in for the library."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pytest

from m3build.embed import load_embedder, make_embedder
from m3build.embed.neural import SentenceTransformersEmbedder
from m3build_formats.errors import CorruptError, MismatchError, UsageError


class StandIn:
    """Does what the embedder uses of SentenceTransformer: a vector is the letters of a text, counted."""

    loads: ClassVar[list[dict[str, Any]]] = []
    lengths: ClassVar[list[set[int]]] = []
    max_seq_length = 8
    shift = 0.0

    def __init__(self, model: str, **options: Any) -> None:
        if "missing" in model:
            raise OSError("no such model\nand more")
        self.loads.append({"model": model, **options})

    def tokenizer(self, texts: list[str], truncation: bool, max_length: int) -> dict[str, list[list[int]]]:
        return {"input_ids": [list(range(len(text.split())))[:max_length] for text in texts]}

    def encode_document(self, texts: list[str], **options: Any) -> npt.NDArray[np.float32]:
        assert options["normalize_embeddings"]
        self.lengths.append({len(text.split()) for text in texts})
        counted = np.array(
            [[text.count(letter) + self.shift for letter in "abcdef"] for text in texts], np.float32
        )
        vectors: npt.NDArray[np.float32] = counted / np.maximum(
            1e-9, np.linalg.norm(counted, axis=1, keepdims=True)
        )
        return vectors

    def encode_query(self, texts: list[str], **options: Any) -> npt.NDArray[np.float32]:
        return self.encode_document(texts, **options)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    module = ModuleType("sentence_transformers")
    module.SentenceTransformer = StandIn  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    monkeypatch.setattr(StandIn, "loads", [])
    monkeypatch.setattr(StandIn, "lengths", [])
    return StandIn


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(UsageError, match=r"m3build\[sentence-transformers\]"):
        make_embedder("some/model")


def test_a_model_that_cannot_be_loaded_is_a_usage_error_of_two_lines(library: type[StandIn]) -> None:
    with pytest.raises(UsageError, match="no such model") as caught:
        make_embedder("missing/model")
    assert len(str(caught.value).splitlines()) == 2


def test_only_safetensors_and_no_remote_code(library: type[StandIn]) -> None:
    make_embedder("some/model")
    assert library.loads[0]["trust_remote_code"] is False
    assert library.loads[0]["model_kwargs"] == {"use_safetensors": True}


def test_texts_are_encoded_with_others_of_equal_length_only_and_come_back_in_order(
    library: type[StandIn],
) -> None:
    embedder = make_embedder("some/model")
    texts = ["a b", "c", "d e f", "f", "a a", ""]
    vectors = embedder.embed(texts)
    assert (vectors.dtype, vectors.shape) == (np.float16, (6, 6))
    assert vectors.argmax(axis=1).tolist()[:4] == [0, 2, 3, 5]
    assert all(len(some) == 1 for some in library.lengths)
    assert embedder.embed([]).shape == (0, 6)
    assert embedder.embed_queries(["a"]).dtype == np.float32


def test_a_bank_gets_the_model_back_by_name(library: type[StandIn]) -> None:
    arrays = make_embedder("some/model").to_arrays()
    again = load_embedder(arrays)
    assert again.name == "some/model"
    assert again.fits(arrays)


def test_a_model_directory_is_known_by_its_last_part_only(library: type[StandIn], tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    embedder = SentenceTransformersEmbedder(str(directory))
    assert embedder.name == "my-model"
    assert str(tmp_path).encode() not in b"".join(array.tobytes() for array in embedder.to_arrays().values())


def test_another_model_under_the_same_name_is_a_mismatch(
    library: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = make_embedder("some/model").to_arrays()
    monkeypatch.setattr(StandIn, "shift", 5.0)
    with pytest.raises(MismatchError, match="some/model"):
        load_embedder(arrays)


@pytest.mark.parametrize("name", [b"", b"\xff\xfe", b"/etc/model", b"../model", b"a/b/c", b"."])
def test_a_name_that_cannot_be_is_corrupt(library: type[StandIn], name: bytes) -> None:
    arrays = make_embedder("some/model").to_arrays()
    with pytest.raises(CorruptError):
        load_embedder({**arrays, "sentence-transformers.model": np.frombuffer(name, np.uint8)})
