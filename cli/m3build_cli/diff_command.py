"""``m3build diff``: what changed between two versions."""

from __future__ import annotations

import click

from m3build_cli.output import json_option, print_json
from m3build_formats.diff import LIMIT, diff_versions


@click.command("diff")
@click.argument("a", metavar="A[@VERSION]")
@click.argument("b", metavar="[B[@VERSION]]", required=False)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    default=LIMIT,
    show_default=True,
    metavar="N",
    help="Name at most N documents; in JSON, N of each kind of change.",
)
@json_option
def command(a: str, b: str | None, limit: int, as_json: bool) -> None:
    """What changed from A to B: documents, texts, files, settings, errors. The text is Markdown, and short
    enough for a comment on a pull request.

    A and B are banks, each with @ and a number for another version than the current one. Without B: from the
    version that the current one was made from; with A@VERSION: from that version to the current one.

    \b
    Examples:
      m3build diff bank/
      m3build diff bank/@3
      m3build diff bank/@3 bank/@5 --limit 50
      m3build diff bank/ other-bank/ --json | jq .documents.added.total
    """
    difference = diff_versions(a, b, limit)
    if as_json:
        print_json(difference.to_json())
        return
    from m3build_cli.diff_text import describe_difference

    click.echo(describe_difference(difference, limit))
