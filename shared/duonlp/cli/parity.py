"""``duonlp parity``: one checkpoint compared across frameworks."""

from typing import TYPE_CHECKING, Annotated

import typer

from duonlp.cli.common import Debug, Json, cli_option, print_json
from duonlp.util.console import plain_console
from duonlp.util.frameworks import calm_frameworks, quiet_stdout
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from duonlp.parity import Report


def parity(
    model: Annotated[str, typer.Argument(help="Checkpoint: a folder in Hugging Face layout or a Hub id.")],
    head: Annotated[str, cli_option(help="Head to compare (default: the one the checkpoint was saved with).")] = "",
    text: Annotated[list[str] | None, cli_option(help="Input text; repeatable (default: three sentences).")] = None,
    frameworks: Annotated[str, cli_option(help="Frameworks, comma-separated (default tf,jax,torch).")] = "tf,jax,torch",
    tolerance: Annotated[
        float | None,
        cli_option(
            help="Largest allowed difference, relative to the largest output (default 1e-5; 1e-3 with quantized activations)."
        ),
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare a checkpoint across tfnlp, jaxnlp and Transformers; exit with status 1 if they differ."""
    from duonlp.heads import HEADS
    from duonlp.parity import FRAMEWORKS, compare

    if head:
        choice("head", head, HEADS)
    names = [choice("framework", name.strip(), FRAMEWORKS) for name in frameworks.split(",")]
    calm_frameworks()
    with quiet_stdout():
        report = compare(model, head or None, text or None, names, tolerance=tolerance)
    if as_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(1)


def print_report(report: "Report") -> None:
    """Print a parity report as tables."""
    from rich.table import Table
    from rich.text import Text

    console = plain_console()
    console.print(f"{report.checkpoint}  ({report.model_type}, {report.head})", style="bold")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("output", "shape", "compared"):
        table.add_column(name, no_wrap=True)
    for name in ("largest difference", "relative", ""):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report.rows:
        verdict = Text("ok", "green") if row.ok else Text("differs", "bold red")
        compared = f"{row.framework} - {row.reference}"
        shape = " x ".join(map(str, row.shape))
        table.add_row(row.output, shape, compared, f"{row.difference:.2e}", f"{row.relative:.2e}", verdict)
    console.print(table)
    console.print(f"Reference: {report.reference}.", soft_wrap=True)
    if report.generated:
        same = ("identical", "green") if report.same_ids else ("different", "bold red")
        count = max(map(len, report.generated.values()))
        console.print(Text.assemble(f"{count} tokens generated greedily: ", same, f" in {', '.join(report.generated)}"))
    for name, seconds in report.forward_seconds.items():
        console.print(f"{name}: loaded in {report.load_seconds[name]:.1f} s, forward pass in {1000 * seconds:.1f} ms")
    for name, reason in report.skipped.items():
        console.print(f"{name} skipped: {reason}", style="yellow")
    same = ("agree", "green") if report.ok else ("differ", "bold red")
    console.print(Text.assemble("The frameworks ", same, f" (tolerance {report.tolerance:g})."))
