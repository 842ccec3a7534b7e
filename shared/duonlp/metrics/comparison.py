"""Compare several systems on the same examples: scores with confidence intervals and significance of differences."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.base import Metric, References, check_predictions, check_references
from duonlp.metrics.bootstrap import ROUNDING, Score, check_settings, holm, interval, p_value, resampled_sums, win_rate
from duonlp.names import merge_named

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.table import Table

BATCH = 64
"""Number of examples scored between two updates of a progress bar."""

FEW = 30
"""Below this many examples the bootstrap is too liberal: at level 0.05 it separates equal systems in 8% of cases with 10
examples and in 18% with 4, but in 5% from 30 on."""


@dataclass(frozen=True)
class Difference:
    """The difference of two systems in one kind of score, on the same resamples of the examples.

    Attributes:
        first: Name of the first system.
        second: Name of the second system.
        kind: Name of the score.
        difference: Score of the first system minus that of the second, with its confidence interval.
        p_value: How often chance alone gives a difference as large (two-sided).
        corrected_p_value: The p-value after Holm's correction over all pairs of systems.
        wins: Fraction of resamples in which the first system scores higher; ties count half.
        significant: Whether the corrected p-value is at most the level.
    """

    first: str
    second: str
    kind: str
    difference: Score
    p_value: float
    corrected_p_value: float
    wins: float
    significant: bool


@dataclass(frozen=True)
class Comparison:
    """Result of `compare`.

    Attributes:
        scores: {system: {kind: Score}}, on the scale of the library that computed it.
        differences: Differences of all pairs of systems in all kinds of scores, in the order of the systems.
        highest: {kind: 1.0 or 100.0}, the best possible score. Tables and plots show percentages of it.
        signatures: {kind: library, version and options}.
        examples: Number of examples.
        confidence: Confidence level of the intervals.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        level: Significance level.
        parts: {system: {name: numbers}}, what BLEU comes from: counts, totals, precisions, bp, sys_len and ref_len.
    """

    scores: dict[str, dict[str, Score]]
    differences: tuple[Difference, ...]
    highest: dict[str, float]
    signatures: dict[str, str]
    examples: int
    confidence: float
    resamples: int
    seed: int
    level: float
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def table(self) -> "Group":
        """Return a rich renderable of the scores with intervals and, below, the differences, with * if significant."""
        from rich.console import Group
        from rich.text import Text

        parts: list[RenderableType] = [
            Text(f"{self.examples} examples; scores in percent, with {self.confidence:.0%} intervals"),
            self.scores_table(),
        ]
        parts += [
            Text(_bleu_line(system, numbers)) for system, numbers in self.parts.items() if "precisions" in numbers
        ]
        if self.differences:
            parts += [Text("\ndifferences, with their p-values"), self.differences_table(), Text(self.note)]
        return Group(*parts)

    def scores_table(self) -> "Table":
        """Return a rich table of the systems' scores in percent, each above its interval."""
        from rich.text import Text

        table = self._columns("system")
        for system, scores in self.scores.items():
            cells = []
            for kind, score in scores.items():
                low, value, high = self._percentages(kind, score)
                cells.append(Text.assemble(f"{value:.2f}\n", (f"{low:.1f}-{high:.1f}", "dim")))
            table.add_row(Text(system), *cells)
        return table

    def differences_table(self) -> "Table":
        """Return a rich table of the differences in percent, each above its corrected p-value."""
        from rich.text import Text

        rows: dict[tuple[str, str], list[Text]] = {}
        for difference in self.differences:
            _, percent, _ = self._percentages(difference.kind, difference.difference)
            value = (f"{percent:+.2f}*", "bold") if difference.significant else (f"{percent:+.2f} ", "")
            p = "<0.001" if difference.corrected_p_value < 0.001 else f"{difference.corrected_p_value:.3f}"
            rows.setdefault((difference.first, difference.second), []).append(
                Text.assemble(value, "\n", (f"{p} ", "dim"))
            )
        table = self._columns("systems")
        for (first, second), cells in rows.items():
            table.add_row(Text(f"{first}\n- {second}"), *cells)
        return table

    def _columns(self, first: str) -> "Table":
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(first, overflow="fold")
        for kind in self.highest:
            table.add_column(kind, justify="right", no_wrap=True)
        return table

    @property
    def note(self) -> str:
        """Legend of the table of differences: what * means."""
        pairs = len(self.scores) * (len(self.scores) - 1) // 2
        corrected = f", corrected for {pairs} pairs (Holm)" if pairs > 1 else ""
        few = (
            f"\nfewer than {FEW} examples: intervals are too narrow and p-values too low" if self.examples < FEW else ""
        )
        return f"* p at most {self.level:g}: paired bootstrap, {self.resamples} resamples{corrected}{few}"

    def _percentages(self, kind: str, score: Score) -> tuple[float, float, float]:
        """Return the lower bound, value and upper bound of a score in percent of the best possible score."""
        assert score.low is not None and score.high is not None, "compare always computes intervals"
        low, value, high = (100 * number / self.highest[kind] for number in (score.low, score.value, score.high))
        return low, value, high

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        return {
            "examples": self.examples,
            "settings": {
                "confidence": self.confidence, "resamples": self.resamples, "seed": self.seed, "level": self.level,
            },
            "metrics": {
                kind: {"highest": highest, "signature": self.signatures[kind]} for kind, highest in self.highest.items()
            },
            "scores": {
                system: {kind: score._asdict() for kind, score in scores.items()} for system, scores in self.scores.items()
            },
            "parts": self.parts,
            "differences": [
                {
                    "first": row.first, "second": row.second, "kind": row.kind, **row.difference._asdict(),
                    "p_value": row.p_value, "corrected_p_value": row.corrected_p_value, "wins": row.wins,
                    "significant": row.significant,
                }
                for row in self.differences
            ],
        }  # fmt: skip

    def plot(self, file: str | os.PathLike, title: str = "") -> None:
        """Plot the scores with their intervals: one panel per kind, one row per system.

        Args:
            file: A .png, .svg or .pdf file in an existing folder.
            title: Title above the figure.

        Raises:
            InputError: The file format is unsupported, or the folder does not exist.
            MissingExtraError: matplotlib is not installed.
        """
        from duonlp.util.pictures import check_picture_file, picture, require_matplotlib

        file = Path(file)
        check_picture_file(file)
        require_matplotlib("scores are plotted")

        from duonlp.util.pictures import COLOURS

        size = (1.6 + 1.75 * len(self.highest), 1.3 + 0.42 * len(self.scores))
        with picture(file, *size) as figure:
            panels = figure.subplots(1, len(self.highest), sharey=True, squeeze=False)[0]
            rows = range(len(self.scores))
            for axes, kind in zip(panels, self.highest, strict=True):
                for row, scores in enumerate(self.scores.values()):
                    low, value, high = self._percentages(kind, scores[kind])
                    errors = [[max(value - low, 0)], [max(high - value, 0)]]
                    axes.errorbar(value, row, xerr=errors, fmt="o", capsize=3, color=COLOURS[row % len(COLOURS)])
                axes.set_title(kind, fontsize=10)
                axes.grid(axis="x", alpha=0.25, linewidth=0.6)
                axes.spines[["top", "right"]].set_visible(False)
                axes.margins(x=0.12)
                axes.locator_params(axis="x", nbins=4)
            panels[0].set_yticks(rows, list(self.scores))
            panels[0].set_ylim(len(self.scores) - 0.5, -0.5)
            figure.supxlabel(f"percent, {self.confidence:.0%} intervals, {self.examples} examples", fontsize=9)
            if title:
                figure.suptitle(title, fontsize=12)


