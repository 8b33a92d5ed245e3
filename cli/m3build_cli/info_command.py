"""``m3build info``: facts from the manifest and the small file of its evaluation, in milliseconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, version_option
from m3build_formats.bank import read_manifest
from m3build_formats.evaluation_file import evaluation_facts
from m3build_formats.info import describe


@click.command("info")
@bank_argument
@click.option(
    "--rejects",
    is_flag=True,
    help="List what was rejected or passed over instead: kind, source, place, reason, with tabs between.",
)
@version_option
@json_option
def command(bank: Path, rejects: bool, version: int | None, as_json: bool) -> None:
    """What a bank holds, what it was made with, how exact it is, and what m3build eval measured. Reads the
    manifest and, if there is one, the evaluation.

    \b
    Examples:
      m3build info bank/
      m3build info bank/ --json | jq .chunks
      m3build info bank/ --rejects
    """
    if rejects:
        _list_rejects(bank, version, as_json)
        return
    manifest = read_manifest(bank, version=version)
    facts = {**describe(manifest), "evaluation": evaluation_facts(bank, manifest)}
    if as_json:
        print_json(facts)
        return
    from m3build_cli.info_text import describe_facts

    click.echo(describe_facts(str(bank), facts))


def _list_rejects(bank: Path, version: int | None, as_json: bool) -> None:
    """A line each; with ``as_json`` a JSON object each, since there may be many."""
    from m3build_cli.printable import escaped
    from m3build_formats.bank import open_bank

    with open_bank(bank, version=version) as files:
        for row in files.rejects():
            if as_json:
                click.echo(json.dumps(asdict(row), ensure_ascii=True))
            else:
                click.echo("\t".join(map(escaped, (row.kind, row.source, row.where, row.reason))))
