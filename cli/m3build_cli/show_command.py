"""``m3build show``: one chunk, its sources and the tokens that memory heads kept."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import click

from m3build.records import reference_text
from m3build_cli.output import bank_argument, json_option, print_json, source_json, version_option
from m3build_formats.errors import UsageError

if TYPE_CHECKING:
    from m3build.bank import ChunkFacts


@click.command("show")
@bank_argument
@click.argument("chunk")
@click.option(
    "--layer",
    type=int,
    metavar="N",
    help="Mark what heads of this layer kept.  [default: the first memory layer]",
)
@click.option(
    "--head", type=int, metavar="N", help="Mark what this key-value head kept.  [default: all heads together]"
)
@version_option
@json_option
def command(
    bank: Path, chunk: str, layer: int | None, head: int | None, version: int | None, as_json: bool
) -> None:
    """Show CHUNK, an id as search prints it or the start of one: text, sources, and the kept tokens marked.

    Kept tokens are coloured on a terminal and put in [brackets] elsewhere; the more heads kept a token, the
    stronger its colour.

    \b
    Examples:
      m3build show bank/ 3f2a
      m3build show bank/ 3f2a --layer 1 --head 0
    """
    from m3build.bank import open_bank

    with open_bank(bank, version=version) as opened:
        facts = opened.show(chunk)
    text = reference_text(facts.title, facts.text)
    spans = list(zip((0, *facts.token_ends), facts.token_ends, strict=False))
    if as_json:
        print_json(
            {
                "id": facts.id,
                "title": facts.title,
                "text": facts.text,
                "tokens": len(spans),
                "token_spans": [list(span) for span in spans],
                "sources": [source_json(source) for source in facts.sources],
                "kept": [
                    {"layer": at, "head": number, "tokens": facts.kept_tokens(at, number)}
                    for at, number in heads_of(facts)
                ],
            }
        )
        return
    marks = None
    if facts.kept is not None:
        layer = facts.heads[0][0] if layer is None else layer
        # Before anything is printed: it may be a layer without memory.
        marks = kept_by_heads(facts, layer, head)
    click.echo(f"chunk    {facts.id}")
    for source in facts.sources:
        position = f", at {source.position:,}" if source.position else ""
        click.echo(
            f"source   {source.source}{position}, document {source.document}, characters "
            f"{source.start:,} to {source.end:,}"
        )
    click.echo(f"tokens   {len(spans)}")
    if marks is None:
        click.echo("kept     this chunk has no memory yet: it is made at first retrieval\n\n" + text)
        return
    of = f"head {head}" if head is not None else "all heads together"
    click.echo(f"kept     {len(marks)} tokens by layer {layer}, {of}\n")
    colours = sys.stdout.isatty()
    click.echo("".join(_pieces(text, spans, marks, max(marks.values()), colours)))


def heads_of(facts: ChunkFacts) -> tuple[tuple[int, int], ...]:
    """The memory heads of a chunk; none where it has no memory yet."""
    return facts.heads if facts.kept is not None else ()


def kept_by_heads(facts: ChunkFacts, layer: int, head: int | None) -> Counter[int]:
    """How many heads of ``layer`` (or its one ``head``) kept each token. Raises UsageError for a layer or
    head without memory.
    """
    chosen = [(at, number) for at, number in facts.heads if at == layer and (head is None or number == head)]
    if not chosen:
        have = ", ".join(f"{at}:{number}" for at, number in facts.heads)
        asked = f"layer {layer}" if head is None else f"layer {layer}, head {head}"
        raise UsageError(f"no memory in {asked}; this bank has it in (layer:head) {have}")
    return Counter(token for at, number in chosen for token in facts.kept_tokens(at, number))


def _pieces(
    text: str, spans: list[tuple[int, int]], marks: Counter[int], strongest: int, colours: bool
) -> list[str]:
    pieces: list[str] = []
    at = 0
    for token, (start, end) in enumerate(spans):
        piece = text[max(start, at) : end]
        at = max(at, end)
        if token not in marks or not piece:
            pieces.append(piece)
            continue
        # White space that a token begins with stays outside the mark, so that the mark hugs the word.
        bare = piece.lstrip()
        pieces.append(piece[: len(piece) - len(bare)])
        if not colours:
            pieces.append(f"[{bare}]" if bare else "")
        else:
            strong = 2 * marks[token] > strongest
            pieces.append(click.style(bare, fg="black", bg="yellow" if strong else "white", bold=strong))
    return [*pieces, text[at:]]
