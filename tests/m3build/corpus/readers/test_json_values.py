"""JSON arrays and sequences of values, an element at a time."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.readers.json_values import ValueScanner
from m3build.corpus.source import BadInput


def test_the_elements_of_an_array_are_records(make: Any, read: Any) -> None:
    found = read(
        make("a.json", ' [ {"text": "a, [b] {c} \\" \\\\"} ,\n{"text":"d","k":{"x":[1,{}]}}]\n'),
        keep_fields=("k",),
    )
    assert found.texts == ['a, [b] {c} " \\', "d"]
    assert [document.position for document in found.documents] == [0, 1]
    assert found.documents[1].metadata == {"k": {"x": [1, {}]}}
    assert not found.rejects


def test_pretty_printed_objects_in_a_row_are_records(make: Any, read: Any) -> None:
    path = make("a.json", '{\n  "text": "a"\n}\n{\n  "text": "b"\n}{"text": "c"}\n')
    assert read(path).texts == ["a", "b", "c"]


def test_one_object_is_one_record(make: Any, read: Any) -> None:
    assert read(make("a.json", '{\n "text": "a"\n}')).texts == ["a"]


def test_an_empty_array_holds_no_record(make: Any, read: Any) -> None:
    found = read(make("a.json", "[\n]"))
    assert not found.documents
    assert not found.rejects


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ('{"text" "b"}', "broken JSON"),
        ('{"text": "b"] ', "broken JSON"),
        ("1", "not a JSON object"),
        ("", "broken JSON"),
        ('{"text": null}', "null"),
        ('{"text": "\\ud800"}', "surrogate"),
        ("[" * 50_000 + "]" * 50_000, "nested"),
        ('{"text": "a"} {"text": "b"}', "broken JSON"),
        ('{"text": "' + "x" * 200_000 + '"}', "--max-document-bytes"),
        ('{"text": "b", "k": [' + '{"x": 1},' * 20_000 + "0]}", "--max-document-bytes"),
    ],
)
def test_a_bad_element_costs_itself(make: Any, read: Any, element: str, reason: str) -> None:
    found = read(
        make("a.json", f'[{{"text": "one"}}, {element}, {{"text": "three"}}]'), max_document_bytes=150_000
    )
    assert found.texts == ["one", "three"]
    assert reason in found.reason
    assert found.rejects[0].where == "element 1"
    assert found.documents[1].position == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('[{"text": "one"}, {"text": "tw', "truncated"),
        ('[{"text": "one"}, ', "truncated"),
        ('[{"text": "one"}] x', "behind the end"),
        ('[{"text": "one"}] [{"text": "two"}]', "behind the end"),
    ],
)
def test_a_broken_end_is_one_reject_and_what_came_before_stays(
    make: Any, read: Any, content: str, reason: str
) -> None:
    found = read(make("a.json", content))
    assert found.texts == ["one"]
    assert reason in found.reason


def test_a_file_without_json_is_a_reject(make: Any, read: Any) -> None:
    assert "no JSON" in read(make("a.json", " \n")).reason


def test_a_long_array_and_a_long_element_are_not_held(make: Any, read: Any) -> None:
    path = make("a.json", "[" + '{"text": "x"},' * 5_000 + f'{{"text": "{"y" * 4_000_000}"}}]')
    from m3build.corpus import SourceOptions, discover, read_range, split

    options = SourceOptions(max_document_bytes=200_000)
    (file,) = discover([str(path)], print)
    tracemalloc.start()
    count = sum(1 for part in split(file, options) for _ in read_range(part, options))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 5_001
    assert peak < 2_500_000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def pieces(text: str, sizes: list[int]) -> Iterator[str]:
    position = number = 0
    while position < len(text):
        size = sizes[number % len(sizes)]
        yield text[position : position + size]
        position, number = position + size, number + 1


@given(
    values=st.lists(JSON, max_size=6),
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    indent=st.sampled_from([None, 0, 2]),
    is_ascii=st.booleans(),
)
def test_elements_are_found_wherever_the_pieces_end(
    values: list[Any], sizes: list[int], indent: int | None, is_ascii: bool
) -> None:
    text = json.dumps(values, indent=indent, ensure_ascii=is_ascii)
    found = list(ValueScanner(10_000, None).values(pieces(text, sizes)))
    assert [json.loads(value or "") for value in found] == values


@given(st.text(alphabet='[]{}",\\ \na1:', max_size=80), st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_where_the_pieces_end_changes_nothing_even_in_nonsense(text: str, sizes: list[int]) -> None:
    def run(texts: Iterable[str]) -> list[str | None]:
        found: list[str | None] = []
        try:
            for value in ValueScanner(30, None).values(texts):
                found.append(value)  # noqa: PERF402  what came before an error counts
        except BadInput as error:
            found.append(str(error))
        return found

    assert run(pieces(text, sizes)) == run([text])
