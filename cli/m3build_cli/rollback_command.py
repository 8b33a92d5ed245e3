"""``m3build rollback``: an older version is current again, as a new version."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from m3build.plan import in_decimal_units
from m3build_cli.output import bank_argument, json_option, print_json
from m3build_cli.progress import progress_for
from m3build_formats.bank import list_versions
from m3build_formats.errors import UsageError
from m3build_formats.rollback import WAIT_SECONDS, Rollback, rollback


@click.command("rollback")
@bank_argument
@click.argument("version", required=False, type=click.IntRange(min=1))
@click.option("--to", type=click.IntRange(min=1), metavar="VERSION", help="The version to go back to.")
@click.option(
    "--quick",
    is_flag=True,
    help="Do not hash the version's files, only look whether each is there with its size.",
)
@click.option(
    "--readmit",
    multiple=True,
    metavar="PATTERN",
    help="Bring documents back that compile --exclude took out since by this pattern; repeat for more.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=WAIT_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="Wait this long for another writer to end; then give up with exit code 8.",
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    show_default=True,
    help="How progress is shown on standard error.",
)
@json_option
def command(
    bank: Path,
    version: int | None,
    to: int | None,
    quick: bool,
    readmit: tuple[str, ...],
    wait: float,
    progress: str,
    as_json: bool,
) -> None:
    """Commit a new version that holds what an older one held. Nothing is overwritten or removed, so the way
    forward is a rollback too.

    Documents that were excluded since then come back only if --readmit names each pattern; otherwise the
    exit code is 4.

    All files of the older version are hashed first; exit code 5 if one is damaged or missing.

    \b
    Examples:
      m3build rollback bank/ --to 3
      m3build rollback bank/ 3 --quick
    """
    if version is not None and to is not None and version != to:
        raise click.UsageError(f"back to version {version} or {to}? Name one")
    chosen = to if version is None else version
    if chosen is None:
        there = ", ".join(map(str, list_versions(bank)[-10:])) or "none yet"
        raise UsageError(f"which version? Name one with --to; the newest of {bank} are {there}")

    @contextmanager
    def watch(total: int) -> Iterator[Callable[[int], object]]:
        with progress_for(progress if total else "none").stage("check", total, "bytes") as stage:
            yield stage.advance

    outcome = rollback(bank, chosen, quick=quick, readmit=readmit, wait_seconds=wait, watch=watch)
    if as_json:
        print_json({**outcome.to_json(), "forward": _forward(outcome)})
    else:
        click.echo(_describe(outcome))


def _forward(outcome: Rollback) -> str | None:
    """The command that undoes the rollback."""
    if not outcome.changed or outcome.left_damaged:
        return None
    return f"m3build rollback {shlex.quote(outcome.bank)} --to {outcome.left}"


def _describe(outcome: Rollback) -> str:
    bank, restored = outcome.bank, outcome.restored
    if not outcome.changed:
        same = "" if restored == outcome.version else f"holds the same as version {outcome.version}, which "
        return f"{bank}: version {restored} {same}is current: nothing to do"
    looked = f"{outcome.files_checked:,} files are there" + (
        "" if outcome.quick else f" and sound, {in_decimal_units(outcome.bytes_checked)}"
    )
    lines = [f"{bank}: version {outcome.version} holds what version {restored} held ({looked})"]
    if outcome.left_damaged:
        lines.append(
            f"The manifest of version {outcome.left} is damaged, so nothing leads back to it, and what it "
            "was the first to exclude is not known"
        )
    else:
        lines.append(f"To go forward again: {_forward(outcome)}")
    return "\n".join(lines)
