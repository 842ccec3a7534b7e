"""Run a program: errors the user can fix are one line on standard error and exit status 2."""

import os

import typer

from duonlp.util.process import USAGE_ERROR, run_program, say

# transformers, used here for its tokenizers, warns at import that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(app: typer.Typer, name: str) -> int:
    """Run a Typer app with this process's arguments and return its exit status."""

    def program() -> int:
        try:
            return app(standalone_mode=False) or 0
        except typer.Exit as leaving:
            return leaving.exit_code
        except Exception as error:
            format_message = getattr(error, "format_message", None)  # a usage error of typer, such as an unknown option
            if format_message is None:
                raise
            say(f"{name}: {format_message()}")
            return USAGE_ERROR

    return run_program(name, program)
