"""Compare benchmark records: which metrics are better, worse, or within noise."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from duonlp.benchmark.record import BenchmarkRecord
from duonlp.errors import InputError
from duonlp.metrics.bootstrap import interval as bootstrap_interval
from duonlp.training.settings_file import build

BETTER, WORSE, NOISE, UNTESTED, SAME = "better", "worse", "within noise", "not tested", "the same"

DRIFT = 0.05
"""Relative difference between times or memory of two runs on one machine that is treated as noise."""

SCORES = ("accuracy", "in_scope_accuracy", "out_of_scope_recall")
"""Scores that are shares of correct examples, whose differences can be tested."""

FEWEST_QUERIES = 20
"""With fewer queries, the bootstrap is overconfident."""

ROWS = 64
"""Resamples per chunk, to bound memory."""


@dataclass(frozen=True)
class Difference:
    """Difference of one metric between two records.

    Attributes:
        name: Name of the model, or "before -> after" if the names differ.
        metric: Such as "p50 latency".
        unit: Such as "ms".
        before: First value.
        after: Second value.
        ratio: after / before; None for scores, and if before is 0.
        low: Lower end of the interval of the ratio, or None.
        high: Upper end of the interval of the ratio, or None.
        p_value: Of the difference of scores, if it was tested.
        verdict: "better", "worse", "the same", "within noise", or "not tested" if significance is unknown.
    """

    name: str
    metric: str
    unit: str
    before: float
    after: float
    ratio: float | None
    low: float | None
    high: float | None
    p_value: float | None
    verdict: str


@dataclass(frozen=True)
class BenchmarkComparison:
    """Differences between two runs, with notes on their validity."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as a dict for JSON."""
        return asdict(self)

    def slowest(self) -> float:
        """Return the largest ratio of median latencies, or 0 without any."""
        return max((d.ratio or 0.0 for d in self.differences if d.metric == "p50 latency"), default=0.0)


@dataclass(frozen=True)
class CompareSettings:
    """Settings of a comparison.

    Attributes:
        level: Significance level; intervals cover 1 - level.
        drift: Ratios of times within 1 +- drift between two runs are noise regardless of their interval, which covers the
            choice of queries but not a machine that was busier the second time. For latencies measured in turns in one
            run, the interval alone decides; throughput and memory have no interval, so the drift always decides.
        resamples: Bootstrap resamples of the queries.
        seed: Seed of the resampling.
    """

    level: float = 0.05
    drift: float = DRIFT
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level}; it must be between 0 and 1, such as 0.05")
        if not 0 <= self.drift < 1:
            raise InputError(f"drift is {self.drift}; it must be a share from 0 to below 1, such as {DRIFT}")
        if self.resamples < 100:
            raise InputError(f"resamples is {self.resamples}; it must be at least 100")


def compare_runs(
    before: Sequence[BenchmarkRecord], after: Sequence[BenchmarkRecord] | None = None, **settings: Any
) -> BenchmarkComparison:
    """Compare the records of two runs by name or, within one run, every record with the first.

    Two runs of one record each are compared regardless of the names.

    Args:
        before: Records of the first run.
        after: Records of the second run; None compares within the first.
        settings: Fields of :class:`CompareSettings`.

    Raises:
        InputError: The runs have no name in common, or a single run has one record only.
    """
    options = build(CompareSettings, settings, "a comparison")
    if after is None:
        if len(before) < 2:
            raise InputError(f"the run has one record, {before[0].name!r}; give a second run to compare it with")
        pairs, unmatched = [(before[0], record) for record in before[1:]], []
    elif len(before) == len(after) == 1:
        pairs, unmatched = [(before[0], after[0])], []
    else:
        later = {record.name: record for record in after}
        pairs = [(record, later[record.name]) for record in before if record.name in later]
        unmatched = sorted({record.name for record in before} ^ set(later))
        if not pairs:
            raise InputError(
                f"the runs have no name in common: {', '.join(record.name for record in before)}, and "
                f"{', '.join(later)}; measure them under the same names"
            )
    notes = [f"{', '.join(unmatched)}: in one run only"] if unmatched else []
    differences = []
    for a, b in pairs:
        differences += compare_records(a, b, options)
        notes += notes_on(a, b, options)
    return BenchmarkComparison(tuple(differences), tuple(dict.fromkeys(notes)))


def compare_records(
    before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings | None = None
) -> list[Difference]:
    """Compare every metric that both records have: scores, latencies, throughput, size, parameters and memory."""
    settings = settings or CompareSettings()
    name = after.name if before.name == after.name else f"{before.name} -> {after.name}"
    differences = []
    for metric in SCORES:
        if metric in before.scores and metric in after.scores:
            a, b = before.scores[metric], after.scores[metric]
            p = _p_value(before, after, metric)
            if a == b:
                verdict = SAME
            else:
                verdict = UNTESTED if p is None else NOISE if p > settings.level else BETTER if b > a else WORSE
            differences.append(Difference(name, metric, "", a, b, None, None, None, p, verdict))
    intervals = latency_intervals(before, after, settings)
    for metric in ("p50", "mean", "p95", "p99"):
        a, b = getattr(before.latency, metric), getattr(after.latency, metric)
        drift = _drift(before, after, settings)
        differences.append(_ratio(name, f"{metric} latency", "ms", a, b, intervals.get(metric), drift))
    exact, drift = 0.0, settings.drift
    for metric, unit, a, b, margin in (
        ("throughput", "examples/s", before.throughput, after.throughput, drift),
        ("size", "bytes", before.size, after.size, exact),
        ("parameters", "", before.parameters, after.parameters, exact),
        *_memories(before, after, drift),
    ):
        if a is not None and b is not None:
            differences.append(_ratio(name, metric, unit, a, b, None, margin, greater=metric == "throughput"))
    return differences