def _bleu_line(system: str, parts: Mapping[str, Any]) -> str:
    """Format the parts of a BLEU much as sacrebleu does."""
    precisions = "/".join(f"{value:.1f}" for value in parts["precisions"])
    lengths = f"hyp_len = {parts['sys_len']}, ref_len = {parts['ref_len']}"
    return f"BLEU of {system}: {precisions}, BP = {parts['bp']:.3f}, {lengths}"


def compare(
    systems: Mapping[str, Iterable[str]] | Sequence[tuple[str, Iterable[str]]],
    references: References,
    metrics: Sequence[Metric] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.05,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Score several systems on the same examples, and test their differences by the paired bootstrap.

    All systems are scored on the same resamples of the examples (Koehn, EMNLP 2004), so that an example that is hard for
    both does not blur their difference. P-values are two-sided (see :func:`duonlp.metrics.bootstrap.p_value`). With
    several pairs of systems, Holm's correction bounds the chance of even one false claim over all pairs by `level`,
    separately for each kind of score. With fewer than about 30 examples the bootstrap is too liberal; the table says so.

    Args:
        systems: {name: predictions}, or (name, predictions) pairs, with one text per example.
        references: One text, or a list of several, per example.
        metrics: Metrics to compute. Defaults to Rouge() and Bleu(). Only their options are used; no examples are added to
            them.
        confidence: Confidence level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        level: Significance level for corrected p-values.
        progress: Called with the number of examples scored since the last call, over all systems and metrics.

    Raises:
        InputError: There are no systems, or two have the same name; predictions do not match the references; a reference
            is empty; there are fewer than two examples; a kind of score is repeated; or there are too few resamples for
            the number of pairs.
        MissingExtraError: rouge-score or sacrebleu is not installed.
    """
    check_settings(confidence, resamples, seed)
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise InputError(f"level is {level!r}; it must be between 0 and 1 (exclusive), such as 0.05")
    texts, reference_lists = check_systems(systems, references)
    pairs = list(combinations(texts, 2))
    check_resamples(len(texts), resamples, level)
    metrics = default_metrics() if metrics is None else list(metrics)
    check_metrics(metrics)
    scores: dict[str, dict[str, Score]] = {name: {} for name in texts}
    differences: dict[tuple[str, str], list[Difference]] = {pair: [] for pair in pairs}
    signatures: dict[str, str] = {}
    parts: dict[str, dict[str, Any]] = {name: {} for name in texts}
    for metric in metrics:
        full, resampled, signature, numbers = measure_systems(metric, texts, reference_lists, resamples, seed, progress)
        parts = {name: merge_named(parts[name], numbers[name], "the parts of two metrics") for name in texts}
        for kind in metric.kinds:
            signatures[kind] = signature
            for name in texts:
                low, high = interval(resampled[name][kind], confidence)
                scores[name][kind] = Score(low, full[name][kind], high)
            pair_differences = [
                (full[a][kind] - full[b][kind], resampled[a][kind] - resampled[b][kind]) for a, b in pairs
            ]
            rounding = ROUNDING * metric.highest
            p_values = np.array([p_value(samples, value, rounding) for value, samples in pair_differences])
            rows = zip(pairs, pair_differences, p_values, holm(p_values), strict=True)
            for pair, (value, samples), p, corrected in rows:
                low, high = interval(samples, confidence)
                differences[pair].append(
                    Difference(
                        *pair, kind, Score(low, value, high), float(p), float(corrected), win_rate(samples, rounding),
                        bool(corrected <= level),
                    )
                )  # fmt: skip
    return Comparison(
        scores, tuple(row for pair in pairs for row in differences[pair]),
        {kind: metric.highest for metric in metrics for kind in metric.kinds}, signatures, len(reference_lists),
        confidence, resamples, seed, level, {name: numbers for name, numbers in parts.items() if numbers},
    )  # fmt: skip


def default_metrics() -> list[Metric]:
    """Return ROUGE-1, 2, L and Lsum, and BLEU, with default options."""
    from duonlp.metrics.bleu import Bleu
    from duonlp.metrics.rouge import Rouge

    return [Rouge(), Bleu()]


def check_resamples(systems: int, resamples: int, level: float = 0.05) -> None:
    """Raise InputError if there are too few resamples for any difference between the systems to be significant.

    The smallest possible p-value is 1 / (1 + resamples), and Holm's correction multiplies it by the number of pairs.

    Args:
        systems: Number of systems.
        resamples: Number of bootstrap resamples.
        level: Significance level.
    """
    pairs = systems * (systems - 1) // 2
    least = max(1, math.ceil(round(pairs / level, 6)) - 1)
    if not pairs and resamples < least:
        raise InputError(f"resamples is {resamples}; intervals need at least {least}, and 1000 are usual")
    if resamples < least:
        raise InputError(
            f"resamples is {resamples}; comparing {systems} systems at level {level:g} needs at least {least}"
        )


def check_metrics(metrics: Sequence[Any]) -> None:
    """Raise InputError if an entry is not a metric, there are none, or two compute the same kind of score."""
    kinds = []
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"metrics contain {metric!r}; give metrics such as Rouge(...) and Bleu(...)")
        kinds += metric.kinds
    repeated = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if repeated:
        raise InputError(f"metrics compute {', '.join(repeated)} twice; give each kind of score once")
    if not kinds:
        raise InputError("there are no metrics; give at least one")


def check_systems(
    systems: Mapping[str, Iterable[str]] | Sequence[tuple[str, Iterable[str]]], references: References
) -> tuple[dict[str, list[str]], list[list[str]]]:
    """Return {name: predictions} and the list of references of each example, after checking that they match.

    Raises:
        InputError: There are no systems, or two have the same name; predictions do not match the references; a reference
            is empty; or there are fewer than two examples.
    """
    reference_lists = check_references(references)
    pairs = list(systems.items()) if isinstance(systems, Mapping) else list(systems)
    if not pairs:
        raise InputError("there are no systems; give at least one, as {name: predictions}")
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or not pair[0]:
            raise InputError(f"systems contain {repr(pair)[:60]}; give {{name: predictions}} with non-empty names")
        name, predictions = pair
        if name in texts:
            raise InputError(f"two systems are named {name!r}; give each a unique name")
        try:
            texts[name] = check_predictions(predictions)
        except InputError as error:
            raise InputError(f"system {name!r}: {error}") from error
        if len(texts[name]) != len(reference_lists):
            raise InputError(
                f"system {name!r} has {len(texts[name])} predictions, but there are {len(reference_lists)} references; give "
                "one for each"
            )
    if len(reference_lists) < 2:
        raise InputError("there is only 1 example; intervals and differences need at least 2 to resample")
    return texts, reference_lists


def measure_systems(
    metric: Metric,
    texts: dict[str, list[str]],
    references: References,
    resamples: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]], str, dict[str, dict[str, Any]]]:
    """Compute a metric for every system, on all examples and on resamples of them.

    Args:
        metric: Metric whose options are used.
        texts: {system: predictions}.
        references: References of each example.
        resamples: Number of bootstrap resamples.
        seed: Seed of the resamples.
        progress: Called with the number of examples scored since the last call.

    Returns:
        {system: {kind: score}}, {system: {kind: float64 [resamples]}}, the metric's signature, and {system: its parts}.
    """
    full, resampled, signature, parts = {}, {}, "", {}
    for name, predictions in texts.items():
        system = metric.fresh()
        for start in range(0, len(predictions), BATCH):
            batch = predictions[start : start + BATCH]
            system.add(batch, references[start : start + BATCH])
            if progress is not None:
                progress(len(batch))
        rows, signature, parts[name] = system.statistics, system.signature, system.parts
        full[name] = {
            kind: float(value[0]) for kind, value in system.scores(rows.sum(axis=0, keepdims=True), len(rows)).items()
        }
        resampled[name] = system.scores(resampled_sums(rows, resamples, seed), len(rows))
    return full, resampled, signature, parts
