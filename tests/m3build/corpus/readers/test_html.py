"""HTML: what a person would read, and nothing that a hostile page wants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3build.corpus.html_text import extract
from m3build.corpus.readers.html import declared_encoding


def text(markup: str) -> str:
    return extract(markup).text


@pytest.mark.parametrize(
    ("markup", "expected"),
    [
        ("<p>one\n  two</p><p>three</p>", "one two\n\nthree"),
        ("<div>one</div><div>two</div>", "one\ntwo"),
        ("one<br>two<br><br>three", "one\ntwo\n\nthree"),
        ("a <b>bold</b>, <i>x</i>y", "a bold, xy"),
        ("<p>a</p>tail", "a\n\ntail"),
        ("<h1>Head</h1>body", "Head\n\nbody"),
        ("&lt;b&gt; &amp; &eacute; &#x4e2d; &nbsp;x", "<b> & é 中 x"),
        ("soft&shy;ware", "software"),
        ("<ul><li>a<li>b<ul><li>c</ul></ul>", "- a\n- b\n  - c"),
        ("<ol start=3><li><p>a</p><p>b</p></li><li>c</ol>", "3. a\n\n  b\n4. c"),
        ("<dl><dt>k<dd><p>v</p><dt>l<dd>w</dl>", "k\nv\n\nl\nw"),
        ("<table><tr><th>A<th>B<tr><td>1<td><p>2</p></table>", "A | B\n1 | 2"),
        ("<table><tr><td>1<td><td>3</table>", "1 |  | 3"),
        ("<table><caption>c</caption><tr><td>1</table>after", "c\n1\n\nafter"),
        ("x<pre>\n  a\n\n    b\n</pre>y", "x\n\n  a\n\n    b\n\ny"),
        ("<pre><span>a</span>\n<span>b</span>\n</pre>", "a\nb"),
        ("<pre>a<br>b</pre>", "a\nb"),
        ("<blockquote>q</blockquote>", "q"),
        ("<p>a<p>b", "a\n\nb"),
        ("plain words", "plain words"),
        ("", ""),
        ("<!-- only a comment -->", ""),
    ],
)
def test_block_structure_becomes_lines(markup: str, expected: str) -> None:
    assert text(markup) == expected


@pytest.mark.parametrize(
    "markup",
    [
        "<script>var x = '<p>no</p>';</script>",
        "<style>p { no }</style>",
        "<nav><ul><li>no</ul></nav>",
        "<div role=navigation>no <p>no</div>",
        "<div class='navheader x'>no</div>",
        "<p hidden>no</p>",
        "<span aria-hidden=true>no</span>",
        "<template>no</template>",
        "<noscript>no</noscript>",
        "<svg><title>no</title><text>no</text></svg>",
        "<select><option>no</select>",
        "<!-- no -->",
    ],
)
def test_what_is_not_content_is_left_out(markup: str) -> None:
    assert text(f"<body><p>before</p>{markup}<p>after</p>") == "before\n\nafter"


def test_self_closed_elements_of_xhtml_swallow_nothing() -> None:
    markup = (
        "<?xml version='1.0'?><html><head><title/><script src='x'/></head><body><a id='y'/><p/>words<br/>more"
    )
    assert text(markup) == "words\nmore"


def test_headings_point_into_the_text_and_pilcrows_are_left_out() -> None:
    markup = (
        "<title> A &amp; B </title><p>x</p><h1>First <a class=headerlink>¶</a></h1>y"
        "<h2>Se<b>co</b>nd\none</h2><h3></h3>"
    )
    extracted = extract(markup)
    assert extracted.title == "A & B"
    assert [(h.level, h.text) for h in extracted.headings] == [(1, "First"), (2, "Second one")]
    assert [extracted.text[h.start :].split("\n")[0] for h in extracted.headings] == ["First", "Second one"]


def test_a_heading_without_words_is_none() -> None:
    assert extract("<h1>\u3000</h1><h2> <b></b></h2>").headings == ()


def test_without_a_title_the_first_h1_is_the_title() -> None:
    assert extract("<h2>two</h2><h1>one</h1>").title == "one"
    assert extract("<p>x").title == ""


@pytest.mark.parametrize(
    ("label", "encoding"),
    [
        ("gb2312", "gb18030"),
        ("iso-8859-1", "cp1252"),
        ("shift_jis", "cp932"),
        ("UTF-8", "utf-8"),
        ("big5", "big5"),
    ],
)
def test_the_encoding_is_the_one_the_page_declares(make: Any, read: Any, label: str, encoding: str) -> None:
    words = "“é”" if encoding == "cp1252" else "漢字"
    page = (
        f'<html><head><meta http-equiv="Content-Type" content="text/html; charset={label}"></head><p>{words}'
    )
    assert read(make("a.html", page.encode(encoding))).only.text == words
    page = f"<html><head><meta charset='{label}'></head><p>{words}"
    assert read(make("b.html", page.encode(encoding)), encoding="latin-1").only.text == words


def test_a_mark_goes_before_a_declaration_and_a_declaration_before_the_option(make: Any, read: Any) -> None:
    page = "<meta charset=latin-1><p>é漢"
    assert read(make("a.html", "\ufeff".encode() + page.encode())).only.text == "é漢"
    assert read(make("b.html", ("\ufeff" + page).encode("utf-16-le"))).only.text == "é漢"
    assert read(make("c.html", "<p>é".encode("latin-1")), encoding="latin-1").only.text == "é"


def test_a_declaration_that_makes_no_sense_is_not_believed(make: Any, read: Any) -> None:
    for label in (b"no-such", b"punycode", b"hex", b"utf-16"):
        assert declared_encoding(b"<meta charset=" + label + b">") in (None, "utf-8")
    assert read(make("a.html", "<meta charset=punycode><p>é")).only.text == "é"


def test_broken_bytes_are_a_reject_or_replaced(make: Any, read: Any) -> None:
    path = make("a.html", b"<meta charset=utf-8><p>a\xffb")
    assert read(path).rejects[0].where == "offset 24"
    assert read(path, encoding_errors="replace").only.text == "a�b"


@pytest.mark.parametrize(
    "markup",
    [
        "<div>" * 100_000 + "deep" + "</div>" * 100_000 + "<p>after",
        "<ul><li>" * 20_000 + "deep" + "<p>after",
        "<table><tr><td>" * 20_000 + "deep" + "<p>after",
        "<b>" * 100_000 + "deep" + "<p>after",
        "<pre>" * 50_000 + "deep" + "</pre>" * 50_000 + "<p>after",
    ],
    ids=["div", "list", "table", "inline", "pre"],
)
def test_nesting_of_any_depth_costs_no_text(markup: str) -> None:
    words = text(markup).replace("|", "").replace("-", "").split()
    assert words == ["deep", "after"]


def test_a_huge_attribute_and_a_huge_text_are_read() -> None:
    assert text(f"<p title='{'x' * 12_000_000}'>a</p><p>{'y' * 12_000_000}</p>") == "a\n\n" + "y" * 12_000_000


def test_no_entity_reaches_a_file_or_expands_without_bound(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("SECRET")
    laughs = "".join(f'<!ENTITY l{n + 1} "{f"&l{n};" * 10}">' for n in range(9))
    entities = f'<!ENTITY x SYSTEM "file://{secret}"><!ENTITY l0 "ha">{laughs}'
    markup = f"<!DOCTYPE html [{entities}]><html><body><p>a &x; &l9; b</p>"
    found = text(markup)
    assert "SECRET" not in found
    assert len(found) < 2 * len(markup)


def test_nothing_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", refuse)
    page = '<!DOCTYPE html SYSTEM "{}/x.dtd"><link rel=stylesheet href="{}/x.css"><p>a<img src="{}/x">'
    markup = page.replace("{}", "http://localhost:9")
    assert text(markup) == "a"


# fmt: off
PIECES = st.sampled_from([
    "<p>", "</p>", "<ul>", "<li>", "</ul>", "<ol>", "<table>", "<tr>", "<td>", "</table>", "<pre>", "</pre>",
    "<nav>", "</nav>", "<h1>", "</h1>", "<title>", "</title>", "<br>", "<dl>", "<dt>", "<dd>", "</dl>",
    "<script>", "</script>", "<!--", "-->", "<![CDATA[", "]]>", "<?", "</", "<", ">", "&amp;", "&#0;",
    "</div>", "&#xd800;", "&#", "&unknown;", "a='", '"', "word", "\n", "漢字", "\0", "\x85",
    "<svg>", "</svg>", "<textarea>",
    "<template>", "</template>", "<body>", "</html>", "<head>", "<frameset>", "<plaintext>",
])
# fmt: on


@given(st.lists(PIECES, max_size=40))
def test_no_markup_breaks_the_reader(pieces: list[str]) -> None:
    extracted = extract(" ".join(pieces))
    extracted.text.encode()
    for heading in extracted.headings:
        assert 0 <= heading.start < len(extracted.text)
        assert extracted.text[heading.start :].split()[0] == heading.text.split()[0]


@given(st.lists(st.sampled_from(["p", "div", "li", "td", "pre", "h2", "b", "dd"]), max_size=12))
def test_every_word_outside_of_scripts_comes_out_once_and_in_order(tags: list[str]) -> None:
    markup = "".join(f"<{tag}>word{n}</{tag}> between{n} " for n, tag in enumerate(tags))
    words = [word for word in text(markup).split() if word not in ("-", "|")]
    assert words == [word for n in range(len(tags)) for word in (f"word{n}", f"between{n}")]
