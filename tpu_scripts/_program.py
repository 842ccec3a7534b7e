"""Run a program: errors the user can fix are one line on standard error and exit status 2."""

import os
import sys

import typer

from duonlp.errors import DuonlpError

# transformers, used here for its tokenizers, warns at import that PyTorch is missing.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(app: typer.Typer, name: str) -> int:
    """Run a Typer app with this process's arguments and return its exit status."""
    try:
        return app(standalone_mode=False) or 0
    except DuonlpError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    except typer.Exit as leaving:
        return leaving.exit_code
    except Exception as error:
        format_message = getattr(error, "format_message", None)  # a usage error of typer, such as an unknown option
        if format_message is None:
            raise
        print(f"{name}: {format_message()}", file=sys.stderr)
    return 2
