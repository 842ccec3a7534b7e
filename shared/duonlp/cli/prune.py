"""``duonlp prune``: a checkpoint with weights of zero, or without the heads and rows that are."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from duonlp.cli.common import Debug, Framework, Json, cli_option, print_json
from duonlp.util.console import plain_console
from duonlp.util.frameworks import load_package, quiet_stdout
from duonlp.util.suggestions import choice


def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint to prune: a folder or a Hub id.")],
    output: Annotated[str, typer.Argument(metavar="OUT", help="Folder to write.")],
    sparsity: Annotated[
        float | None, cli_option(help="Set this share of the weights to zero, those of least magnitude.")
    ] = None,
    structure: Annotated[
        str,
        cli_option(help="weights, blocks (of 32 x 32), units (heads and rows) or N:M such as 2:4 (default weights)."),
    ] = "weights",
    per_layer: Annotated[
        bool, cli_option("--per-layer", help="The same sparsity in each layer (default: over all layers).")
    ] = False,
    layers: Annotated[
        list[str] | None,
        cli_option(metavar="PATTERN", help="Prune only these layers, such as '*/feed_forward/*'; repeatable."),
    ] = None,
    skip: Annotated[list[str] | None, cli_option(metavar="PATTERN", help="Leave these layers; repeatable.")] = None,
    remove: Annotated[
        bool,
        cli_option(
            "--remove", help="Remove the heads and feed-forward rows that are zero; Transformers cannot load it."
        ),
    ] = False,
    head: Annotated[str, cli_option(help="Head to load (default: the one the checkpoint was saved with).")] = "",
    overwrite: Annotated[bool, cli_option("--overwrite", help="Replace the model in OUT if it holds files.")] = False,
    framework: Framework = "",
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Set weights of a checkpoint to zero, or remove heads and rows that are.

    Training while pruning keeps more accuracy: see --prune of duonlp finetune and duonlp distill.
    """
    from duonlp.heads import HEADS
    from duonlp.pruning import Pruning
    from duonlp.runs.pruning import prune_checkpoint

    if head:
        choice("--head", head, HEADS)
    settings = None
    if sparsity is not None or structure != "weights":
        patterns: dict[str, Any] = {name: value for name, value in (("layers", layers), ("skip", skip)) if value}
        settings = Pruning(sparsity, structure=structure, scope="layer" if per_layer else "global", **patterns)
    with quiet_stdout(), plain_console(stderr=True).status(f"pruning {model}"):
        package, _ = load_package(framework)
        report = prune_checkpoint(
            package, model, output, settings, remove=remove, head=head or None, overwrite=overwrite
        )
    if as_json:
        print_json(report)
    else:
        print_report(report)


def print_report(report: Mapping[str, Any]) -> None:
    """Print the report of :func:`duonlp.runs.pruning.prune_checkpoint` as text and a table."""
    from rich.table import Table

    console = plain_console()
    size, parameters = report["size"], report["parameters"]
    console.print(
        f"{report['output']}: {report['sparsity']:.1%} of the kernels zero; {parameters['before']:,} -> {parameters['after']:,} "
        f"parameters, {size['before'] / 1e6:,.1f} -> {size['after'] / 1e6:,.1f} MB",
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("kernel", overflow="fold")
    for name in ("shape", "zero", "MB", "sparse MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["kernels"]:
        if row["sparsity"]:
            shape, sizes = "x".join(map(str, row["shape"])), (row["dense_bytes"] / 1e6, row["sparse_bytes"] / 1e6)
            table.add_row(row["path"], shape, f"{row['sparsity']:.1%}", *(f"{megabytes:.3f}" for megabytes in sizes))
    console.print(table)
