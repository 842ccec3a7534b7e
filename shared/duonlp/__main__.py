"""``python -m duonlp``: the command line."""

from duonlp.cli.app import main

main()
