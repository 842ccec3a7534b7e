"""Several systems over the same examples: scores with intervals, and which differences are more than chance."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.base import Metric, References, check_predictions, check_references
from duonlp.metrics.bootstrap import ROUNDING, Score, check_settings, holm, interval, p_value, resampled_sums, wins

BATCH = 64
"""Examples scored between two steps of a progress bar."""

FEW = 30
"""Below it the bootstrap claims too much: of systems alike, 5% are told apart at 0.05 from 30 examples on, 8% at 10, 18% at 4."""


@dataclass(frozen=True)
class Difference:
    """One system against another, by one kind of score, on the same resamples of the examples.

    difference: the first system's score less the second's, with its interval.
    p_value: how often chance alone gives one as large, either way.
    corrected_p_value: the same after Holm's correction over all pairs of systems.
    wins: share of the resamples in which the first is above the second.
    significant: the corrected p-value is at most the level.
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
    """What `compare` found.

    scores: {system: {kind: Score}}, on the scale of the library that computed it.
    differences: of all pairs of systems and kinds, the first system of a pair being the one that was named first.
    highest: {kind: 1.0 or 100.0}, the best score there is. Tables and pictures show all scores in percent of it.
    signatures: {kind: library, version, options}.
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

    def table(self):
        """A rich renderable: scores with their intervals, and below them the differences, with * where significant."""
        from rich.console import Group
        from rich.text import Text

        parts = [Text(f"{self.examples} examples; scores in percent, with {self.confidence:.0%} intervals")]
        parts.append(self.scores_table())
        if self.differences:
            parts += [Text("\ndifferences, with their p-values"), self.differences_table(), Text(self.note)]
        return Group(*parts)

    def scores_table(self):
        """A rich table of the systems' scores in percent, each above its interval."""
        from rich.markup import escape

        table = self._columns("system")
        for system, scores in self.scores.items():
            cells = []
            for kind, score in scores.items():
                low, value, high = (self._percent(kind, number) for number in score)
                cells.append(f"{value:.2f}\n[dim]{low:.1f}-{high:.1f}[/dim]")
            table.add_row(escape(system), *cells)
        return table

    def differences_table(self):
        """A rich table of the pairs' differences in percent, each above its corrected p-value."""
        from rich.markup import escape

        rows: dict[tuple[str, str], list[str]] = {}
        for each in self.differences:
            value = f"{self._percent(each.kind, each.difference.value):+.2f}"
            shown = f"[bold]{value}*[/bold]" if each.significant else f"{value} "
            p = "<0.001" if each.corrected_p_value < 0.001 else f"{each.corrected_p_value:.3f}"
            rows.setdefault((each.first, each.second), []).append(f"{shown}\n[dim]{p} [/dim]")
        table = self._columns("systems")
        for (first, second), cells in rows.items():
            table.add_row(f"{escape(first)}\n- {escape(second)}", *cells)
        return table

    def _columns(self, first: str):
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column(first, overflow="fold")
        for kind in self.highest:
            table.add_column(kind, justify="right", no_wrap=True)
        return table

    @property
    def note(self) -> str:
        """What a star in the table of differences means."""
        pairs = len(self.scores) * (len(self.scores) - 1) // 2
        corrected = f", corrected for {pairs} pairs (Holm)" if pairs > 1 else ""
        few = (
            f"\nfewer than {FEW} examples: the intervals are too narrow, the p-values too low"
            if self.examples < FEW
            else ""
        )
        return f"* p at most {self.level:g}: paired bootstrap, {self.resamples} resamples{corrected}{few}"

    def _percent(self, kind: str, value: float) -> float:
        return 100 * value / self.highest[kind]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON."""
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
            "differences": [
                {
                    "first": each.first, "second": each.second, "kind": each.kind, **each.difference._asdict(),
                    "p_value": each.p_value, "corrected_p_value": each.corrected_p_value, "wins": each.wins,
                    "significant": each.significant,
                }
                for each in self.differences
            ],
        }  # fmt: skip

    def plot(self, file: str | os.PathLike, title: str = "") -> None:
        """Draws the scores with their intervals, a panel for each kind and a row for each system.

        Args:
            file: a .png, .svg or .pdf file in a folder that is there.
            title: above the picture.

        Raises:
            InputError: an unknown kind of file, or a folder that is not there.
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
                    low, value, high = (self._percent(kind, number) for number in scores[kind])
                    beyond = [[max(value - low, 0)], [max(high - value, 0)]]
                    axes.errorbar(value, row, xerr=beyond, fmt="o", capsize=3, color=COLOURS[row % len(COLOURS)])
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
    """Scores several systems over the same examples, and tests each difference by the paired bootstrap.

    All systems are scored on the same resamples of the examples (Koehn, EMNLP 2004), so that an example that is hard for
    both does not blur their difference. The p-value has two sides (see :func:`duonlp.metrics.bootstrap.p_value`). Where
    there are several pairs of systems, Holm's correction holds the chance of even one wrong claim at `level`, over all
    pairs; each kind of score is a question of its own, and is not corrected for the others. With fewer than some 30 examples the
    bootstrap claims too much, which the table says.

    Args:
        systems: {name: predictions}, or (name, predictions) pairs. Each has one text an example.
        references: for each example a text, or a list of several.
        metrics: what to measure, as made by Rouge(...) and Bleu(...); both with their defaults where None. They are taken
            for their options, and keep no examples.
        confidence: of the intervals.
        resamples: of the examples.
        seed: of the resamples.
        level: a corrected p-value up to it is significant.
        progress: called with numbers of examples that have been scored since the last call, over all systems and metrics.

    Raises:
        InputError: no system, two of one name, predictions that do not fit the references, fewer than two examples, which
            leave nothing to resample, an empty reference, a kind of score twice, or too few resamples for so many pairs.
        MissingExtraError: rouge-score or sacrebleu is not installed.
    """
    check_settings(confidence, resamples, seed)
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise InputError(f"level is {level!r}; it must be between 0 and 1, such as 0.05")
    texts, wanted = check_systems(systems, references)
    pairs = list(combinations(texts, 2))
    check_resamples(len(texts), resamples, level)
    metrics = default_metrics() if metrics is None else list(metrics)
    check_metrics(metrics)
    scores: dict[str, dict[str, Score]] = {name: {} for name in texts}
    differences: dict[tuple[str, str], list[Difference]] = {pair: [] for pair in pairs}
    signatures: dict[str, str] = {}
    for metric in metrics:
        full, resampled, signature = measured(metric, texts, wanted, resamples, seed, progress)
        for kind in metric.kinds:
            signatures[kind] = signature
            for name in texts:
                low, high = interval(resampled[name][kind], confidence)
                scores[name][kind] = Score(low, full[name][kind], high)
            found = [
                (full[a][kind] - full[b][kind], resampled[a][kind] - resampled[b][kind]) for a, b in pairs
            ]  # fmt: skip
            rounding = ROUNDING * metric.highest
            p_values = np.array([p_value(samples, value, rounding) for value, samples in found])
            for pair, (value, samples), p, corrected in zip(pairs, found, p_values, holm(p_values), strict=True):
                low, high = interval(samples, confidence)
                differences[pair].append(
                    Difference(
                        *pair, kind, Score(low, value, high), float(p), float(corrected), wins(samples, rounding),
                        bool(corrected <= level),
                    )
                )  # fmt: skip
    return Comparison(
        scores, tuple(each for pair in pairs for each in differences[pair]),
        {kind: metric.highest for metric in metrics for kind in metric.kinds}, signatures, len(wanted), confidence,
        resamples, seed, level,
    )  # fmt: skip


