"""What the commands share: their common options, and JSON on standard output."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from m3build.search import Source

F = TypeVar("F", bound=Callable[..., Any])


class PathOf(click.Path):
    """A path that is not empty: an unset variable of a script must not mean the current directory."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """As ``click.Path`` does."""
        if value == "":
            self.fail("it is empty", param, ctx)
        return super().convert(value, param, ctx)


def not_empty(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Callback of an option that takes a directory or a name."""
    if value == "":
        raise click.BadParameter("it is empty", ctx, param)
    return value


def bank_argument(function: F) -> F:
    """BANK, a directory."""
    return click.argument("bank", type=PathOf(path_type=Path))(function)


def version_option(function: F) -> F:
    """``--at N``: an older version instead of the current one."""
    return click.option(
        "--at",
        "version",
        type=click.IntRange(min=1),
        metavar="VERSION",
        help="Look at this version, not the current one.",
    )(function)


def json_option(function: F) -> F:
    """``--json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")(
        function
    )


def device_option(function: F) -> F:
    """``--device``."""
    return click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda", "mps"]),
        default="auto",
        show_default=True,
        help="Where the model runs.",
    )(function)


def trust_remote_code_option(function: F) -> F:
    """``--trust-remote-code``."""
    return click.option(
        "--trust-remote-code", is_flag=True, help="Allow the model directory to run code of its own."
    )(function)


def print_json(value: object) -> None:
    """One JSON document, keys as they come, any text as it is where standard output can show it."""
    # Escapes of the stream itself would not be JSON.
    unicode = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
    click.echo(json.dumps(value, ensure_ascii=not unicode, indent=2, allow_nan=False))


def source_json(source: Source) -> dict[str, Any]:
    """Where a chunk stands, as JSON."""
    return {
        "document": source.document,
        "source": source.source,
        "position": source.position,
        "start": source.start,
        "end": source.end,
    }
