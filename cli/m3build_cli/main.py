"""The ``m3build`` command: finds the command's module, runs it, and turns every failure into a message and
its exit code.

Modules of commands are imported only when called, so that ``m3build info`` starts without torch,
transformers, faiss or pyarrow.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import signal
import sys
import tomllib
from pathlib import Path
from types import FrameType
from typing import Any

import click

from m3build.own_process import set_up_process
from m3build_cli.exit_codes import BUG, INTERRUPTED, TERMINATED, Terminated
from m3build_formats.errors import M3Error, UsageError

COMMANDS = {
    "compile": "Compile sources into a bank, or bring a bank up to date.",
    "info": "What a bank holds and what it was made with.",
    "show": "One chunk: text, sources, kept tokens.",
    "search": "Find chunks by text.",
    "calibrate": "Find the layers and heads in which a model can read memories.",
    "verify": "Check that a bank is what its manifest says.",
    "eval": "What a bank is worth: loss with its memories, retrieval, cost; a gate for CI.",
    "log": "The versions of a bank and what each changed.",
    "diff": "What changed between two versions or two banks.",
    "rollback": "Make an older version of a bank current again.",
    "merge": "Make one bank of several, without encoding anything again.",
    "gc": "Remove old versions and the files that only they need.",
}


class Commands(click.Group):
    """Commands by name, each in a module of its own that is imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order a new user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"m3build_cli.{cmd_name}_command").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in ``--help``, without importing any command."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        from m3build_formats.layout import FORMAT_VERSION

        click.echo(f"m3build {version('m3build')} (bank format {FORMAT_VERSION})")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_version,
    help="Print the version and exit.",
)
@click.option("--debug", is_flag=True, help="Print a traceback with every error.")
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read options from this TOML file, one table a command.  [default: m3build.toml, if there]",
)
@click.pass_context
def cli(ctx: click.Context, debug: bool, config: Path | None) -> None:
    """Compile text corpora into banks of Memory³ explicit memories, and look into them.

    \b
    Example:
      m3build compile corpus/ -o bank/ --model path/to/model
      m3build search bank/ "a question"
    """
    chosen = config or Path("m3build.toml")
    if config is not None or chosen.is_file():
        ctx.default_map = _read_config(chosen)


def _read_config(path: Path) -> dict[str, Any]:
    """Tables of options by long name, ``memory-layers`` and ``memory_layers`` alike. Raises UsageError for
    bad TOML, an unknown table or option.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in COMMANDS or not isinstance(table, dict):
            raise UsageError(f"{path}: [{name}] is not a table named after a command ({', '.join(COMMANDS)})")
        parameters = _parameters(name)
        if unknown := sorted(key for key in table if key.replace("_", "-") not in parameters):
            raise UsageError(f"{path}: [{name}] knows no option {', '.join(unknown)}")
        values[name] = {}
        for key, value in table.items():
            option = parameters[key.replace("_", "-")]
            # An option that may be repeated takes a list; one value alone is meant as a list of one.
            one = option.multiple and not isinstance(value, list)
            values[name][option.name or ""] = [value] if one else value
    return values


def _parameters(command: str) -> dict[str, click.Option]:
    """Options of a command by each of their long names, without the dashes."""
    found = cli.get_command(click.Context(cli), command)
    options = [p for p in found.params if isinstance(p, click.Option)] if found else []
    return {long.removeprefix("--"): p for p in options for long in p.opts if long.startswith("--")}


def _on_sigterm(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


def run(arguments: list[str] | None = None) -> None:
    """Entry point of the console script: never returns, ends with the exit code of what happened."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    set_up_process()
    signal.signal(signal.SIGTERM, _on_sigterm)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Names and texts come in any script, whatever the locale can show.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(args=given, prog_name="m3build", standalone_mode=False)
        sys.stdout.flush()
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        _end("interrupted: run the same command again to go on", INTERRUPTED, debug)
    except KeyboardInterrupt:
        _end("interrupted: run the same command again to go on", INTERRUPTED, debug)
    except Terminated:
        _end("terminated: run the same command again to go on", TERMINATED, debug)
    except click.ClickException as error:
        error.show(sys.stderr)
        sys.exit(error.exit_code)
    except M3Error as error:
        _end(str(error), error.exit_code, debug)
    except BrokenPipeError:
        # The reader of our output has gone (``m3build show … | head``): nothing to say, and nobody to say it
        # to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _end("out of memory: lower --batch-tokens or --shard-chunks, or use a larger machine", 6, debug)
    except OSError as error:
        _end(_words(error), 6, debug)
    except Exception as error:  # noqa: BLE001 - the outermost place: whatever else comes here is a bug and says so
        _end(
            f"a bug in m3build: {type(error).__name__}: {error}. Run again with --debug for a traceback",
            BUG,
            debug,
        )


def _words(error: OSError) -> str:
    said = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        said += "; make room for the bank and for temporary files, then run the same command again to go on"
    return said


def _end(message: str, code: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exc()
    click.echo(f"m3build: {message}", err=True)
    sys.exit(code)


if __name__ == "__main__":
    run()
