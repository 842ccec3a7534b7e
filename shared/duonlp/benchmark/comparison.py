"""Two benchmark records compared: what is better, what is worse, and what is within noise."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from duonlp.benchmark.record import BenchmarkRecord
from duonlp.errors import InputError
from duonlp.metrics.bootstrap import interval
from duonlp.training.settings_file import build

BETTER, WORSE, NOISE, UNTESTED, SAME = "better", "worse", "within noise", "not tested", "the same"

DRIFT = 0.05
"""Times and memory of two runs on one machine differ by this share without any reason in the models."""

SCORES = ("accuracy", "in_scope_accuracy", "out_of_scope_recall")
"""Those that are shares of examples answered right, which a test can tell apart."""

FEWEST_QUERIES = 20
"""With fewer, the bootstrap over queries claims too much."""

ROWS = 64
"""Resamples in memory at once."""


@dataclass(frozen=True)
class Difference:
    """One metric of two records.

    name: what is compared, "before -> after" where their names differ. metric, unit: such as p50 and ms.
    before, after: values. ratio: after / before; None for scores, and of 0.
    low, high: of the ratio, where it has an interval. p_value: of the difference of scores, where it was tested.
    verdict: "better", "worse", "the same", "within noise", or "not tested" where nothing tells whether it is chance.
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
    """Differences of two runs, and notes about what they can be trusted for."""

    differences: tuple[Difference, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def slowest(self) -> float:
        """The largest ratio of median latencies; 0 where there is none."""
        return max((each.ratio or 0.0 for each in self.differences if each.metric == "p50 latency"), default=0.0)


@dataclass(frozen=True)
class CompareSettings:
    """level: a p-value up to it is a difference, and intervals cover 1 - level. resamples, seed: of the queries.

    drift: ratios of times between two runs within 1 +- drift are noise, whatever their interval: it covers the queries, and
    not that the machine was busier the second time. For latencies of one run, measured in turns, the interval alone decides;
    throughput and memory have no interval, and the drift decides always.
    """

    level: float = 0.05
    drift: float = DRIFT
    resamples: int = 2000
    seed: int = 0

    def __post_init__(self):
        if not 0 < self.level < 1:
            raise InputError(f"level is {self.level}; it must be between 0 and 1, such as 0.05")
        if not 0 <= self.drift < 1:
            raise InputError(f"drift is {self.drift}; it must be a share from 0 to below 1, such as {DRIFT}")
        if self.resamples < 100:
            raise InputError(f"resamples is {self.resamples}; intervals take at least 100")


def compare_runs(
    before: Sequence[BenchmarkRecord], after: Sequence[BenchmarkRecord] | None = None, **settings: Any
) -> BenchmarkComparison:
    """Records of two runs by name; or, of one run, every other record with its first.

    Two runs of one record each are compared whatever their names are.

    Args:
        settings: of :class:`CompareSettings`.

    Raises:
        InputError: the runs have no name in common, or one run has no second record.
    """
    chosen = build(CompareSettings, settings, "a comparison")
    if after is None:
        if len(before) < 2:
            raise InputError(f"the run has one record, {before[0].name!r}; give a second run to compare it with")
        pairs, alone = [(before[0], each) for each in before[1:]], []
    elif len(before) == len(after) == 1:
        pairs, alone = [(before[0], after[0])], []
    else:
        later = {each.name: each for each in after}
        pairs = [(each, later[each.name]) for each in before if each.name in later]
        alone = sorted({each.name for each in before} ^ set(later))
        if not pairs:
            raise InputError(
                f"the runs have no record of one name: {', '.join(each.name for each in before)}, and "
                f"{', '.join(later)}; measure them under the same names"
            )
    notes = [f"{', '.join(alone)}: in one run only"] if alone else []
    differences = []
    for a, b in pairs:
        differences += compare_records(a, b, chosen)
        notes += notes_on(a, b, chosen)
    return BenchmarkComparison(tuple(differences), tuple(dict.fromkeys(notes)))


def compare_records(
    before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings | None = None
) -> list[Difference]:
    """Every metric that both records have: scores, latencies, throughput, size, parameters and memory."""
    settings = settings or CompareSettings()
    name = after.name if before.name == after.name else f"{before.name} -> {after.name}"
    found = []
    for metric in SCORES:
        if metric in before.scores and metric in after.scores:
            a, b = before.scores[metric], after.scores[metric]
            p = _p_value(before, after, metric)
            if a == b:
                verdict = SAME
            else:
                verdict = UNTESTED if p is None else NOISE if p > settings.level else BETTER if b > a else WORSE
            found.append(Difference(name, metric, "", a, b, None, None, None, p, verdict))
    spans = latency_intervals(before, after, settings)
    for metric in ("p50", "mean", "p95", "p99"):
        a, b = getattr(before.latency, metric), getattr(after.latency, metric)
        found.append(_ratio(name, f"{metric} latency", "ms", a, b, spans.get(metric), _drift(before, after, settings)))
    exact, drift = 0.0, settings.drift
    for metric, unit, a, b, margin in (
        ("throughput", "examples/s", before.throughput, after.throughput, drift),
        ("size", "bytes", before.size, after.size, exact),
        ("parameters", "", before.parameters, after.parameters, exact),
        *_memories(before, after, drift),
    ):
        if a is not None and b is not None:
            found.append(_ratio(name, metric, unit, a, b, None, margin, greater=metric == "throughput"))
    return found


def _memories(before: BenchmarkRecord, after: BenchmarkRecord, drift: float):
    a, b = before.memory, after.memory
    if a and b and (a.alone, a.during) == (b.alone, b.during):  # peaks of different things do not compare
        yield "peak memory", "bytes", a.peak, b.peak, drift
        yield "memory of the model", "bytes", a.growth, b.growth, drift


def notes_on(before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings) -> list[str]:
    """What a reader of a comparison should know."""
    notes = []
    if before.data != after.data:
        notes.append(
            f"{before.name} and {after.name} answered other texts: scores are not tested, and latencies differ for that "
            "reason, too"
        )
    for key, what in (("processor", "processors"), ("cores", "numbers of cores"), ("environment", "environments")):
        a, b = before.machine.get(key), after.machine.get(key)
        if a != b:
            notes.append(f"other {what}: {a} and {b}")
    a, b = before.machine.get("versions", {}), after.machine.get("versions", {})
    changed = [f"{name} {a.get(name)} -> {b.get(name)}" for name in sorted({*a, *b}) if a.get(name) != b.get(name)]
    if changed:
        notes.append(f"other versions: {', '.join(changed)}")
    if before.framework != after.framework:
        notes.append(f"other frameworks: {before.framework} and {after.framework}")
    if before.run != after.run:
        notes.append(
            f"measured in two runs: ratios of times within {settings.drift:.0%} are taken for noise; one run measures its "
            "models in turns"
        )
    if (before.out_of_scope, before.threshold) != (after.out_of_scope, after.threshold):
        notes.append(f"other thresholds: {before.threshold} and {after.threshold}")
    return notes


def _drift(before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings) -> float:
    return 0.0 if before.run == after.run else settings.drift


def _ratio(name, metric, unit, before, after, span, margin, greater=False) -> Difference:
    """A metric whose ratio says how much more or less it is; it is noise where the interval or the margin says so."""
    if not before:
        return Difference(name, metric, unit, before, after, None, None, None, None, SAME if not after else UNTESTED)
    ratio = after / before
    low, high = span or (ratio, ratio)
    if before == after:
        verdict = SAME
    elif metric.endswith("latency") and span is None:
        verdict = UNTESTED if abs(ratio - 1) > margin else NOISE
    elif low <= 1 + margin and high >= 1 - margin:
        verdict = NOISE
    else:
        verdict = BETTER if (ratio > 1) == greater else WORSE
    return Difference(
        name, metric, unit, before, after, ratio, low if span else None, high if span else None, None, verdict
    )


def _p_value(before: BenchmarkRecord, after: BenchmarkRecord, metric: str) -> float | None:
    """McNemar's of a score, over the examples that it is about; None for different examples."""
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
    """The exact two-sided p-value that two classifiers are right equally often, from paired answers.

    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages" (1947), with the
    binomial distribution in place of chi-squared: of the examples that only one of two answered right, either is as likely.

    Args:
        first_alone, second_alone: how many examples only the first, and only the second, answered right.
    """
    total, fewer = first_alone + second_alone, min(first_alone, second_alone)
    tail = sum(math.comb(total, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / 2**total)


def latency_intervals(
    before: BenchmarkRecord, after: BenchmarkRecord, settings: CompareSettings
) -> dict[str, tuple[float, float]]:
    """Intervals of the ratio after / before of the mean and percentiles, by the paired bootstrap over queries.

    The same queries are drawn for both, so that long ones do not blur the ratio. Empty where samples were not kept, or are
    of other texts or other queries, or of too few of them.
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
    return {metric: interval(np.concatenate(values), 1 - settings.level) for metric, values in ratios.items()}
