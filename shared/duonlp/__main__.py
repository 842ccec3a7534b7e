"""``duonlp`` and ``python -m duonlp``: the command-line interface."""

from duonlp.util.process import exit_on_interrupt


def main() -> None:
    """Run the command line and exit, also if Ctrl-C comes while its modules are imported."""
    exit_on_interrupt("duonlp")
    from duonlp.cli.app import main as run

    run()


if __name__ == "__main__":
    main()
