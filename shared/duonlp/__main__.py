"""``python -m duonlp``: the command-line interface."""

from duonlp.cli.app import main

main()
