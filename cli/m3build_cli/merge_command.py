"""``m3build merge``: one bank of several."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from m3build_cli.output import PathOf, json_option, print_json
from m3build_cli.progress import progress_for

if TYPE_CHECKING:
    from m3build.pipeline.merge_result import MergeResult


@click.command("merge")
@click.argument("banks", nargs=-1, metavar="BANK BANK...", type=PathOf(path_type=Path))
@click.option(
    "-o",
    "--output",
    "out",
    type=PathOf(path_type=Path),
    help="The new bank: a directory that is not there, or empty.",
)
@click.option(
    "--prefer",
    type=click.Choice(["first", "last"]),
    help="Where banks hold different documents under one id, take that of the first or last bank named, "
    "instead of stopping with exit code 3.",
)
@click.option("--embedder-from", metavar="BANK", help="Take over the embedder of this bank.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    show_default=True,
    help="How progress is shown on standard error.",
)
@json_option
def command(
    banks: tuple[Path, ...],
    out: Path | None,
    prefer: Literal["first", "last"] | None,
    embedder_from: str | None,
    progress: str,
    as_json: bool,
) -> None:
    """Make a new bank of the documents of several, without encoding anything again.

    The banks must have been made with one model, one codec (compile with --codec-from) and the same options
    for memory and chunks. A document that several of them hold is taken once. Embeddings and index are made
    anew from the text.

    \b
    Examples:
      m3build merge news/ wiki/ -o all/
      m3build merge old/ new/ -o all/ --prefer last
    """
    if out is None:
        raise click.UsageError("where to? Name the new bank's directory with -o")
    from m3build.pipeline.merge import merge_banks

    result = merge_banks(
        banks, out, prefer=prefer, embedder_from=embedder_from, progress=progress_for(progress)
    )
    if as_json:
        print_json(result.to_json())
        return
    for line in _lines(result):
        click.echo(line)


def _lines(result: MergeResult) -> Iterator[str]:
    from m3build.plan import in_both_units
    from m3build_cli.compile_text import rejected

    facts = result.to_json()["info"]
    yield (
        f"{result.bank}: version {facts['version']}, {facts['documents']:,} documents, "
        f"{facts['chunks']:,} chunks, {facts['tokens']:,} tokens, "
        f"{facts['shards']} shard{'s' if facts['shards'] != 1 else ''} in {result.seconds:,.1f} s"
    )
    for bank in result.banks:
        yield f"  from        {bank['name']}, version {bank['version']}: {bank['documents']:,} documents"
    if result.shared:
        yield f"  shared      {result.shared:,} documents that a further bank held too"
    if result.replaced:
        yield f"  replaced    {result.replaced:,} documents, by another bank's of the same id"
    yield (
        f"  copied      {result.copied:,} memories"
        + (f", {result.repeated:,} repeated" if result.repeated else "")
        + ", none encoded"
    )
    yield f"  on disk     {in_both_units(facts['bytes']['total'])}"
    if facts["rejects"]:
        yield f"  rejected    {rejected(facts)}"
