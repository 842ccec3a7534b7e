"""Helpers for the reports of several benchmarks."""

import sys
from collections.abc import Iterator, Mapping
from typing import Any


def drop_missing(seconds: Mapping[str, list[float]], quiet: bool = False) -> Iterator[tuple[str, list[float]]]:
    """Yield (name, seconds) of the contestants that ran.

    Args:
        seconds: Contestant to the seconds of each round, as :func:`benchmarks._interleave.interleave` returns it.
        quiet: Whether to suppress the line on standard error that names each contestant without times.
    """
    for name, values in seconds.items():
        if values:
            yield name, values
        elif not quiet:
            print(f"  {name} cannot run here; skipped", file=sys.stderr)


def footer(report: Mapping[str, Any]) -> str:
    """Return one line with the rounds, machine and library versions of a report."""
    m = report["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in m["versions"].items())
    return f"{report['rounds']} rounds; {m['cores']} cores of {m['processor']}; {versions}"
