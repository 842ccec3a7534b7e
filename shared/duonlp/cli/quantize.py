"""``duonlp quantize``: a checkpoint with integer weights, and back."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from duonlp.cli.common import Debug, Framework, Json, cli_option, print_json
from duonlp.cli.convert import print_report as print_converted
from duonlp.errors import InputError
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.suggestions import choice

SHOWN = 10
"""Tensors in the table."""


def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint to quantize: a folder or a Hub id.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    scheme: Annotated[
        str,
        cli_option(help="int8, int8-static, int8-weights or int4 (default int8, or what the model was trained for)."),
    ] = "",
    data: Annotated[
        str,
        cli_option(
            "--data", "-d", help="Typical texts, for int8-static, GPTQ and AWQ: a table, a text file, or a Hub id."
        ),
    ] = "",
    split: Annotated[str, cli_option(help="Split of the data (default: the only one).")] = "",
    text_column: Annotated[str, cli_option(help="Text column (default: the first with a usual name).")] = "",
    encoding: Annotated[str, cli_option(help="Encoding of the data (default UTF-8).")] = "",
    limit: Annotated[int, cli_option(help="Use N texts, evenly spaced (default 512).")] = 512,
    batch_size: Annotated[int, cli_option(help="Texts per batch (default 32).")] = 32,
    max_length: Annotated[int, cli_option(help="Truncate texts to this many tokens (default 128).")] = 128,
    layers: Annotated[
        list[str] | None,
        cli_option(metavar="PATTERN", help="Quantize only these layers, such as '*/feed_forward/*'; repeatable."),
    ] = None,
    skip: Annotated[
        list[str] | None, cli_option(metavar="PATTERN", help="Leave these layers in floating point; repeatable.")
    ] = None,
    no_embeddings: Annotated[bool, cli_option("--no-embeddings", help="Leave embedding tables as they are.")] = False,
    no_output: Annotated[bool, cli_option("--no-output", help="Leave the output layer as it is.")] = False,
    rounding: Annotated[str, cli_option(help="nearest, gptq or awq (default nearest).")] = "",
    calibration: Annotated[str, cli_option(help="min-max, percentile or mse, for int8-static (default min-max).")] = "",
    percentile: Annotated[float | None, cli_option(help="Percentage that the range covers (default 99.99).")] = None,
    group_size: Annotated[int | None, cli_option(help="Inputs that share a scale (default: 64 for int4).")] = None,
    head: Annotated[str, cli_option(help="Head to load (default: the one the checkpoint was saved with).")] = "",
    dequantize: Annotated[
        bool, cli_option("--dequantize", help="Restore float weights of a quantized MODEL, for Transformers.")
    ] = False,
    overwrite: Annotated[bool, cli_option("--overwrite", help="Replace the model in OUT if it holds files.")] = False,
    plot: Annotated[str, cli_option(help="Plot weights, integers and errors to this file.")] = "",
    framework: Framework = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Quantize a checkpoint to 8 or 4 bits, and report its size and how its outputs change."""
    from duonlp.checkpoints import convert
    from duonlp.heads import HEADS
    from duonlp.quantization import QuantizationSettings
    from duonlp.runs.quantization import CalibrationData, quantize_checkpoint

    if head:
        choice("--head", head, HEADS)
    given = {
        "layers": layers, "skip": skip, "embeddings": False if no_embeddings else None, "output": False if no_output else None,
        "rounding": rounding or None, "calibration": calibration or None, "percentile": percentile, "group_size": group_size,
    }  # fmt: skip
    options = {name: value for name, value in given.items() if value not in (None, [])}
    texts = CalibrationData(data, split or None, text_column or None, encoding or None, limit, batch_size, max_length)
    if dequantize:
        if options or scheme or data or plot:
            raise InputError("--dequantize takes no settings of a quantization; leave them out")
        report = convert(model, output, head=head or None, overwrite=overwrite, dequantize=True)
    else:
        settings = QuantizationSettings.of(scheme or None, options)
        with quiet_stdout(), plain_console(stderr=True).status("loading") as status:

            def show(stage: str) -> None:
                status.update(f"{stage} {model}")
                status.stop() if stage.endswith("quantizing") else status.start()  # which has its own progress bar

            package, _ = load_package(framework)
            report = quantize_checkpoint(
                package, model, output, settings, texts, head=head or None, overwrite=overwrite, plot=plot,
                on_stage=show,
            )  # fmt: skip
    if as_json:
        print_json(report)
    elif dequantize:
        print_converted(report)
    else:
        print_report(report)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report of :func:`duonlp.runs.quantization.quantize_checkpoint` as text and a table."""
    console = plain_console()
    before, after = (report["size"][name] / 1e6 for name in ("before", "after"))
    console.print(
        f"{report['output']}: {report['model_type']} with the {report['head']} head, {before:,.1f} MB -> {after:,.1f} MB "
        f"({after / before:.2f} times)",
        soft_wrap=True,
    )
    _print_tensors(report["tensors"])
    console.print("error: root mean square of the rounding error, relative to that of the weights", style="dim")
    for row in report["outputs"]:
        same = f", same predictions {row['same_predictions']:.1%}" if "same_predictions" in row else ""
        console.print(f"{row['output']}: largest difference from float32 {row['relative']:.2e}, relative{same}")
    settings = report["settings"]
    if settings is not None and report["texts"]:
        console.print(f"calibrated on {report['texts']} texts")


def _print_tensors(tensors: list[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", overflow="fold")
    for name in ("shape", "bits", "float32 MB", "MB", "error"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, shape: str, bits: str, rows: list[Mapping[str, Any]], error: str) -> None:
        sizes = (f"{sum(row[key] for row in rows) / 1e6:,.2f}" for key in ("before", "after"))
        table.add_row(name, shape, bits, *sizes, error)

    for row in tensors[:SHOWN]:
        bits = str(row["bits"]) + ("" if row["group_size"] is None else f" / {row['group_size']}")
        error = "" if row["error"] is None else f"{row['error']:.4f}"
        add(row["path"], " x ".join(map(str, row["shape"])), bits, [row], error)
    if len(tensors) > SHOWN:
        add(f"{len(tensors) - SHOWN} more", "", "", list(tensors[SHOWN:]), "")
    errors = [row["error"] for row in tensors if row["error"] is not None]
    add("total", "", "", list(tensors), f"<= {max(errors):.4f}" if errors else "")
    plain_console().print(table)
