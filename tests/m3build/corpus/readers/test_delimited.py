"""CSV and TSV: quoting, headers, and rows that are not what they should be."""

from __future__ import annotations

import csv
import io
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus import SourceFile, SourceOptions, read_range
from m3build.corpus.source import SourceRange
from m3build.records import Document


def test_rows_are_records_numbered_from_0(make: Any, read: Any) -> None:
    path = make("a.csv", 'id,text,t\n1,"one, ""1""\nline",T\n\n2,two,\n')
    first, second = read(path, title_field="t", keep_fields=("id",)).documents
    assert (first.position, first.text, first.title, first.metadata) == (
        0,
        'one, "1"\nline',
        "T",
        {"id": "1"},
    )
    assert (second.position, second.text, second.title) == (1, "two", "")


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_found_by_the_header(make: Any, read: Any, separator: str) -> None:
    assert read(make("a.csv", f'n{separator}text\n1{separator}"a{separator}b"\n')).texts == [f"a{separator}b"]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_all_line_ends_are_read(make: Any, read: Any, end: str) -> None:
    assert read(make("a.csv", end.join(["text", "a", '"b', 'c"', ""]))).texts == ["a", f"b{end}c"]


def test_a_header_without_the_text_column_is_one_reject_that_lists_the_columns(make: Any, read: Any) -> None:
    found = read(make("a.csv", "id,body\n1,a\n2,b\n"))
    assert "'body'" in found.reason
    assert found.rejects[0].where == "line 1"
    assert read(make("a.csv", "id,body\n1,a\n"), text_field="body").texts == ["a"]


@pytest.mark.parametrize("header", ["text,text", "n,text,n", "text,t,t"])
def test_a_column_that_is_there_twice_is_a_reject_if_it_is_asked_for(
    make: Any, read: Any, header: str
) -> None:
    path = make("a.csv", f"\n{header}\n{','.join('abc'[: header.count(',') + 1])}\n")
    found = read(path, title_field="t")
    if header == "n,text,n":
        assert found.texts == ["b"]
    else:
        assert "more than one column" in found.reason
        assert found.rejects[0].where == "line 2"


def test_utf_16_without_a_mark_is_said_with_what_to_do(make: Any, read: Any) -> None:
    path = make("a.csv", "n,text\n1,a\n".encode("utf-16-le"))
    assert "give --encoding utf-16-le" in read(path).reason
    assert read(path, encoding="utf-16-le").texts == ["a"]


def test_a_missing_id_column_is_one_reject(make: Any, read: Any) -> None:
    assert "id column" in read(make("a.csv", "text\na\nb\n"), id_field="key").reason


@pytest.mark.parametrize("content", ["", "\n\n", "text\n", "text"])
def test_a_file_without_rows_holds_no_record(make: Any, read: Any, content: str) -> None:
    found = read(make("a.csv", content))
    assert not found.documents
    assert not found.rejects


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("2", "1 fields"),
        ("2,two,extra", "3 fields"),
        ('2,"two" x', "broken row"),
        ('2,"unclosed', "broken row"),
    ],
)
def test_a_bad_row_costs_its_line(make: Any, read: Any, row: str, reason: str) -> None:
    found = read(make("a.csv", f'id,text\n1,one\n{row}\n3,"three"\n4,four\n'))
    assert found.texts == ["one", "three", "four"]
    assert reason in found.reason
    assert found.rejects[0].where == "line 3"


def test_an_unclosed_quote_in_the_last_rows_swallows_none(make: Any, read: Any) -> None:
    found = read(make("a.csv", 'id,text\n1,"open\n2,two\n3,three\n'))
    assert found.texts == ["two", "three"]
    assert found.rejects[0].where == "line 2"


def test_an_unclosed_quote_is_bounded_and_the_rows_after_it_are_read(make: Any, read: Any) -> None:
    rows = "".join(f"{n},text {n}\n" for n in range(5000))
    found = read(make("a.csv", f'id,text\n0,"open\n{rows}'), max_document_bytes=1000)
    assert found.texts == [f"text {n}" for n in range(5000)]
    assert found.rejects[0].where == "line 2"


