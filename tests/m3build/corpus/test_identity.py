"""Ids: what they depend on, and what they do not."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus import IdRegistry, SourceOptions, discover, number_equals, read_range, split
from m3build.corpus.identity import content_hash
from m3build.records import Document, Reject


def ids(path: Any, **options: Any) -> list[str]:
    settings = SourceOptions(**options)
    found: list[Document | Reject] = []
    with IdRegistry() as registry:
        for file in discover([str(path)], print):
            for part in split(file, settings):
                found.extend(number_equals(read_range(part, settings), registry))
    return [item.id if isinstance(item, Document) else f"reject: {item.reason}" for item in found]


def test_a_one_document_file_has_its_name_as_id(make: Any, tmp_path: Any) -> None:
    make("a/b.txt", "text")
    assert ids(tmp_path) == ["a/b.txt"]


def test_a_record_has_the_hash_of_its_content_and_equals_are_numbered(make: Any) -> None:
    path = make("a.jsonl", '{"text": "x"}\n{"text": "y"}\n{"text": "x"}\n{"text": "x"}\n')
    x, y = (f"a.jsonl#{content_hash(text, '', {})}" for text in "xy")
    assert ids(path) == [x, y, f"{x}:2", f"{x}:3"]


def test_ids_do_not_depend_on_where_ranges_are_cut(make: Any) -> None:
    path = make("a.jsonl", "".join(json.dumps({"text": str(n % 7)}) + "\n" for n in range(100)))
    expected = ids(path)
    assert len(set(expected)) == 100
    for size in (1, 10, 16, 17, 1000):
        assert ids(path, range_bytes=size) == expected


def test_the_layout_of_a_json_record_does_not_matter(make: Any) -> None:
    path = make(
        "a.jsonl", '{"text":"x","k":{"a":1,"b":2},"z":1}\n{ "k": {"b":2, "a":1}, "z":2, "text": "\\u0078"}\n'
    )
    first, second = ids(path, keep_fields=("k",))
    assert second == f"{first}:2"


def test_formats_agree_on_the_hash_of_a_record(make: Any, tmp_path: Any) -> None:
    make("a.jsonl", '{"text": "x", "title": "t"}\n')
    make("b.csv", "title,text\nt,x\n")
    make("c.json", '[{"title": "t", "text": "x"}]')
    assert len({name.split("#")[1] for name in ids(tmp_path, title_field="title")}) == 1


def test_inserting_a_record_renames_no_other(make: Any, tmp_path: Any) -> None:
    before = ids(make("a.jsonl", '{"text": "x"}\n{"text": "y"}\n'))
    after = ids(make("a.jsonl", '{"text": "new"}\n{"text": "x"}\n{"text": "y"}\n'))
    assert after[1:] == before


@given(
    first=st.tuples(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=2)),
    second=st.tuples(st.text(), st.text(), st.dictionaries(st.text(), st.text(), max_size=2)),
)
def test_only_equal_content_has_equal_hashes(first: Any, second: Any) -> None:
    def encodable(item: Any) -> bool:
        return not any("\ud800" <= character <= "\udfff" for character in repr(item))

    if encodable(first) and encodable(second):
        assert (content_hash(*first) == content_hash(*second)) is (first == second)


def test_the_id_field_is_the_id(make: Any) -> None:
    path = make("a.jsonl", '{"text": "x", "id": "one"}\n{"text": "x", "id": 2}\n')
    assert ids(path, id_field="id") == ["one", "2"]


def test_an_id_given_twice_is_a_reject_even_in_another_file(make: Any, tmp_path: Any) -> None:
    make("a.jsonl", '{"text": "x", "id": "one"}\n')
    make("b.jsonl", '{"text": "y", "id": "one"}\n')
    first, second = ids(tmp_path, id_field="id")
    assert first == "one"
    assert second.startswith("reject: the id 'one'")


@pytest.mark.parametrize("value", ["", "null", '""', "1.5", "true", "[]", '"\\ud800"'])
def test_a_record_without_a_usable_id_is_a_reject(make: Any, value: str) -> None:
    field = f', "id": {value}' if value else ""
    (found,) = ids(make("a.jsonl", f'{{"text": "x"{field}}}\n'), id_field="id")
    assert found.startswith("reject: ")


def test_rejects_pass_through(make: Any) -> None:
    reject = Reject("a", "line 1", "bad")
    with IdRegistry() as registry:
        assert list(number_equals([reject], registry)) == [reject]


def test_the_memory_of_the_registry_does_not_grow_with_the_corpus() -> None:
    document = Document("", "a.jsonl", 0, "")
    peaks = []
    for count in (2_000, 20_000):
        tracemalloc.start()
        with IdRegistry() as registry:
            for number in range(count):
                registry.admit(replace(document, id=f"a.jsonl#{number:016x}"))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 50_000
