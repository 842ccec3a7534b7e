"""``duonlp convert``: a checkpoint of any layout as config.json and safetensors."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from duonlp.cli.common import Debug, Json, cli_option, print_json
from duonlp.cli.models import format_count
from duonlp.dtypes import DTYPES
from duonlp.util.console import plain_console
from duonlp.util.suggestions import choice

NOTES = {
    "missing": "missing in the checkpoint, and so in the output",
    "left_out": "left out, because the head has no such tensors",
}
"""Parts of the report that are printed if they are not empty, with their headings."""


def convert(
    checkpoint: Annotated[str, typer.Argument(metavar="FOLDER", help="Checkpoint to convert: a folder or a Hub id.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    dtype: Annotated[
        str, cli_option(help="Dtype to store parameters in: float32, bfloat16 or float16 (default: the stored one).")
    ] = "",
    head: Annotated[str, cli_option(help="Head to write (default: the one that config.json names).")] = "",
    overwrite: Annotated[bool, cli_option("--overwrite", help="Replace the model in OUT if it holds files.")] = False,
    max_shard_size: Annotated[str, cli_option(help="Largest size of a file of weights (default 5GB).")] = "5GB",
    dequantize: Annotated[
        bool, cli_option("--dequantize", help="Write the weights of quantized layers in floating point.")
    ] = False,
    revision: Annotated[str, cli_option(help="Branch, tag or commit of a Hub model (default: main).")] = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Convert a checkpoint of any layout to safetensors."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from duonlp.checkpoints import convert as convert_checkpoint
    from duonlp.heads import HEADS

    if head:
        choice("--head", head, HEADS)
    if dtype:
        choice("--dtype", dtype, DTYPES)
    columns = TextColumn("converting"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
    with Progress(*columns, console=plain_console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        report = convert_checkpoint(
            checkpoint, output, dtype=dtype or None, head=head or None, overwrite=overwrite, max_shard_size=max_shard_size,
            dequantize=dequantize, revision=revision or None,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        print_report(report)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report of :func:`duonlp.checkpoints.convert` as text."""
    console = plain_console()
    console.print(
        f"{report['output']}: {report['model_type']} with the {report['head']} head, {format_count(report['parameters'])} "
        f"parameters in {report['dtype']}, {report['bytes'] / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    carried = ", ".join(report["files"]) or "nothing"
    console.print(f"from {', '.join(report['weights'])}; carried over: {carried}", soft_wrap=True)
    for key, text in NOTES.items():
        if names := report[key]:
            listed = ", ".join(names[:8]) + ", ..." * (len(names) > 8)
            console.print(f"{text}: {listed}", style="yellow", soft_wrap=True)
