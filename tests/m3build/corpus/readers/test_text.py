"""Plain text files."""

from __future__ import annotations

from typing import Any

import pytest


def test_a_text_file_is_one_document_as_it_stands(make: Any, read: Any) -> None:
    document = read(make("a.txt", "  one\n\ntwo  \n")).only
    assert (document.id, document.source, document.position) == ("a.txt", "a.txt", 0)
    assert (document.text, document.title, document.headings) == ("  one\n\ntwo  \n", "", ())


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_or_blank_file_is_a_blank_document(make: Any, read: Any, text: str) -> None:
    assert read(make("a.txt", text)).only.text == text


@pytest.mark.parametrize("compression", ["gz", "bz2", "xz", "zst"])
def test_a_compressed_text_keeps_its_whole_name(
    make: Any, read: Any, compress: Any, compression: str
) -> None:
    document = read(make(f"ls.1.{compression}", compress(b".TH LS 1\n", compression))).only
    assert (document.id, document.text) == (f"ls.1.{compression}", ".TH LS 1\n")


def test_a_file_over_the_limit_is_a_reject_that_names_the_option(make: Any, read: Any) -> None:
    path = make("a.txt", "x" * 11)
    assert "--max-document-bytes" in read(path, max_document_bytes=10).reason
    assert read(path, max_document_bytes=11).only.text == "x" * 11