def test_a_row_over_the_limit_is_one_reject_and_not_held(make: Any, read: Any) -> None:
    path = make("a.csv", "id,text\n1," + "x" * 30_000_000 + "\n2,two\n")
    tracemalloc.start()
    found = read(path, max_document_bytes=1_000_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.texts == ["two"]
    assert "--max-document-bytes" in found.reason
    assert peak < 20_000_000


def test_a_header_over_the_limit_is_one_reject(make: Any, read: Any) -> None:
    assert "--max-document-bytes" in read(make("a.csv", "x" * 5000), max_document_bytes=100).reason


def test_a_file_of_open_quotes_costs_linear_time(
    make: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each line ends in an open quote, whether it begins inside quotes or not.
    from m3build.corpus.readers import delimited

    lines = 0
    inner = delimited._Lines._line

    def counting(self: Any) -> str:
        nonlocal lines
        lines += 1
        return inner(self)

    monkeypatch.setattr(delimited._Lines, "_line", counting)
    found = read(make("a.csv", "id,text\n" + 'x",text,"\n' * 20_000), max_document_bytes=50_000)
    assert lines < 200_000
    assert found.rejects
    assert any(" to " in reject.where for reject in found.rejects)


def test_quotes_in_tsv_are_quotes_where_that_makes_sense_and_characters_where_not(
    make: Any, read: Any
) -> None:
    path = make("a.tsv", 'id\ttext\n1\t"a\tb"\n2\t"Hi" he said\n3\t"open\n4\tfour\n')
    found = read(path)
    assert found.texts == ["a\tb", '"Hi" he said', '"open', "four"]
    assert not found.rejects


def test_commas_in_tsv_are_text(make: Any, read: Any) -> None:
    assert read(make("a.tsv", "id\ttext\n1\ta,b;c\n")).texts == ["a,b;c"]


def test_a_truncated_csv_keeps_whole_rows(make: Any, read: Any, compress: Any) -> None:
    data = b"id,text\n" + b"".join(b"%d,text %d\n" % (n, n * n) for n in range(5000))
    found = read(make("a.csv.gz", compress(data, "gz")[:-3000]))
    assert "truncated" in found.reason
    assert found.texts == [f"text {n * n}" for n in range(len(found.texts))]
    assert len(found.texts) > 100


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)


@given(st.lists(st.tuples(CELLS, CELLS), max_size=8), st.sampled_from([",", "\t"]))
def test_what_the_csv_module_writes_is_read(rows: list[tuple[str, str]], separator: str) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, quoting=csv.QUOTE_ALL)
    writer.writerow(["k", "text"])
    writer.writerows(rows)
    name, form = ("a.tsv", "tsv") if separator == "\t" else ("a.csv", "csv")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, name)
        path.write_bytes(written.getvalue().encode())
        file = SourceFile(str(path), name, 1, form)
        found = list(read_range(SourceRange(file), SourceOptions(keep_fields=("k",))))
    assert all(isinstance(item, Document) for item in found)
    assert [(item.metadata["k"], item.text) for item in found if isinstance(item, Document)] == rows


@given(st.text(alphabet='",;\t\r\n ab', max_size=120), st.integers(5, 60), st.sampled_from(["csv", "tsv"]))
def test_no_text_breaks_the_reader_and_good_rows_around_it_stay(text: str, limit: int, form: str) -> None:
    separator = "," if form == "csv" else "\t"
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "a")
        path.write_bytes(f"k{separator}text\n1{separator}one\n{text}\n\n".encode())
        file = SourceFile(str(path), "a", 1, form)
        found = list(read_range(SourceRange(file), SourceOptions(max_document_bytes=max(limit, 8))))
    assert isinstance(found[0], Document)
    assert found[0].text == "one"
