"""What every program here does around its work: mistakes of a person are one line, and exit status 2."""

import os
import sys

import typer

from duonlp.errors import DuonlpError

# transformers, here for its tokenizers, tells whoever has no PyTorch so at its import.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def run(app: typer.Typer, name: str) -> int:
    """Runs a command; returns its exit status."""
    try:
        return app(standalone_mode=False) or 0
    except DuonlpError as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
    except typer.Exit as leaving:
        return leaving.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # what typer says of an option that it does not know
            raise
        print(f"{name}: {error.format_message()}", file=sys.stderr)
    return 2
