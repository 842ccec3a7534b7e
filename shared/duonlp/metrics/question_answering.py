"""Exact match and F1 of answers, as the official evaluation script of SQuAD 2.0 (Rajpurkar et al. 2018, arXiv:1806.03822).

A text is compared after lowercasing it, removing ASCII punctuation and the articles a, an and the, and collapsing spaces. With
several references the best counts. The only right answer to a question without references is the empty text.
"""

import os
import re
import string
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.bootstrap import Score, check_settings, interval, resampled_sums
from duonlp.util.files import write_text
from duonlp.util.json_text import to_json
from duonlp.util.reading import read_json_object
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from rich.table import Table

METRICS = ("exact", "f1")
GROUPS = {"": "all", "HasAns_": "answerable", "NoAns_": "unanswerable"}
"""Prefixes of the official script's names of scores, and what they are of."""

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return an answer as it is compared: lowercase, without ASCII punctuation and articles, words separated by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, references: Iterable[str]) -> float:
    """Return 1.0 if the normalized prediction equals one of the normalized references, else 0.0.

    Args:
        prediction: The predicted answer, "" for none.
        references: Texts of the true answers; empty if there is none.
    """
    return _best_scores(prediction, references)[0]


def token_f1(prediction: str, references: Iterable[str]) -> float:
    """Return the best F1 of the words that a prediction shares with one of the references, from 0.0 to 1.0.

    If either side has no words, it is 1.0 if neither has, else 0.0.

    Args:
        prediction: The predicted answer, "" for none.
        references: Texts of the true answers; empty if there is none.
    """
    return _best_scores(prediction, references)[1]


def _best_scores(prediction: str, references: Iterable[str]) -> tuple[float, float]:
    """Return the exact match and the F1 of a prediction, each with the best reference."""
    # A reference without a word is dropped; without any reference, "" is the right answer.
    targets = dict.fromkeys(filter(None, map(normalize_answer, references))) or {"": None}
    text = normalize_answer(prediction)
    words = text.split()
    return float(text in targets), max(_f1(words, target.split()) for target in targets)


def _f1(words: list[str], target: list[str]) -> float:
    if not words or not target:
        return float(words == target)
    common = sum((Counter(words) & Counter(target)).values())
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(target)
    return 2 * precision * recall / (precision + recall)


@dataclass(frozen=True)
class ExampleScores:
    """Scores of each question, in the order of the questions.

    Attributes:
        ids: Ids of the questions.
        exact: float64 [n], exact match, 0 or 1.
        f1: float64 [n], F1 from 0 to 1.
        has_answer: bool [n], whether the question has an answer.
        is_empty: bool [n], whether the prediction is "".
    """

    ids: list[str]
    exact: np.ndarray
    f1: np.ndarray
    has_answer: np.ndarray
    is_empty: np.ndarray

    def at_threshold(self, gaps: np.ndarray, threshold: float) -> "ExampleScores":
        """Return the scores if "" replaces each prediction whose gap is above a threshold.

        Args:
            gaps: float [n], null gaps.
            threshold: The threshold.
        """
        null = gaps > threshold
        exact, f1 = (np.where(null, ~self.has_answer, scores) for scores in (self.exact, self.f1))
        return ExampleScores(self.ids, exact, f1, self.has_answer, self.is_empty | null)


def example_scores(predictions: Mapping[str, str], questions: Iterable[Mapping[str, Any]]) -> ExampleScores:
    """Return the scores of each question.

    Args:
        predictions: {id: predicted answer}, "" for none.
        questions: Such as `read_questions` returns; of a row, "id" and the texts of "answers" are used.

    Raises:
        InputError: There are no questions, an id occurs twice, has no prediction or is not one of the questions', or a
            prediction is not a text.
    """
    references: dict[str, Sequence[str]] = {}
    for number, row in enumerate(questions):
        if row["id"] in references:
            raise InputError(f"question {number} has the id {row['id']!r} of a question before it; give each its own")
        references[row["id"]] = row["answers"]["text"]
    if not references:
        raise InputError("there are no questions to score; give at least one")
    ids = list(references)
    _check_ids("predictions", predictions, ids)
    for name in ids:
        if not isinstance(predictions[name], str):
            raise InputError(
                f"the prediction for {name!r} is {predictions[name]!r:.60}; it must be a text, empty if there is no answer"
            )
    best = np.array([_best_scores(predictions[name], references[name]) for name in ids])  # [n, 2]
    return ExampleScores(
        ids,
        best[:, 0],
        best[:, 1],
        np.array([len(references[name]) > 0 for name in ids]),
        np.array([not predictions[name] for name in ids]),
    )


