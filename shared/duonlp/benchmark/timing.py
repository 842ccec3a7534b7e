"""The clock of a benchmark: several models take turns, so that drift of the machine hits them alike."""

import contextlib
import gc
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from duonlp.benchmark.record import Latency

if TYPE_CHECKING:
    from duonlp.benchmark.performance import PerformanceBenchmark

TURN = 10
"""Queries that one model answers before it is another's turn."""

PASSES = 5
"""How often the batches are timed; the median counts."""


def time_queries(benchmarks: Sequence["PerformanceBenchmark"]) -> list[Latency]:
    """Latency of each for one text at a time: a few queries of one model, the same ones of the next, and so on.

    Who begins changes from turn to turn. To be called after warm-up.

    Args:
        benchmarks: all with the same queries and repeats.
    """
    queries, repeats = benchmarks[0].queries, benchmarks[0].repeats
    seconds: dict[str, list[float]] = {each.name: [] for each in benchmarks}
    starts = [start for _ in range(repeats) for start in range(0, len(queries), TURN)]
    with paused_collector():
        for turn, start in enumerate(starts):
            texts = queries[start : start + TURN]
            for each in rotated(benchmarks, turn):
                if len(benchmarks) > 1:
                    each.pipeline(texts[0])  # untimed: the caches are another's by now
                times, clock, pipeline = seconds[each.name], each.clock, each.pipeline
                for text in texts:
                    begin = clock()
                    pipeline(text)
                    times.append(clock() - begin)
    return [Latency.from_seconds(seconds[each.name], each.repeats, each.samples) for each in benchmarks]


def time_batches(benchmarks: Sequence["PerformanceBenchmark"]) -> list[float | None]:
    """Examples a second of each in batches over its queries, the median of a few passes in turns; None without batches.

    To be called after warm-up. Arguments as of :func:`time_queries`.
    """
    seconds: dict[str, list[float]] = {each.name: [] for each in benchmarks}
    with paused_collector():
        for turn in range(PASSES):
            for each in rotated(benchmarks, turn):
                if each.batch_size is not None:
                    begin = each.clock()
                    each.answers(each.queries)
                    seconds[each.name].append(each.clock() - begin)
    return [
        len(each.queries) / max(float(np.median(seconds[each.name])), 1e-9) if seconds[each.name] else None
        for each in benchmarks
    ]


def rotated(items: Sequence, first: int) -> list:
    """All of them in order, from another one on; after the last comes the first."""
    first %= len(items)
    return [*items[first:], *items[:first]]


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Without Python's garbage collector, which would stop one call or another."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
