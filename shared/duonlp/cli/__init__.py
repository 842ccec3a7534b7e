"""The command line: one file per command of ``duonlp``."""

from duonlp.cli.app import main

__all__ = ["main"]