def default_metrics() -> list[Metric]:
    """ROUGE-1, 2, L and Lsum and BLEU, with their defaults."""
    from duonlp.metrics.bleu import Bleu
    from duonlp.metrics.rouge import Rouge

    return [Rouge(), Bleu()]


def check_resamples(systems: int, resamples: int, level: float = 0.05) -> None:
    """Raises InputError for resamples too few for any difference between so many systems to be significant.

    The smallest p-value there can be is 1 / (1 + resamples), and Holm's correction multiplies it by the pairs.
    """
    pairs = systems * (systems - 1) // 2
    least = max(1, math.ceil(round(pairs / level, 6)) - 1)
    if not pairs and resamples < least:
        raise InputError(f"resamples is {resamples}; intervals take at least {least}, and 1000 are usual")
    if resamples < least:
        raise InputError(
            f"resamples is {resamples}; to tell {systems} systems apart at {level:g} takes at least {least}"
        )


def check_metrics(metrics: Sequence[Any]) -> None:
    """Raises InputError for what is no metric, and for a kind of score that two of them give."""
    kinds = []
    for metric in metrics:
        if not isinstance(metric, Metric):
            raise InputError(f"metrics have {metric!r}; give Rouge(...) and Bleu(...)")
        kinds += metric.kinds
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice or not kinds:
        raise InputError(
            f"metrics give {', '.join(twice)} twice" if twice else "there are no metrics; give at least one"
        )


def check_systems(
    systems: Mapping[str, Iterable[str]] | Sequence[tuple[str, Iterable[str]]], references: References
) -> tuple[dict[str, list[str]], list[list[str]]]:
    """{name: predictions}, and the references of each example as a list, checked against each other.

    Raises:
        InputError: as `compare`.
    """
    wanted = check_references(references)
    pairs = list(systems.items()) if isinstance(systems, Mapping) else list(systems)
    if not pairs:
        raise InputError("there are no systems; give at least one, as {name: predictions}")
    texts: dict[str, list[str]] = {}
    for pair in pairs:
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[0], str) or not pair[0]:
            raise InputError(f"systems have {repr(pair)[:60]}; give {{name: predictions}} with names that are texts")
        name, predictions = pair
        if name in texts:
            raise InputError(f"two systems are named {name!r}; give each a name of its own")
        try:
            texts[name] = check_predictions(predictions)
        except InputError as error:
            raise InputError(f"system {name!r}: {error}") from error
        if len(texts[name]) != len(wanted):
            raise InputError(
                f"system {name!r} has {len(texts[name])} predictions, and there are {len(wanted)} references; give one "
                "for each"
            )
    if len(wanted) < 2:
        raise InputError(
            "there is 1 example; intervals and differences come from resampled examples and need at least 2"
        )
    return texts, wanted


def measured(
    metric: Metric, texts: dict[str, list[str]], references: References, resamples: int, seed: int, progress
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, np.ndarray]], str]:
    """For each system and kind the score of all examples, and those of the resamples; then the metric's signature."""
    full, resampled, signature = {}, {}, ""
    for name, predictions in texts.items():
        system = metric.fresh()
        for start in range(0, len(predictions), BATCH):
            part = predictions[start : start + BATCH]
            system.add(part, references[start : start + BATCH])
            if progress is not None:
                progress(len(part))
        rows, signature = system.statistics, system.signature
        full[name] = {
            kind: float(value[0]) for kind, value in system.scores(rows.sum(axis=0, keepdims=True), len(rows)).items()
        }
        resampled[name] = system.scores(resampled_sums(rows, resamples, seed), len(rows))
    return full, resampled, signature
