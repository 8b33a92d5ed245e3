"""``m3build search``: chunks by text."""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, source_json, version_option

SHOWN_CHARACTERS = 300


@click.command("search")
@bank_argument
@click.argument("query")
@click.option("-k", "k", type=click.IntRange(min=1), default=5, show_default=True, help="How many chunks.")
@click.option(
    "--continuations", is_flag=True, help="Each chunk is followed by the one with which its document goes on."
)
@click.option("--exact", is_flag=True, help="Compare with every vector instead of asking the index.")
@click.option(
    "--embedder",
    metavar="DIR",
    help="Where the sentence-transformers model of this bank is, if it was a directory.",
)
@version_option
@json_option
def command(
    bank: Path,
    query: str,
    k: int,
    continuations: bool,
    exact: bool,
    embedder: str | None,
    version: int | None,
    as_json: bool,
) -> None:
    """Find the chunks that fit QUERY best.

    \b
    Examples:
      m3build search bank/ "how do I open a file for writing"
      m3build search bank/ "how do I open a file for writing" -k 1 --json
    """
    from m3build.bank import open_bank
    from m3build.embed import make_embedder

    given = make_embedder(embedder) if embedder is not None else None
    with open_bank(bank, version=version, embedder=given) as opened:
        hits = opened.search(query, k, exact=exact, continuations=continuations)[0]
    if as_json:
        print_json(
            {
                "query": query,
                "hits": [
                    {
                        "id": hit.id,
                        "score": hit.score,
                        "title": hit.title,
                        "text": hit.text,
                        "sources": [source_json(source) for source in hit.sources],
                    }
                    for hit in hits
                ],
            }
        )
        return
    if not hits:
        click.echo("nothing found", err=True)
    for number, hit in enumerate(hits, 1):
        first, more = hit.sources[0], len(hit.sources) - 1
        others = f" and {more:,} more" if more else ""
        click.secho(
            f"{number}. {hit.id[:12]}  {hit.score:.2f}  {first.document}, characters {first.start:,} to "
            f"{first.end:,}{others}",
            bold=True,
        )
        text = " ".join(hit.text.split())
        click.echo("   " + (text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"))
