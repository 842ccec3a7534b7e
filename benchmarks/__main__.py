"""``python -m benchmarks [NAME [OPTIONS]]``: run one measurement, or all of them with their defaults."""

import importlib
import pkgutil
import sys

import benchmarks


def main() -> None:
    """Dispatch to the module named on the command line."""
    names = [m.name for m in pkgutil.iter_modules(benchmarks.__path__) if not m.name.startswith("_")]
    wanted, options = sys.argv[1:2] or names, sys.argv[2:]
    for name in wanted:
        if name not in names:
            sys.exit(f"no benchmark {name!r}; there are {', '.join(names)}")
        importlib.import_module(f"benchmarks.{name}").main(options)


if __name__ == "__main__":
    main()
