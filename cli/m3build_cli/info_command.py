"""``m3build info``: facts from the manifest and the small file of its evaluation, in milliseconds."""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, version_option
from m3build_formats.bank import read_manifest
from m3build_formats.evaluation_file import evaluation_facts
from m3build_formats.info import describe


@click.command("info")
@bank_argument
@version_option
@json_option
def command(bank: Path, version: int | None, as_json: bool) -> None:
    """What a bank holds, what it was made with, how exact it is, and what m3build eval measured. Reads the
    manifest and, if there is one, the evaluation.

    \b
    Example:
      m3build info bank/
      m3build info bank/ --json | jq .chunks
    """
    manifest = read_manifest(bank, version=version)
    facts = {**describe(manifest), "evaluation": evaluation_facts(bank, manifest)}
    if as_json:
        print_json(facts)
        return
    from m3build_cli.info_text import describe_facts

    click.echo(describe_facts(str(bank), facts))
