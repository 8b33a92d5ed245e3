"""``m3build calibrate``: where a model can read memories."""

from __future__ import annotations

import click

from m3build_cli.output import device_option, json_option, print_json, trust_remote_code_option


@click.command("calibrate")
@click.option(
    "--model",
    required=True,
    metavar="DIR_OR_ID",
    help="A transformers directory or hub id; safetensors only.",
)
@click.option(
    "--corpus",
    "corpus",
    multiple=True,
    metavar="SOURCE",
    help="Text to take passages from; repeat for more.  [default: tokens drawn at random]",
)
@click.option("--text-field", default="text", show_default=True, metavar="NAME", help="As in compile.")
@click.option(
    "--passages", default=64, show_default=True, type=click.IntRange(min=2), help="How many passages."
)
@click.option(
    "--passage-tokens", default=64, show_default=True, type=click.IntRange(8, 255), help="Length of each."
)
@click.option("--seed", default=0, show_default=True, type=int, help="Seed of the pieces' order.")
@click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float32", "float16"]),
    default="auto",
    show_default=True,
    help="Arithmetic of the model.",
)
@device_option
@click.option(
    "--write", is_flag=True, help="Write the recommendation to memory3.json in the model directory."
)
@trust_remote_code_option
@json_option
def command(
    model: str,
    corpus: tuple[str, ...],
    text_field: str,
    passages: int,
    passage_tokens: int,
    seed: int,
    dtype: str,
    device: str,
    write: bool,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Find the layers and heads in which a model can read memories.

    Passages are repeated in pieces. A head that attends to the token after the earlier occurrence copies; the
    layers of such heads are tried as memory layers, and the smallest choice with nearly all of the gain is
    recommended. A model in which no head copies cannot read memories: train it on repeated passages first.

    \b
    Examples:
      m3build calibrate --model path/to/model
      m3build calibrate --model path/to/model --corpus corpus/ --write
    """
    from m3build.calibration.run import calibrate_model
    from m3build_cli.calibrate_text import describe_calibration

    found, path = calibrate_model(
        model,
        corpus,
        text_field=text_field,
        passages=passages,
        passage_tokens=passage_tokens,
        seed=seed,
        dtype=dtype,
        device=device,
        trust_remote_code=trust_remote_code,
        write=write,
    )
    if as_json:
        print_json({**found.to_json(), "written": path is not None})
    else:
        click.echo(describe_calibration(found, path))
