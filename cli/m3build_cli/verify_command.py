"""``m3build verify``: is a bank what its manifest says?"""

from __future__ import annotations

from pathlib import Path

import click

from m3build_cli.output import bank_argument, json_option, print_json, version_option
from m3build_formats.errors import CorruptError
from m3build_formats.layout import VERSIONS_DIRECTORY
from m3build_formats.verify_report import Report


@click.command("verify")
@bank_argument
@version_option
@click.option(
    "--quick", "level", flag_value="quick", help="Only look whether each file is there with its size."
)
@click.option("--default", "level", flag_value="default", default=True, hidden=True)
@click.option(
    "--deep",
    "level",
    flag_value="deep",
    help="Also encode a sample of chunks again and compare with what is stored.",
)
@click.option(
    "--model",
    metavar="DIR_OR_ID",
    help="With --deep: the model, where it is not at the place the bank names.",
)
@click.option(
    "--sample",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    metavar="N",
    help="With --deep: chunks to encode again.",
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda", "mps"]),
    default="auto",
    show_default=True,
    help="With --deep: where the model runs.",
)
@json_option
def command(
    bank: Path, version: int | None, level: str, model: str | None, sample: int, device: str, as_json: bool
) -> None:
    """Check a bank: hash every file, look at every row. Names each bad file and row; exit code 5 if there is
    any.

    \b
    Examples:
      m3build verify bank/
      m3build verify bank/ --quick
      m3build verify bank/ --deep --model path/to/model
    """
    from m3build_formats.verify import verify

    report = verify(bank, level="quick" if level == "quick" else "default", version=version)
    answer: dict[str, object] = {"bank": str(bank), "level": level, **report.to_json()}
    lines = [str(problem) for problem in report.problems]
    deep = None
    if level == "deep" and not report.problems:
        from m3build.deep_verify import verify_deep

        deep = verify_deep(bank, version=version, model=model, sample=sample, device=device)
        answer["deep"] = deep.to_json()
        lines += deep.problems
    answer["ok"] = not lines
    if as_json:
        print_json(answer)
    else:
        for line in lines:
            click.echo(line)
        for name in report.unreachable:
            click.echo(f"{name}: no version names this file (not an error)")
        if not lines:
            click.echo(
                f"{bank}: sound, {report.files_checked:,} files, {report.bytes_checked:,} bytes checked"
            )
            if deep is not None:
                click.echo(deep.describe())
    if lines:
        raise CorruptError(
            f"{bank}: {len(lines)} problem{'s' if len(lines) > 1 else ''} found. Restore the files "
            f"named{_way_out(report)}"
        )


def _way_out(report: Report) -> str:
    """What else can be done than to restore files: only what a manifest names can be made anew."""
    manifests = sum(problem.file.startswith(f"{VERSIONS_DIRECTORY}/") for problem in report.problems)
    ways = []
    if manifests:
        ways.append(
            "give up a version whose manifest is damaged (by m3build rollback where it is the current "
            "one, by m3build gc where it is not)"
        )
    if manifests < len(report.problems) or not manifests:
        ways.append("run m3build compile again, which makes data files anew")
    return ", or " + "; ".join(ways)
