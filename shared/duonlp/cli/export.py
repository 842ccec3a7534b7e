"""``duonlp export``: a checkpoint for ONNX Runtime, LiteRT, TensorFlow Serving or XLA."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from duonlp.cli.common import Debug, Json, cli_option, print_json
from duonlp.util.console import plain_console
from duonlp.util.frameworks import quiet_stdout
from duonlp.util.suggestions import choice


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint to export: a folder or a Hub id.")],
    to: Annotated[str, cli_option(help="onnx, litert, savedmodel or stablehlo (default onnx).")] = "onnx",
    output: Annotated[str, cli_option("--output", help="Folder to write (required).")] = "",
    head: Annotated[str, cli_option(help="Head to load (default: the one the checkpoint was saved with).")] = "",
    opset: Annotated[int | None, cli_option(help="Opset of ONNX, 13 to 18 (default 18).")] = None,
    batch_size: Annotated[int | None, cli_option(help="Fix the number of rows (default: any).")] = None,
    length: Annotated[int | None, cli_option(help="Fix the number of tokens (default: any).")] = None,
    target_length: Annotated[int | None, cli_option(help="Fix that of an encoder-decoder's targets.")] = None,
    no_cache: Annotated[
        bool, cli_option("--no-cache", help="Export one pass over whole texts of a model that generates text.")
    ] = False,
    int8: Annotated[str, cli_option(help="dynamic, or static with --data: int8 weights and products.")] = "",
    data: Annotated[
        str, cli_option("--data", "-d", help="Typical texts, for static int8: a table, a text file, or a Hub id.")
    ] = "",
    limit: Annotated[int, cli_option(help="Use N texts, evenly spaced (default 512).")] = 512,
    tolerance: Annotated[
        float | None, cli_option(help="Largest accepted difference, relative (default 1e-5, for litert 1e-4).")
    ] = None,
    overwrite: Annotated[
        bool, cli_option("--overwrite", help="Replace the model in --output if it holds files.")
    ] = False,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to another runtime, and compare it with the model."""
    from duonlp.errors import InputError
    from duonlp.export import TOLERANCES, ExportSettings
    from duonlp.heads import HEADS
    from duonlp.runs.export import export_checkpoint
    from duonlp.runs.quantization import CalibrationData

    choice("--to", to, TOLERANCES)
    if head:
        choice("--head", head, HEADS)
    if not output:
        raise InputError("no folder to write; pass it with --output")
    if data and int8 != "static":
        raise InputError("--data is for --int8 static; omit it")
    settings = ExportSettings(
        to, opset, batch_size, length, target_length, int8 or None, cache=not no_cache, tolerance=tolerance
    )
    with quiet_stdout(), plain_console(stderr=True).status("loading") as status:
        report = export_checkpoint(
            model, output, settings, head=head or None, data=CalibrationData(data, limit=limit), overwrite=overwrite,
            on_stage=lambda stage: status.update(f"{stage} {model}"),
        )  # fmt: skip
    if as_json:
        print_json(report)
    else:
        print_report(report)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report of :func:`duonlp.runs.export.export_checkpoint`."""
    console = plain_console()
    int8 = f", {report['int8']} int8" if report["int8"] else ""
    console.print(
        f"{report['output']}: {report['model_type']} with the {report['head']} head as {report['format']}{int8}",
        soft_wrap=True,
    )
    for name, size in report["files"].items():
        console.print(f"{name}: {size / 1e6:,.1f} MB")
    for name, difference in report["differences"].items():
        console.print(f"{name}: largest difference from the model {difference:.1e}, relative")
