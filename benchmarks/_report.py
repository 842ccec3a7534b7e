"""What the reports of several benchmarks have in common."""

import sys
from collections.abc import Iterator


def that_ran(seconds: dict[str, list[float]], quiet: bool = False) -> Iterator[tuple[str, list[float]]]:
    """The contestants that have times; of the others, a line each on standard error, unless it is to be quiet."""
    for name, values in seconds.items():
        if values:
            yield name, values
        elif not quiet:
            print(f"  {name} does not run here and is left out", file=sys.stderr)


def footer(report: dict) -> str:
    """What the figures of a report depend on: rounds, machine, versions."""
    m = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return f"{report['rounds']} rounds; {m['cores']} cores of {m['processor']}; {versions}"
