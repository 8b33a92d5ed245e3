"""``m3build log``: the versions of a bank, from the manifests alone."""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json
from m3build_formats.bank import list_versions
from m3build_formats.errors import CorruptError, M3Error
from m3build_formats.history import UnreadableVersion, versions


@click.command("log")
@bank_argument
@click.option(
    "-n", "limit", type=click.IntRange(min=1), metavar="N", help="The N newest only.  [default: all]"
)
@json_option
def command(bank: Path, limit: int | None, as_json: bool) -> None:
    """List the versions of a bank, newest first, and what each changed against the one it was made from.

    A version whose manifest is damaged is named in its line; the exit code is then 5.

    \b
    Examples:
      m3build log bank/
      m3build log bank/ -n 3
      m3build log bank/ --json | jq '.versions[0].sha256'
    """
    records = versions(bank, limit)
    total = len(list_versions(bank))
    if as_json:
        print_json({"bank": str(bank), "total": total, "versions": [item.to_json() for item in records]})
    else:
        from m3build_cli.log_text import describe_versions

        click.echo(describe_versions(records, total))
    bad = [item for item in records if isinstance(item, UnreadableVersion)]
    if bad:
        raise _failure(str(bank), bad)


def _failure(bank: str, bad: list[UnreadableVersion]) -> M3Error:
    """An error of the worst kind there is: damage before a newer format or a lack of permission."""
    worst = next((item.error for item in bad if isinstance(item.error, CorruptError)), bad[0].error)
    numbers = ", ".join(str(item.version) for item in bad[:10]) + (" …" if len(bad) > 10 else "")
    return type(worst)(f"{bank}: cannot read version{'s' if len(bad) > 1 else ''} {numbers}")
