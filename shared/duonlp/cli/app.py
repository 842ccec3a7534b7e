"""The ``duonlp`` program: its commands and its entry point.

Commands import what is heavy themselves, so that ``duonlp --help`` is fast and needs no framework. An error that a user
can fix is one line on standard error and exit status 2; ``--debug`` shows its traceback.
"""

import sys
from typing import Annotated

import typer

from duonlp import __version__
from duonlp.cli.adapt import adapt
from duonlp.cli.ask import ask
from duonlp.cli.augment import augment
from duonlp.cli.benchmark import benchmark
from duonlp.cli.common import describe_error
from duonlp.cli.convert import convert
from duonlp.cli.demo import demo
from duonlp.cli.distill import distill
from duonlp.cli.doctor import doctor
from duonlp.cli.evaluate import app as evaluate
from duonlp.cli.export import export
from duonlp.cli.fewshot import fewshot
from duonlp.cli.finetune import finetune
from duonlp.cli.generate import generate
from duonlp.cli.labels import labels
from duonlp.cli.models import models
from duonlp.cli.parity import parity
from duonlp.cli.prune import prune
from duonlp.cli.quantize import quantize
from duonlp.cli.questions import questions
from duonlp.cli.run import run
from duonlp.cli.summarize import summarize
from duonlp.cli.tune import tune
from duonlp.util.process import run_program

app = typer.Typer(
    name="duonlp",
    help="Run and train Hugging Face checkpoints in Keras 3 on TensorFlow (tf) and Flax NNX on JAX (jax).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    run, ask, generate, summarize, finetune, adapt, fewshot, distill, tune, prune, quantize, export, benchmark, parity,
    labels, augment, questions, models, convert, doctor, demo,
):  # fmt: skip
    app.command()(command)
app.add_typer(evaluate, name="evaluate")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"duonlp {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: Command-line arguments; None for those of this process.

    Raises:
        SystemExit: Always: 0 for success, 1 if a comparison found a difference, 2 for an error the user can fix, 130 if
            Ctrl-C stopped it.
    """
    given = sys.argv[1:] if arguments is None else arguments
    status = run_program(
        "duonlp", lambda: app(args=given, prog_name="duonlp"), describe=describe_error, debug="--debug" in given
    )
    raise SystemExit(status)


if __name__ == "__main__":
    main()
