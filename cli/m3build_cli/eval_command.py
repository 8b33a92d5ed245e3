"""``m3build eval``: what a bank is worth, and a gate on it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from m3build.evaluation.gate import FIGURES
from m3build.evaluation.options import EvalOptions
from m3build.evaluation.overlap import LIMIT
from m3build_cli.output import bank_argument, device_option, json_option, print_json, version_option
from m3build_cli.progress import progress_for

_FIGURES = "\n".join(f"  {name:<19} {figure.meaning}" for name, figure in FIGURES.items())


@click.command("eval", epilog=f"\b\nFigures for --require:\n{_FIGURES}")
@bank_argument
@click.option(
    "--text",
    multiple=True,
    metavar="SOURCE",
    help="Held-out text: a file, directory or glob that compile could read; repeat for more.",
)
@click.option("--queries", metavar="FILE", help="Questions, JSON lines with _id and text (BEIR's layout).")
@click.option("--qrels", metavar="FILE", help="Query id, document id and score, with tabs between.")
@click.option("--model", metavar="DIR|ID", help="The bank's model, where the bank does not find it itself.")
@device_option
@click.option(
    "--dtype", default="auto", show_default=True, help="Number type of the model; auto is the bank's."
)
@click.option(
    "--query",
    type=click.Choice(["previous", "own"]),
    default="previous",
    show_default=True,
    help="A query chunk reads what the one before it retrieved, or what it retrieves itself, which sees text "
    "that is then predicted.",
)
@click.option(
    "-k",
    "--references",
    type=click.IntRange(min=1),
    help="References a query chunk reads.  [default: the bank's]",
)
@click.option(
    "--continuations/--no-continuations",
    default=None,
    help="Follow each reference that is found by the one with which its document goes on; not those of "
    "--fixed.  [default: the bank's]",
)
@click.option(
    "--fixed",
    metavar="FILE",
    help='References instead of retrieval, JSON lines such as {"document": "d1", "chunk": 3, "references": '
    '["ab12"]}.',
)
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1),
    default=LIMIT,
    metavar="SHARE",
    help="Leave out references of which more than this share stands in the text; 1 for none.  [default: 2/3]",
)
@click.option(
    "--window",
    type=click.IntRange(min=2),
    help="Tokens of a context at most; long contexts leave less to memory.  [default: 1024, if they fit]",
)
@click.option(
    "--control",
    metavar="DIR|ID",
    help="Compare with this model on plain contexts, such as one trained on the same text without memories.",
)
@click.option("--documents", type=click.IntRange(min=1), help="Draw this many documents of the text.")
@click.option("--tokens", type=click.IntRange(min=2), help="Draw documents of about this many tokens in all.")
@click.option("--seed", type=int, default=0, show_default=True, help="For draws and intervals.")
@click.option("--text-field", default="text", show_default=True, help="Field of records that holds the text.")
@click.option("--id-field", help="Field of records that holds the document's id.")
@click.option("--encoding", default="utf-8", show_default=True, help="Encoding of the text.")
@click.option("--batch-tokens", type=click.IntRange(min=1), default=4096, show_default=True)
@click.option(
    "--require",
    multiple=True,
    metavar="CONDITION",
    help="A condition such as 'loss_gain>=0.02' or 'hit@5>=0.9'; exit code 7 if one does not hold. Repeat "
    "for more.",
)
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png|svg",
    help="Draw the gain by query chunk and by rank of the reference.",
)
@click.option(
    "--by-rank",
    is_flag=True,
    help="Measure each rank of reference by itself too, as --plot does. With continuations every other one "
    "goes on where the one before ends.",
)
@click.option("--no-store", is_flag=True, help="Leave the bank alone: do not keep the results in it.")
@click.option(
    "--progress",
    type=click.Choice(["auto", "bar", "lines", "none"]),
    default="auto",
    show_default=True,
    help="How progress is shown on standard error.",
)
@version_option
@json_option
def command(
    bank: Path,
    text: tuple[str, ...],
    queries: str | None,
    qrels: str | None,
    model: str | None,
    device: str,
    dtype: str,
    query: Literal["previous", "own"],
    references: int | None,
    continuations: bool | None,
    fixed: str | None,
    overlap: float,
    window: int | None,
    control: str | None,
    documents: int | None,
    tokens: int | None,
    seed: int,
    text_field: str,
    id_field: str | None,
    encoding: str,
    batch_tokens: int,
    require: tuple[str, ...],
    plot: Path | None,
    by_rank: bool,
    no_store: bool,
    progress: str,
    version: int | None,
    as_json: bool,
) -> None:
    """Measure what a bank is worth: loss on held-out text with its memories, unquantized ones, random ones,
    the references as text and as dense keys and values; retrieval on questions; cost.

    Results are kept in the bank, as a new version that differs in nothing else, and `m3build info` shows
    them. Differences have 95 % intervals from resampling documents.

    \b
    Examples:
      m3build eval bank/ --text heldout/
      m3build eval bank/ --queries queries.jsonl --qrels qrels.tsv --require 'hit@5>=0.9'
      m3build eval bank/ --text heldout/ --tokens 100000 --require 'loss_gain>=0.02' --json
    """
    if plot is not None:
        from m3build.evaluation.plot import check_plot

        check_plot(plot, text)
    options = EvalOptions(
        text=text,
        queries=queries,
        qrels=qrels,
        model=model,
        device=device,
        dtype=dtype,
        query=query,
        references=references,
        continuations=continuations,
        reference_file=fixed,
        overlap=overlap,
        window=window,
        control=control,
        documents=documents,
        tokens=tokens,
        seed=seed,
        batch_tokens=batch_tokens,
        text_field=text_field,
        id_field=id_field,
        encoding=encoding,
        by_rank=by_rank or plot is not None,
        require=require,
    )
    options.conditions()
    from m3build.evaluation.evaluate import evaluate_bank

    evaluation = evaluate_bank(
        bank, options, version=version, store=not no_store, progress=progress_for(progress)
    )
    if as_json:
        print_json(evaluation.to_json())
    else:
        from m3build_cli.eval_text import describe_evaluation

        click.echo(describe_evaluation(str(bank), evaluation))
    if plot is not None:
        from m3build.evaluation.plot import draw_gains

        draw_gains(plot, evaluation.results)
    evaluation.enforce()
