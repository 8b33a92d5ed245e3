"""What stands before a chunk with ``--title``."""

from __future__ import annotations

from typing import Any

from m3build.chunking import Chunker, ChunkOptions
from m3build.records import Chunk, Document, Heading

BODY = "The fox sleeps in the warm sun for a while, and then it goes on. "


def document(*parts: tuple[int, str], title: str = "") -> Document:
    """A document of headings (level, words), each with some text under it; level 0 is text alone."""
    text = ""
    headings = []
    for level, words in parts:
        if level:
            headings.append(Heading(len(text), level, words))
            text += f"{words}\n\n"
        text += BODY * 12 + "\n\n"
    return Document("id", "source", 0, text, title=title, headings=tuple(headings))


def cut(tokenizer: Any, one: Document, tokens: int = 128) -> list[Chunk]:
    return Chunker(tokenizer, ChunkOptions(tokens, title=True)).cut(one)


def test_the_title_is_the_path_of_headings_above_the_chunks_start(byte_level: Any) -> None:
    chunks = cut(byte_level, document((1, "Fox"), (2, "Sun"), (3, "Sea"), (2, "Dog"), title="Book"))
    titles = list(dict.fromkeys(chunk.title for chunk in chunks))
    assert titles == ["Book", "Book > Fox", "Book > Fox > Sun", "Book > Fox > Sun > Sea", "Book > Fox > Dog"]


def test_a_heading_that_opens_the_chunk_is_not_repeated_before_it(byte_level: Any) -> None:
    for chunk in cut(byte_level, document((1, "Fox"), (2, "Sun"), title="Fox")):
        assert chunk.text.startswith(("Fox", "Sun")) == (
            chunk.title.split(" > ")[-1] != chunk.text.split("\n")[0] and "\n\n" in chunk.text
        )


def test_a_title_that_is_the_first_heading_stands_once(byte_level: Any) -> None:
    chunks = cut(byte_level, document((1, "Fox"), title="Fox"))
    assert chunks[0].title == ""
    assert {chunk.title for chunk in chunks[1:]} == {"Fox"}


def test_without_titles_and_headings_there_is_none(byte_level: Any) -> None:
    assert {chunk.title for chunk in cut(byte_level, document((0, "")))} == {""}


def test_titles_are_off_unless_asked_for(byte_level: Any) -> None:
    assert {chunk.title for chunk in Chunker(byte_level).cut(document((1, "Fox"), title="Book"))} == {""}


def test_a_title_is_one_line(byte_level: Any) -> None:
    assert cut(byte_level, document((0, ""), title=" A\n  title "))[0].title == "A title"


def test_title_and_text_together_keep_to_the_limit_and_the_text_keeps_two_thirds(byte_level: Any) -> None:
    long = "words of a heading that goes on and on " * 5
    for tokens in (16, 32, 128):
        chunks = cut(byte_level, document((1, long), (2, long), (3, "Sea"), title=long), tokens)
        for chunk in chunks:
            assert len(chunk.token_ids) <= tokens
            title_tokens = sum(end <= len(chunk.title) for end in chunk.token_ends)
            assert title_tokens <= tokens / 3
        assert any(chunk.title for chunk in chunks)


def test_a_path_that_is_too_long_loses_its_middle_first_and_its_end_last(byte_level: Any) -> None:
    chunks = cut(
        byte_level,
        document((1, "Fox"), (2, "a section of very many words indeed, and more"), (3, "Sea"), title="Book"),
        64,
    )
    assert chunks[-1].title == "Book > Sea"


def test_ends_of_tokens_count_from_the_title_on(byte_level: Any) -> None:
    chunk = cut(byte_level, document((0, ""), title="Book"))[0]
    assert chunk.reference_text == f"Book\n{chunk.text}"
    assert chunk.token_ends[-1] == len(chunk.reference_text)
