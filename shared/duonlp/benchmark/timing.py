"""Time benchmarks in turns, so that drift of the machine affects all models alike."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from duonlp.benchmark.record import Latency

T = TypeVar("T")

TURN = 10
"""Queries per turn of a model."""

PASSES = 5
"""Timed passes over the batches; their median is reported."""


class Timed(Protocol):
    """What is timed of a :class:`PerformanceBenchmark`."""

    name: str
    pipeline: Callable[..., Any]
    queries: list[Any]
    repeats: int
    batch_size: int | None
    samples: bool
    clock: Callable[[], float]

    def answers(self, texts: Sequence[Any]) -> list[tuple[str, float]]:
        """Return (label, score) of each text."""
        ...


def time_queries(benchmarks: Sequence[Timed]) -> list[Latency]:
    """Measure the latency of each model for single texts: a few queries of one model, the same queries of the next, and so on.

    The first model rotates from turn to turn. Call it after warm-up.

    Args:
        benchmarks: Benchmarks with the same queries and repeats.
    """
    queries, repeats = benchmarks[0].queries, benchmarks[0].repeats
    seconds: dict[str, list[float]] = {benchmark.name: [] for benchmark in benchmarks}
    starts = [start for _ in range(repeats) for start in range(0, len(queries), TURN)]
    with paused_collector():
        for turn, start in enumerate(starts):
            texts = queries[start : start + TURN]
            for benchmark in rotated(benchmarks, turn):
                if len(benchmarks) > 1:
                    benchmark.pipeline(texts[0])  # untimed: the CPU caches hold another model
                times, clock, pipeline = seconds[benchmark.name], benchmark.clock, benchmark.pipeline
                for text in texts:
                    begin = clock()
                    pipeline(text)
                    times.append(clock() - begin)
    return [
        Latency.from_seconds(seconds[benchmark.name], benchmark.repeats, benchmark.samples) for benchmark in benchmarks
    ]


def time_batches(benchmarks: Sequence[Timed]) -> list[float | None]:
    """Measure the throughput of each model over its queries in batches.

    Call it after warm-up.

    Args:
        benchmarks: Benchmarks with the same queries and repeats.

    Returns:
        For each model, examples per second as the median of interleaved passes; None if it takes one text at a time.
    """
    seconds: dict[str, list[float]] = {benchmark.name: [] for benchmark in benchmarks}
    with paused_collector():
        for turn in range(PASSES):
            for benchmark in rotated(benchmarks, turn):
                if benchmark.batch_size is not None:
                    begin = benchmark.clock()
                    benchmark.answers(benchmark.queries)
                    seconds[benchmark.name].append(benchmark.clock() - begin)
    return [
        len(benchmark.queries) / max(float(np.median(seconds[benchmark.name])), 1e-9)
        if seconds[benchmark.name]
        else None
        for benchmark in benchmarks
    ]


def rotated(items: Sequence[T], first: int) -> list[T]:
    """Return the items in cyclic order, starting at index `first`."""
    first %= len(items)
    return [*items[first:], *items[:first]]


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Turn Python's garbage collector off, which would pause some of the timed calls."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