def _check_ids(what: str, values: Mapping[str, Any], ids: Sequence[str]) -> None:
    """Raise InputError unless there is a value for each id and no other."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"{what} are of type {type(values).__name__}; give a dict with the id of each question as a key"
        )
    if missing := [name for name in ids if name not in values]:
        raise InputError(
            f"{what} lack {len(missing)} of {len(ids)} questions, such as {missing[0]!r}; give one for each question"
        )
    if len(values) > len(ids):
        known = set(ids)
        extra = [name for name in values if name not in known]
        raise InputError(
            f"{what} have {len(extra)} ids that no question has, such as {extra[0]!r}; give those of these questions only"
        )


def _gap_array(null_gaps: Mapping[str, float], ids: Sequence[str]) -> np.ndarray:
    """Return the gaps in the order of the ids, float64 [n]."""
    _check_ids("null_gaps", null_gaps, ids)
    for name in ids:
        value = null_gaps[name]
        if not _is_number(value):
            raise InputError(f"the null gap of {name!r} is {value!r:.60}; it must be a number")
    return np.array([float(null_gaps[name]) for name in ids])


def _is_number(value: Any) -> bool:
    """Return whether a value is a real number, which an infinity is and NaN is not."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool) and value == value


@dataclass(frozen=True)
class SquadScores(Mapping[str, float]):
    """Scores of predicted answers: a mapping with the names and numbers of the official script. `rich.print` shows a table.

    "exact", "f1" and "total" are of all questions, those with the prefix "HasAns_" of the questions with an answer, those with
    "NoAns_" of the others (left out if there are none). Scores are percentages. With null gaps there are also "best_exact",
    "best_exact_thresh", "best_f1" and "best_f1_thresh", as the official script computes them; see :func:`best_threshold`.

    Attributes:
        values_by_name: The scores by name.
        intervals: Score(low, value, high) of "exact", "f1" and their prefixed versions, with bootstrap bounds.
        confidence: Confidence level of the intervals.
        threshold: Null gap above which "" replaced the prediction; None if the predictions were scored as they are.
    """

    values_by_name: Mapping[str, float]
    intervals: Mapping[str, Score] = field(default_factory=dict)
    confidence: float = 0.95
    threshold: float | None = None

    def __getitem__(self, name: str) -> float:
        return self.values_by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_by_name)

    def __len__(self) -> int:
        return len(self.values_by_name)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        intervals = {name: {"low": score.low, "high": score.high} for name, score in self.intervals.items()}
        settings = {"confidence": self.confidence, "threshold": self.threshold}
        return {**self.values_by_name, "intervals": intervals, **settings}

    def table(self) -> "Table":
        """Return a rich table with a row for all, the answerable and the unanswerable questions."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("questions")
        for name in ("count", "EM", f"{self.confidence:.0%} interval", "F1", f"{self.confidence:.0%} interval"):
            table.add_column(name, justify="right", no_wrap=True)
        for prefix, name in GROUPS.items():
            if f"{prefix}total" in self:
                cells = (cell for metric in METRICS for cell in _cells(self.intervals[prefix + metric]))
                table.add_row(Text(name), f"{self[f'{prefix}total']:,}", *cells)
        return table

    def __rich__(self) -> "Table":
        return self.table()


def _cells(score: Score) -> tuple[str, str]:
    bounds = "" if score.low is None or score.high is None else f"{score.low:.1f} - {score.high:.1f}"
    return f"{score.value:.1f}", bounds


def squad_scores(
    predictions: Mapping[str, str],
    questions: Iterable[Mapping[str, Any]],
    *,
    null_gaps: Mapping[str, float] | None = None,
    threshold: float | None = None,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> SquadScores:
    """Score predicted answers as the official evaluation script of SQuAD 2.0 does, with bootstrap intervals over questions.

    Unlike the official script, which skips them, missing and additional ids are errors.

    Args:
        predictions: {id: predicted answer}, "" for none.
        questions: Such as `read_questions` returns.
        null_gaps: {id: score of no answer minus score of the prediction}, or any other number that grows with the probability
            that there is no answer ("na_prob" of the official script). Adds the best thresholds.
        threshold: Null gap above which (and not at which) "" replaces the prediction. None scores the predictions as they are.
        confidence: Confidence level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples; 0 computes no intervals, and their bounds are None.
        seed: Seed of NumPy's default generator, which draws the resamples.

    Raises:
        InputError: There are no questions, an id has no prediction or gap, or is not one of the questions', a value is
            invalid, or a threshold is given without gaps.
    """
    check_settings(confidence, resamples, seed)
    raw = scores = example_scores(predictions, questions)
    best: dict[str, float] = {}
    if threshold is not None and not _is_number(threshold):
        raise InputError(f"threshold is {threshold!r}; it must be a number or None")
    if null_gaps is not None:
        gaps = _gap_array(null_gaps, raw.ids)
        for metric in METRICS:
            best |= _official_best(metric, raw, gaps, list(null_gaps))
        if threshold is not None:
            scores = raw.at_threshold(gaps, threshold)
    elif threshold is not None:
        raise InputError(f"threshold is {threshold}, but there are no null_gaps to compare with it; pass null_gaps")
    values, intervals = _with_intervals(scores, confidence, resamples, seed)
    return SquadScores({**values, **best}, intervals, confidence, None if threshold is None else float(threshold))


def _with_intervals(
    scores: ExampleScores, confidence: float, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, Score]]:
    """Return the scores of each group, and those that are percentages with their intervals."""
    groups = {"": np.ones(len(scores.ids), bool), "HasAns_": scores.has_answer, "NoAns_": ~scores.has_answer}
    groups = {prefix: mask for prefix, mask in groups.items() if mask.any()}
    columns = [mask * part for mask in groups.values() for part in (1.0, scores.exact, scores.f1)]
    statistics = np.stack(columns, axis=1).astype(np.float64)  # [n, 3 x groups]
    samples = resampled_sums(statistics, resamples, seed) if resamples and len(statistics) > 1 else None
    values: dict[str, float] = {}
    intervals: dict[str, Score] = {}
    for number, (prefix, mask) in enumerate(groups.items()):
        total = int(mask.sum())
        for offset, metric in enumerate(METRICS, 1):
            value = 100.0 * float(statistics[:, 3 * number + offset].sum()) / total
            low = high = None
            if samples is not None:
                drawn = samples[samples[:, 3 * number] > 0]  # a resample may lack questions of a rare group
                ratios = 100.0 * drawn[:, 3 * number + offset] / drawn[:, 3 * number]
                low, high = interval(ratios, confidence)
            values[prefix + metric] = value
            intervals[prefix + metric] = Score(low, value, high)
        values[f"{prefix}total"] = total
    return values, intervals


def _official_best(metric: str, scores: ExampleScores, gaps: np.ndarray, order: Sequence[str]) -> dict[str, float]:
    """Return the best score (in percent) and threshold of the official script's ``find_best_thresh``, bit by bit.

    Each question in order of its gap switches from "" to its prediction. The scan also stops between equal gaps, takes any
    text for a wrong answer to an unanswerable question, even if it normalizes to "", and calls the threshold of no prediction
    at all 0, whatever the gaps.

    Args:
        metric: "exact" or "f1".
        scores: Scores of the predictions.
        gaps: float [n].
        order: Ids in the order in which equal gaps are scanned.
    """
    position = {name: number for number, name in enumerate(scores.ids)}
    rows = np.array([position[name] for name in order])
    rows = rows[np.argsort(gaps[rows], kind="stable")]
    gains = np.where(scores.has_answer, getattr(scores, metric), np.where(scores.is_empty, 0.0, -1.0))
    start = float((~scores.has_answer).sum())
    totals = np.cumsum(np.concatenate([[start], gains[rows]]))
    best = int(np.argmax(totals))
    threshold = float(gaps[rows[best - 1]]) if best else 0.0
    return {f"best_{metric}": 100.0 * float(totals[best]) / len(gaps), f"best_{metric}_thresh": threshold}


class BestThreshold(NamedTuple):
    """A threshold and the score at it.

    Attributes:
        threshold: Null gap above which "" replaces the prediction.
        score: Score of the questions at this threshold, in percent.
    """

    threshold: float
    score: float


def best_threshold(
    predictions: Mapping[str, str],
    questions: Iterable[Mapping[str, Any]],
    null_gaps: Mapping[str, float],
    metric: str = "f1",
) -> BestThreshold:
    """Return the null-gap threshold with the best score, in one scan over the sorted gaps.

    The score is what `squad_scores` gives at this threshold. It and the official script's differ only where no threshold
    attains the latter: among equal gaps, if no prediction at all is best but a gap is 0 or less, and for predictions such as
    "the", which count as "" everywhere but in the official scan.

    A threshold chosen on the questions that are scored is slightly optimistic; choose it on others.

    Args:
        predictions: {id: predicted answer}; as a rule the best text, not "".
        questions: Such as `read_questions` returns.
        null_gaps: {id: score of no answer minus score of the prediction}.
        metric: "f1" or "exact".

    Returns:
        The lowest of the best thresholds: a gap, or a number below all of them if "" is best for every question.

    Raises:
        InputError: As `squad_scores`, or the metric is unknown.
    """
    choice("metric", metric, METRICS)
    scores = example_scores(predictions, questions)
    gaps = _gap_array(null_gaps, scores.ids)
    order = np.argsort(gaps, kind="stable")
    ordered = gaps[order]
    without = (~scores.has_answer).astype(np.float64)  # score of "" for each question
    totals = np.cumsum(np.concatenate([[without.sum()], (getattr(scores, metric) - without)[order]]))
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1  # equal gaps switch together
    if ordered[0] > -np.inf:  # otherwise no threshold is below all gaps
        ends = np.concatenate([[0], ends])
    best = int(ends[np.argmax(totals[ends])])
    lowest = min(0.0, float(np.nextafter(ordered[0], -np.inf)))
    threshold = float(ordered[best - 1]) if best else lowest
    return BestThreshold(threshold, 100.0 * float(totals[best]) / len(gaps))


ADVICE = "give a file with one JSON object, as the official script of SQuAD 2.0 reads"


def read_answers(file: str | os.PathLike) -> dict[str, str]:
    """Read predicted answers in the official format, a JSON object {id: text}.

    Raises:
        InputError: The file cannot be read or is of another form.
    """
    answers = read_json_object(file, advice=ADVICE)
    for name, text in answers.items():
        if not isinstance(text, str):
            raise InputError(
                f"{str(file)!r}: the answer {name!r} is {text!r:.60}; it must be a text, empty if there is none"
            )
    return answers


def write_answers(file: str | os.PathLike, answers: Mapping[str, str]) -> None:
    """Write predicted answers in the official format, atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    write_text(Path(file), to_json(dict(answers), indent=1) + "\n")


def read_null_gaps(file: str | os.PathLike) -> dict[str, float]:
    """Read null gaps ("null odds") in the official format, a JSON object {id: number}.

    Raises:
        InputError: The file cannot be read or is of another form.
    """
    gaps = read_json_object(file, advice=ADVICE)
    for name, value in gaps.items():
        if not _is_number(value):
            raise InputError(f"{str(file)!r}: the null gap {name!r} is {value!r:.60}; it must be a number")
    return {name: float(value) for name, value in gaps.items()}


def write_null_gaps(file: str | os.PathLike, gaps: Mapping[str, float]) -> None:
    """Write null gaps in the official format, atomically; infinities, which JSON lacks, become the largest numbers.

    Raises:
        StorageError: The file cannot be written.
    """
    largest = sys.float_info.max
    finite = {name: min(max(float(value), -largest), largest) for name, value in gaps.items()}
    write_text(Path(file), to_json(finite, indent=1) + "\n")
