"""Run one benchmark, or all of them with their defaults: ``python -m benchmarks [NAME [OPTIONS]]``."""

import importlib
import pkgutil
import sys

import benchmarks


def main() -> None:
    """Run the benchmark named on the command line."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(
            f"usage: python -m benchmarks [NAME [OPTIONS]]\n\nRun one benchmark, or all with their defaults: {', '.join(names)}"
        )
        return
    selected, options = sys.argv[1:2] or names, sys.argv[2:]
    for name in selected:
        if name not in names:
            sys.exit(f"unknown benchmark {name!r}; choose from {', '.join(names)}")
        importlib.import_module(f"benchmarks.{name}").main(options)


if __name__ == "__main__":
    main()
