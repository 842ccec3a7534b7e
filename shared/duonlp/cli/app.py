"""The ``duonlp`` program: its commands and its entry point.

Commands import what is heavy themselves, so that ``duonlp --help`` is fast and needs no framework. An error that a user
can fix is one line on standard error and exit status 2; ``--debug`` shows its traceback.
"""

import os
import sys
from typing import Annotated

import typer

from duonlp import __version__
from duonlp.cli.benchmark import benchmark
from duonlp.cli.common import describe_error
from duonlp.cli.demo import demo
from duonlp.cli.distill import distill
from duonlp.cli.evaluate import app as evaluate
from duonlp.cli.finetune import finetune
from duonlp.cli.generate import generate
from duonlp.cli.models import models
from duonlp.cli.parity import parity
from duonlp.cli.run import run
from duonlp.cli.summarize import summarize
from duonlp.cli.tune import tune
from duonlp.errors import DuonlpError
from duonlp.util.files import storage_remedy

app = typer.Typer(
    name="duonlp",
    help="Run and train Hugging Face checkpoints in Keras 3 on TensorFlow (tf) and Flax NNX on JAX (jax).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, generate, summarize, finetune, distill, tune, benchmark, parity, models, demo):
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
        SystemExit: Always: 0 for success, 1 if a comparison found a difference, 2 for an error the user can fix.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="duonlp")
    except DuonlpError as error:
        if "--debug" in arguments:
            raise
        print(f"duonlp: {describe_error(error)}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader, such as `head`, closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except OSError as error:
        if "--debug" in arguments or error.strerror is None:
            raise
        if error.filename is None:  # readers and writers of files name them
            message = f"cannot write standard output: {error.strerror}; {storage_remedy(error)} or write elsewhere"
        else:
            message = f"cannot read or write {error.filename!r}: {error.strerror}; {storage_remedy(error)}"
        print(f"duonlp: {message}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
