"""The ``duonlp`` command line, with one file per command."""

from duonlp.cli.app import main

__all__ = ["main"]
