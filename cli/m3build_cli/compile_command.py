"""``m3build compile``: options in, one library call, a summary out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import click

from m3build.config import CompileOptions, RunOptions
from m3build.progress import Progress
from m3build_cli.output import (
    PathOf,
    device_option,
    json_option,
    not_empty,
    print_json,
    trust_remote_code_option,
)
from m3build_cli.progress import progress_for
from m3build_cli.result_file import result_file
from m3build_formats.errors import MismatchError

SELECTIONS = "memory3, memory3-exp, value-norm, observed, key-norm, random, first, last"


@click.command("compile")
@click.argument("sources", nargs=-1, metavar="SOURCES...")
@click.option(
    "-o",
    "--output",
    "bank",
    type=PathOf(path_type=Path),
    help="The bank: a directory, made if it is not there.",
)
@click.option(
    "--model",
    metavar="DIR_OR_ID",
    callback=not_empty,
    help="A transformers directory or hub id; safetensors only.  [default: m3-mini, part of m3build]",
)
@click.option("--plan", is_flag=True, help="Print what the build would cost, then stop.")
@click.option(
    "--references",
    type=float,
    metavar="N",
    help="With --plan: plan for this many references instead of counting the sources'.",
)
@click.option("--text-field", metavar="NAME", help="Field of records that holds the text.  [default: text]")
@click.option(
    "--id-field",
    metavar="NAME",
    help="Field that names a document.  [default: path, or path and content hash]",
)
@click.option("--title-field", metavar="NAME", help="Field that holds a document's title.")
@click.option(
    "--keep-field",
    "keep_fields",
    multiple=True,
    metavar="NAME",
    help="Field to keep as metadata; repeat for more.",
)
@click.option(
    "--encoding", metavar="NAME", help="Encoding of text files without a byte order mark.  [default: utf-8]"
)
@click.option(
    "--encoding-errors",
    type=click.Choice(["strict", "replace"]),
    help="Reject records with undecodable bytes, or replace them.  [default: strict]",
)
@click.option(
    "--max-document-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Reject longer documents.  [default: 67108864]",
)
@click.option(
    "--max-rejects",
    default="1%",
    metavar="N|P%",
    show_default=True,
    help="Stop with exit code 3 past this many rejects, or this share at the end of input.",
)
@click.option(
    "--title/--no-title", default=None, help="Put the title or heading path before each chunk's text."
)
@click.option(
    "--near-duplicates",
    type=float,
    metavar="S",
    help="Leave out chunks this similar to an earlier one (0.9, say); needs the near-duplicates extra.",
)
@click.option(
    "--reference-tokens",
    type=int,
    metavar="N",
    help="Tokens of a chunk at most.  [default: the model's, 128]",
)
@click.option(
    "--shard-chunks",
    type=int,
    metavar="N",
    help="Chunks of a shard at least; four times as many at most.  [default: 4096]",
)
@click.option(
    "--memory-layers",
    metavar="LIST",
    help="Layers that hold memory, such as 0-3,6.  [default: the model's, else the first half]",
)
@click.option(
    "--memory-heads", metavar="LIST", help="Key-value heads by layer, such as 4:0,1;5:2.  [default: all]"
)
@click.option("--sparse-tokens", metavar="N|all", help="Tokens kept a head.  [default: the model's, 8]")
@click.option(
    "--reference-bos",
    metavar="TEXT",
    help="Text put before every reference when it is encoded.  [default: the model's, Reference:]",
)
@click.option(
    "--select",
    metavar="NAME",
    help=f"Rule that chooses kept tokens: {SELECTIONS}.  [default: the model's, memory3]",
)
@click.option(
    "--codec",
    metavar="SPEC",
    help="Vector quantizer: auto (what the model's memory3.json names, else what encodes fast), memory3, "
    "memory3-small, none, or FAISS notation.  [default: auto]",
)
@click.option(
    "--codec-scope",
    type=click.Choice(["all", "kind", "layer", "head"]),
    help="What shares a codebook.  [default: kind]",
)
@click.option("--codec-from", metavar="BANK", help="Take over the codec of another bank.")
@click.option(
    "--text-only/--warm",
    default=None,
    help="Make chunks and index only, and each memory when it is first retrieved; or all of them now.",
)
@click.option(
    "--embedder",
    metavar="NAME",
    help="lexical, or a sentence-transformers directory or hub id.  [default: lexical]",
)
@click.option("--embedder-from", metavar="BANK", help="Take over the embedder of another bank.")
@click.option(
    "--index", metavar="SPEC", help="auto, or a FAISS factory string such as IVF1024,SQ8.  [default: auto]"
)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32", "float16"]),
    help="Arithmetic of the model.  [default: bfloat16 where native, else float32]",
)
@device_option
@click.option(
    "--batch-tokens",
    type=click.IntRange(min=1),
    default=16384,
    show_default=True,
    metavar="N",
    help="Tokens in flight at most, and 4,096 a core of a CPU; bounds memory.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Processes that read, cut, tokenize and embed.  [default: one a core, at most 8]",
)
@trust_remote_code_option
@click.option(
    "--rebuild", is_flag=True, help="Build anew with these options even if the bank was built with others."
)
@click.option("--retrain", is_flag=True, help="Make a new codec, embedder and index from these sources.")
@click.option(
    "--drift",
    default="10%",
    metavar="P%",
    show_default=True,
    help="Warn where codec or embedder fit the new texts worse than those they were made from by more than "
    "this.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out documents whose id or source matches, now and in every later build; repeat for more.",
)
@click.option(
    "--readmit", multiple=True, metavar="PATTERN", help="Exclude this pattern no longer; repeat for more."
)
@click.option("--allow-shrink", is_flag=True, help="Allow the bank to lose over half of its documents.")
@click.option(
    "--rehash", is_flag=True, help="Read every file, even if size and times say that it is unchanged."
)
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "json", "none"]),
    default="auto",
    show_default=True,
    help="How progress is shown on standard error.",
)
@click.option(
    "--result",
    "result_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write how it ended to this file, as JSON, whatever happens once the options are understood.",
)
@click.option(
    "--reproduce",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="BANK",
    help="Build BANK again elsewhere and say what differs; exit code 4 if anything does.",
)
@json_option
@click.pass_context
def command(
    context: click.Context,
    /,
    sources: tuple[str, ...],
    bank: Path | None,
    plan: bool,
    references: float | None,
    progress: str,
    result_path: Path | None,
    reproduce: Path | None,
    as_json: bool,
    keep_fields: tuple[str, ...],
    **given: Any,
) -> None:
    """Compile SOURCES into a bank, or make the bank equal to SOURCES again.

    SOURCES are directories, files, globs, or - for JSON lines on standard input: txt, md, rst, html, jsonl,
    json, csv, tsv, parquet, arrow and feather, each also as .gz, .bz2, .xz or .zst. In directories, hidden
    files and banks are passed over. Options that are not given are taken from the bank.

    \b
    Examples:
      m3build compile corpus/ -o bank/
      m3build compile corpus/ -o bank/ --model path/to/model
      m3build compile corpus/ -o bank/ --model path/to/model --plan
      m3build compile corpus/ -o bank/ --exclude 'letters/*'
      m3build compile corpus/ --reproduce bank/
      zcat dump.jsonl.gz | m3build compile - -o bank/ --model path/to/model --text-field body
    """
    given["keep_fields"] = keep_fields or None
    given["exclude"] = given["exclude"] or None
    run_fields = RunOptions.__dataclass_fields__
    options = CompileOptions(**{k: v for k, v in given.items() if k not in run_fields})
    run = RunOptions(**{k: v for k, v in given.items() if k in run_fields})
    listener = progress_for(progress)
    if plan:
        from m3build.pipeline.planning import plan_build
        from m3build_cli.plan_text import describe_plan

        result = plan_build(sources, bank, options, run, references=references, progress=listener)
        if as_json:
            print_json(result.to_json())
        else:
            click.echo(describe_plan(result))
        return
    if references is not None:
        raise click.UsageError("--references goes with --plan")
    with result_file(result_path) as ended:
        if not sources:
            raise click.UsageError(
                "what to compile? Name at least one file, directory or glob, or - for standard input"
            )
        if reproduce is not None:
            if bank is not None:
                raise click.UsageError("--reproduce makes no bank: leave out -o")
            found, text = _build_again(sources, reproduce, options, run, listener)
            ended.put(found, 0 if found["identical"] else MismatchError.exit_code)
        elif bank is not None:
            found, text = _build(sources, bank, options, run, listener)
            ended.put(found)
        else:
            raise click.UsageError("where to? Name the bank's directory with -o")
        if as_json:
            print_json(found)
        else:
            click.echo(text)
    if ended.exit_code:
        context.exit(ended.exit_code)


def _build(
    sources: Sequence[str], bank: Path, options: CompileOptions, run: RunOptions, listener: Progress
) -> tuple[dict[str, Any], str]:
    from m3build.pipeline.build import compile_bank
    from m3build_cli.compile_text import describe_result

    outcome = compile_bank(sources, bank, options, run, progress=listener, standard_input=_standard_input())
    return outcome.to_json(), describe_result(outcome)


def _build_again(
    sources: Sequence[str], bank: Path, options: CompileOptions, run: RunOptions, listener: Progress
) -> tuple[dict[str, Any], str]:
    from m3build.pipeline.reproduce import reproduce
    from m3build_cli.compile_text import describe_reproduction

    found = reproduce(sources, bank, options, run, listener, _standard_input())
    return found.to_json(), describe_reproduction(found)


def _standard_input() -> BinaryIO | None:
    """Standard input; None where whoever started us closed it."""
    return sys.stdin.buffer if sys.stdin is not None else None
