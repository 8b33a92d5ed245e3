"""``m3build show``: one chunk, its sources and the tokens that memory heads kept."""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, version_option


@click.command("show")
@bank_argument
@click.argument("chunk")
@click.option("--layer", type=int, metavar="N", help="Mark what heads of this layer kept.  [default: the first memory layer]")
@click.option("--head", type=int, metavar="N", help="Mark what this key-value head kept.  [default: all heads together]")
@version_option
@json_option
def command(bank: Path, chunk: str, layer: int | None, head: int | None, version: int | None, as_json: bool) -> None:
    """Show CHUNK, an id as search prints it or the start of one: text, sources, and the kept tokens marked.

    Kept tokens are coloured on a terminal and put in [brackets] elsewhere; the more heads kept a token, the stronger its colour.

    \b
    Examples:
      m3build show bank/ 3f2a
      m3build show bank/ 3f2a --layer 1 --head 0
    """
    from m3build.chunk_view import marked_tokens, view_chunk
    from m3build_formats.bank import open_bank

    with open_bank(bank, version=version) as files:
        view = view_chunk(files, chunk)
    if as_json:
        print_json(view.to_json())
        return
    click.echo(f"chunk    {view.id}")
    for source in view.sources:
        position = f", at {source.position:,}" if source.position else ""
        click.echo(f"source   {source.source}{position}, document {source.document}, characters {source.start:,} to {source.end:,}")
    click.echo(f"tokens   {len(view.spans)}")
    if not view.kept:
        click.echo("kept     this bank holds no memories\n\n" + view.text)
        return
    shown = min(at for at, _ in view.kept) if layer is None else layer
    marks = marked_tokens(view, shown, head)
    of = f"head {head}" if head is not None else "all heads together"
    click.echo(f"kept     {len(marks)} tokens by layer {shown}, {of}\n")
    strongest = max(marks.values())
    colours = click.get_text_stream("stdout").isatty()
    click.echo("".join(_pieces(view.text, view.spans, marks, strongest, colours)))


def _pieces(
    text: str, spans: tuple[tuple[int, int], ...], marks: dict[int, int], strongest: int, colours: bool
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
