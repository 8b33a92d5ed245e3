"""Where memory sits: what the caller says, what memory3.json says, the paper's defaults; and what is refused
in each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.model import (
    MemoryShape,
    ModelFacts,
    ShapeRequest,
    parse_heads,
    parse_layers,
    read_memory3,
    resolve_shape,
)
from m3build_formats.errors import UsageError

FACTS = ModelFacts("m", "llama", 9, 8, 2, 16, 128, 256, 1000)


def shape_of(request: ShapeRequest | None = None, **stored: Any) -> MemoryShape:
    return resolve_shape(FACTS, request or ShapeRequest(), stored)


def write_memory3(directory: Path, content: Any) -> Path:
    (directory / "memory3.json").write_text(json.dumps(content), encoding="utf-8")
    return directory


def test_without_a_word_the_shape_is_the_papers() -> None:
    shape = shape_of()
    assert shape.memory_layers == (0, 1, 2, 3)
    assert shape.heads == tuple((layer, head) for layer in range(4) for head in range(2))
    assert (shape.sparse_tokens, shape.reference_tokens) == (8, 128)
    assert (shape.reference_bos, shape.selection) == ("Reference:", "memory3")
    assert (shape.query_tokens, shape.references, shape.continuations) == (64, 5, False)


def test_the_papers_model_gets_the_papers_memories() -> None:
    facts = ModelFacts("Memory3-2B", "llama", 44, 40, 8, 80, 3200, 3200, 60416)
    shape = resolve_shape(facts, ShapeRequest(), {})
    assert (len(shape.memory_layers), shape.kv_heads, shape.sparse_tokens, shape.head_dim) == (22, 8, 8, 80)
    assert len(shape.heads) * 2 * shape.sparse_tokens * shape.head_dim * 2 == 450_560


def test_a_model_of_one_layer_has_one_memory_layer() -> None:
    facts = ModelFacts("m", "llama", 1, 8, 2, 16, 128, 256, 1000)
    assert resolve_shape(facts, ShapeRequest(), {}).memory_layers == (0,)


def test_memory3_json_says_how_a_model_was_trained_to_read() -> None:
    shape = shape_of(
        memory_layers=[4, 6],
        memory_heads={"4": [1]},
        sparse_tokens=32,
        reference_tokens=64,
        reference_bos="Note:",
        selection="observed",
        query_tokens=32,
        references=3,
        continuations=True,
    )
    assert shape.heads == ((4, 1), (6, 0), (6, 1))
    assert (shape.sparse_tokens, shape.reference_tokens, shape.reference_bos) == (32, 64, "Note:")
    assert (shape.selection, shape.query_tokens, shape.references) == ("observed", 32, 3)
    assert shape.continuations is True


def test_what_the_caller_says_comes_before_memory3_json() -> None:
    request = ShapeRequest(
        memory_layers="5", sparse_tokens="4", reference_tokens=32, reference_bos="", selection="last"
    )
    shape = shape_of(request, memory_layers=[1], memory_heads={"1": [0]}, sparse_tokens=9, reference_bos="x")
    assert shape.heads == ((5, 0), (5, 1))
    assert (shape.sparse_tokens, shape.reference_tokens, shape.reference_bos) == (4, 32, "")
    assert shape.selection == "last"


def test_heads_given_alone_make_their_layers_the_memory_layers() -> None:
    assert shape_of(ShapeRequest(memory_heads="7:1;2:0-1")).heads == ((2, 0), (2, 1), (7, 1))
    assert shape_of(memory_heads={"7": [1]}).memory_layers == (7,)


def test_heads_of_a_layer_without_memory_are_refused() -> None:
    with pytest.raises(UsageError, match="layer 7 is not a memory layer"):
        shape_of(ShapeRequest(memory_layers="1,2", memory_heads="7:1"))


def test_all_means_as_many_slots_as_a_reference_has_tokens() -> None:
    assert shape_of(ShapeRequest(sparse_tokens="all")).sparse_tokens == 128
    assert shape_of(ShapeRequest(reference_tokens=50), sparse_tokens="all").sparse_tokens == 50


def test_the_default_keeps_no_more_than_a_short_reference_holds() -> None:
    assert shape_of(ShapeRequest(reference_tokens=5)).sparse_tokens == 5


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (ShapeRequest(memory_layers="0-9"), "no layer 9; the model has layers 0 to 8"),
        (ShapeRequest(memory_layers="3-1"), "runs backwards"),
        (ShapeRequest(memory_layers="a"), "'a' is neither a number nor a range"),
        (ShapeRequest(memory_layers=""), "neither a number nor a range"),
        (ShapeRequest(memory_layers=[-1]), "-1 is not a number"),
        (ShapeRequest(memory_layers=[]), "no layer given"),
        (ShapeRequest(memory_heads="1:2"), "no key-value head 2; the model has heads 0 to 1"),
        (ShapeRequest(memory_heads="1"), "not LAYER:HEADS"),
        (ShapeRequest(memory_heads="1:0;1:1"), "layer 1 is given twice"),
        (ShapeRequest(memory_heads={1: []}), "no heads for layer 1"),
        (ShapeRequest(sparse_tokens=0), "--sparse-tokens must be a number from 1 to 128 or all, not 0"),
        (ShapeRequest(sparse_tokens="some"), "not 'some'"),
        (ShapeRequest(sparse_tokens=129), "from 1 to 128"),
        (ShapeRequest(reference_tokens=256), "--reference-tokens must be a number from 1 to 255"),
        (ShapeRequest(selection="best"), "no selection rule 'best'"),
    ],
)
def test_what_the_model_does_not_have_is_refused(request_: ShapeRequest, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        shape_of(request_)
    assert complaint in str(caught.value)


def test_an_error_in_the_file_is_said_to_be_there() -> None:
    with pytest.raises(UsageError, match=r"memory3\.json: memory_layers: no layer 12"):
        shape_of(memory_layers=[12])
    with pytest.raises(UsageError, match=r"memory3\.json: reference_tokens must be"):
        shape_of(reference_tokens=1000)


def test_a_directory_without_memory3_json_says_nothing(tmp_path: Path) -> None:
    assert read_memory3(tmp_path) == {}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"layers": [1]}, "unknown key 'layers'"),
        ({"memory_layers": "0-3"}, "memory_layers must be a list of integers"),
        ({"memory_layers": [True]}, "memory_layers must be a list of integers"),
        ({"memory_heads": [[0]]}, "memory_heads must be an object"),
        ({"memory_heads": {"4": 1}}, "memory_heads must be an object"),
        ({"sparse_tokens": "8"}, 'sparse_tokens must be an integer or "all"'),
        ({"reference_tokens": 12.5}, "reference_tokens must be an integer"),
        ({"reference_bos": None}, "reference_bos must be a string"),
        ({"selection": 1}, "selection must be a string"),
        ({"codec": 8}, "codec must be a string"),
        ({"query_tokens": []}, "query_tokens must be an integer"),
        ({"references": {}}, "references must be an integer"),
        ({"continuations": 1}, "continuations must be true or false"),
        ([1], "holds an array where an object was expected"),
    ],
)
def test_a_wrong_key_or_type_in_memory3_json_is_named(tmp_path: Path, content: Any, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_memory3(write_memory3(tmp_path, content))
    assert complaint in str(caught.value)


def test_memory3_json_that_is_no_json_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "memory3.json").write_bytes(b"{\xff")
    with pytest.raises(UsageError, match="cannot be read as JSON"):
        read_memory3(tmp_path)


@given(st.sets(st.integers(0, 40), min_size=1))
def test_layers_written_as_a_list_or_as_ranges_are_the_same(layers: set[int]) -> None:
    ordered = sorted(layers)
    ranges, start = [], ordered[0]
    for at, following in zip(ordered, [*ordered[1:], None], strict=True):
        if following != at + 1:
            ranges.append(f"{start}-{at}" if start != at else str(at))
            start = following or 0
    assert parse_layers(",".join(ranges), 41) == parse_layers(ordered, 41) == tuple(ordered)


@given(st.dictionaries(st.integers(0, 20), st.sets(st.integers(0, 7), min_size=1), min_size=1))
def test_heads_written_as_text_or_as_a_mapping_are_the_same(heads: dict[int, set[int]]) -> None:
    text = ";".join(f"{layer}:{','.join(map(str, some))}" for layer, some in heads.items())
    plain = {layer: sorted(some) for layer, some in heads.items()}
    assert parse_heads(text, 21, 8) == parse_heads(plain, 21, 8)
    assert parse_heads({str(k): v for k, v in plain.items()}, 21, 8) == parse_heads(plain, 21, 8)


def test_a_recorded_shape_says_the_same_as_a_memory3_json() -> None:
    shape = shape_of(ShapeRequest(memory_heads="2:1;3:0", sparse_tokens=4))
    record = json.loads(json.dumps(shape.record()))
    model = ("layers", "query_heads", "kv_heads", "head_dim")
    assert resolve_shape(FACTS, ShapeRequest(), {k: v for k, v in record.items() if k not in model}) == shape


def test_shapes_need_no_torch() -> None:
    code = (
        "import m3build.model, m3build.selection as s; sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    paths = [str(Path(p).resolve()) for p in sys.path if p]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"], check=True)