def _memories(
    before: BenchmarkRecord, after: BenchmarkRecord, drift: float
) -> Iterator[tuple[str, str, int | None, int | None, float]]:
    a, b = before.memory, after.memory
    if a and b and (a.alone, a.during) == (b.alone, b.during):  # other peaks are not comparable
        yield "peak memory", "bytes", a.peak, b.peak, drift
        yield "memory of the model", "bytes", a.growth, b.growth, drift


def notes_on(before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings) -> list[str]:
    """Return notes on differences between the conditions of two measurements."""
    notes = []
    if before.data != after.data:
        notes.append(
            f"{before.name} and {after.name} were measured on different texts: scores are not tested, and latencies differ "
            "for that reason too"
        )
    for key, what in (("processor", "processors"), ("cores", "numbers of cores"), ("environment", "environments")):
        a, b = before.machine.get(key), after.machine.get(key)
        if a != b:
            notes.append(f"different {what}: {a} and {b}")
    a, b = before.machine.get("versions", {}), after.machine.get("versions", {})
    changed = [f"{name} {a.get(name)} -> {b.get(name)}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    if changed:
        notes.append(f"different versions: {', '.join(changed)}")
    if before.framework != after.framework:
        notes.append(f"different frameworks: {before.framework} and {after.framework}")
    if before.run != after.run:
        notes.append(
            f"measured in two runs: ratios of times within {settings.drift:.0%} are treated as noise; a single run measures "
            "its models in turns"
        )
    if (before.out_of_scope, before.threshold) != (after.out_of_scope, after.threshold):
        notes.append(f"different thresholds: {before.threshold} and {after.threshold}")
    return notes


def _drift(before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings) -> float:
    return 0.0 if before.run == after.run else settings.drift


def _ratio(
    name: str,
    metric: str,
    unit: str,
    before: float,
    after: float,
    interval: tuple[float, float] | None,
    margin: float,
    greater: bool = False,
) -> Difference:
    """Compare a metric by its ratio, which is noise if its interval overlaps 1 +- margin. greater: whether more is better."""
    if not before:
        return Difference(name, metric, unit, before, after, None, None, None, None, SAME if not after else UNTESTED)
    ratio = after / before
    low, high = interval or (ratio, ratio)
    if before == after:
        verdict = SAME
    elif metric.endswith("latency") and interval is None:
        verdict = UNTESTED if abs(ratio - 1) > margin else NOISE
    elif low <= 1 + margin and high >= 1 - margin:
        verdict = NOISE
    else:
        verdict = BETTER if (ratio > 1) == greater else WORSE
    return Difference(
        name, metric, unit, before, after, ratio, low if interval else None, high if interval else None, None, verdict
    )


def _p_value(before: BenchmarkRecord, after: BenchmarkRecord, metric: str) -> float | None:
    """Return McNemar's p-value for a score, over the examples it covers, or None for different examples."""
    if before.data != after.data or before.out_of_scope != after.out_of_scope:
        return None
    a, b = before.correct_examples(), after.correct_examples()
    outside = before.are_out_of_scope()
    if metric != "accuracy":
        if outside is None:
            return None
        chosen = outside if metric == "out_of_scope_recall" else ~outside
        a, b = a[chosen], b[chosen]
    return mcnemar(int((a & ~b).sum()), int((b & ~a).sum()))


def mcnemar(first_alone: int, second_alone: int) -> float:
    """Return the exact two-sided p-value of McNemar's test for equal accuracy of two classifiers on paired examples.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages" (1947), with the
    binomial distribution instead of chi-squared: under the null hypothesis, an example that only one classifier gets right
    is equally likely to be either's.

    Args:
        first_alone: Number of examples that only the first classifier gets right.
        second_alone: Number of examples that only the second classifier gets right.
    """
    total, fewer = first_alone + second_alone, min(first_alone, second_alone)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def latency_intervals(
    before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings
) -> dict[str, tuple[float, float]]:
    """Return bootstrap intervals of the ratios after / before of the mean and the percentiles, over queries.

    The bootstrap is paired: the same queries are drawn for both records, so that their lengths cancel. Returns an empty dict
    if samples were not stored, are of different texts or queries, or are too few.
    """
    a, b = before.latency.by_query(), after.latency.by_query()
    if before.data != after.data or a.size < FEWEST_QUERIES or a.size != b.size or not (a > 0).all():
        return {}
    rng = np.random.default_rng(settings.seed)
    ratios: dict[str, list[np.ndarray]] = {}
    for start in range(0, settings.resamples, ROWS):
        drawn = rng.integers(a.size, size=(min(ROWS, settings.resamples - start), a.size))
        both = [np.stack([x[drawn].mean(1), *np.percentile(x[drawn], [50, 95, 99], axis=1)]) for x in (a, b)]
        for metric, values in zip(("mean", "p50", "p95", "p99"), both[1] / both[0], strict=True):
            ratios.setdefault(metric, []).append(values)
    return {metric: bootstrap_interval(np.concatenate(values), 1 - settings.level) for metric, values in ratios.items()}
