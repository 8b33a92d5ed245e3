"""``m3build gc``: removes old versions and what only they need."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

from m3build.plan import in_decimal_units
from m3build_cli.output import bank_argument, json_option, print_json
from m3build_formats.gc import GcReport, collect

SHOWN_FOREIGN = 20


@click.command("gc")
@bank_argument
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the newest N versions.  [default: 10; with --purge 1]",
)
@click.option(
    "--grace",
    metavar="TIME",
    help="Spare versions that were current, and files that were made, this short ago: 30s, 15m, 1h, 7d.  "
    "[default: 1h; with --purge none]",
)
@click.option(
    "--purge",
    is_flag=True,
    help="For a take-down: keep the current version alone, without a grace period, and empty build/.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be removed, and remove nothing.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="SECONDS",
    help="Wait this long for another writer to end, instead of giving up at once with exit code 8.",
)
@json_option
def command(
    bank: Path, keep: int | None, grace: str | None, purge: bool, dry_run: bool, wait: float, as_json: bool
) -> None:
    """Remove versions that are no longer wanted, and the files that only they need. The current version
    always stays, and readers that are open keep theirs.

    \b
    Examples:
      m3build gc bank/ --keep 3
      m3build gc bank/ --keep 3 --grace 7d --dry-run
      m3build gc bank/ --purge
    """
    report = collect(bank, keep=keep, grace=grace, purge=purge, dry_run=dry_run, wait_seconds=wait)
    if as_json:
        print_json(report.to_json())
        return
    for line in _lines(report):
        click.echo(line)


def _lines(report: GcReport) -> Iterator[str]:
    removed = "would remove" if report.dry_run else "removed"
    versions = _versions(report.removed)
    yield (
        f"{report.bank}: {removed} {versions} and {_count(report.files, 'data file')}, "
        f"{in_decimal_units(report.bytes_freed)}; kept {_versions(report.kept)}"
    )
    if report.unreadable:
        yield f"  {removed} with a damaged manifest: {_versions(report.unreadable)}"
    if report.grace_versions:
        yield f"  spared by the grace period: {_versions(report.grace_versions)}"
    if report.grace_files:
        yield f"  spared by the grace period: {_count(report.grace_files, 'file')} that no kept version names"
    for name in report.foreign[:SHOWN_FOREIGN]:
        yield f"  {name}: not made by m3build, left alone"
    if len(report.foreign) > SHOWN_FOREIGN:
        yield f"  … and {len(report.foreign) - SHOWN_FOREIGN:,} more such names"
    if report.purge:
        yield from _purge_lines(report)


def _purge_lines(report: GcReport) -> Iterator[str]:
    if report.build_files:
        yield f"  build/: {_count(report.build_files, 'file')} of earlier builds among what is freed"
    if report.shared_files:
        yield (
            f"  {_count(report.shared_files, 'file')} of removed versions stay: the current one has the very "
            "same (files are named by their content)"
        )
    retrain = False
    for name, training in (("codec", report.codec), ("embedder", report.embedder)):
        if training is not None:
            words = {
                "no": "was not trained on documents that have left",
                "may": "may have been trained on documents that have left",
                "unknown": "cannot be told from manifests whether it was trained on documents that have left",
            }[training.left]
            yield f"  {name}: {words} ({training.reason})"
            retrain |= training.left != "no"
    if retrain:
        yield (
            "    What is trained can keep traces of what few others resemble. m3build compile SOURCES "
            f"-o {report.bank} --retrain"
        )
        yield "    makes both anew from what is there now; then purge once more."
    yield "  beyond reach of a purge:"
    for line in report.linked:
        yield f"    {line} has another name on this disk, where its contents live on"
    for line in report.beyond_reach:
        yield f"    {line}"


def _versions(numbers: tuple[int, ...]) -> str:
    if not numbers:
        return "no version"
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    listed = ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
    return f"version{_s(numbers)} {listed}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _s(numbers: tuple[int, ...]) -> str:
    return "" if len(numbers) == 1 else "s"
