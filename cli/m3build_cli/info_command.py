"""``m3build info``: facts from the manifest alone, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, version_option
from m3build_formats.bank import read_manifest
from m3build_formats.info import describe


@click.command("info")
@bank_argument
@version_option
@json_option
def command(bank: Path, version: int | None, as_json: bool) -> None:
    """What a bank holds, what it was made with and how exact it is. Reads the manifest only.

    \b
    Example:
      m3build info bank/
      m3build info bank/ --json | jq .chunks
    """
    facts = describe(read_manifest(bank, version=version))
    if as_json:
        print_json(facts)
        return
    from m3build_cli.info_text import describe_facts

    click.echo(describe_facts(str(bank), facts))
