"""Retrieval metrics: recall, precision, average precision, reciprocal rank and nDCG of the first k documents.

They equal those of trec_eval (``recall_k``, ``P_k``, ``map_cut_k``, ``recip_rank`` of the first k, and ``ndcg_cut_k``): average
precision is divided by the number of all relevant documents, the gain of nDCG is the grade itself, and its ideal ranking has
every relevant document.
"""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from duonlp.errors import InputError
from duonlp.metrics.bootstrap import Score, check_settings, interval, resampled_sums

Ranking: TypeAlias = Sequence[str] | Mapping[str, float]
"""Ids of documents, best first; or their scores."""
Relevant: TypeAlias = Iterable[str] | Mapping[str, float]
"""Ids of the relevant documents; or their grades, of which those above 0 are relevant."""

METRICS = ("recall", "precision", "map", "mrr", "ndcg")
"""Names of the metrics, to which "@k" is added."""


def retrieval_scores(
    rankings: Sequence[Ranking] | Mapping[str, Ranking],
    relevant: Sequence[Relevant] | Mapping[str, Relevant],
    k: Sequence[int] = (1, 3, 5, 10, 20),
    *,
    skip_empty: bool = True,
    confidence: float = 0.95,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, Score]:
    """Return the mean over queries of each metric, with percentile bootstrap intervals over the queries.

    Args:
        rankings: The documents found for each query: a list with one ranking per query, or a mapping from query to ranking. If a
            ranking has scores, it is sorted as trec_eval sorts: by score in float32, and documents of one score by id, the last
            in the order of their UTF-8 bytes first.
        relevant: The relevant documents of each query, in the same form.
        k: Numbers of documents that count.
        skip_empty: Whether to leave out queries without a relevant document; otherwise they score 0, as in pytrec_eval.
        confidence: Confidence level of the intervals, in (0, 1).
        resamples: Number of bootstrap resamples; 0 computes no intervals, and their bounds are None.
        seed: Seed of the resamples.

    Returns:
        {"recall@1": Score(low, value, high), ...} for each of METRICS and each k.

    Raises:
        InputError: There are no queries left, the queries of both arguments differ, a ranking repeats a document, or a setting is
            invalid.
    """
    check_settings(confidence, resamples, seed)
    values = query_scores(rankings, relevant, k)
    kept = np.array([not skip_empty or bool(grades_of(entry)) for entry in _pairs(rankings, relevant)[1]], bool)
    if not kept.any():
        raise InputError("no query has a relevant document; give at least one, or skip_empty=False")
    table = np.stack([value[kept] for value in values.values()], axis=1)  # [queries, metrics]
    means = table.mean(axis=0)
    if resamples == 0 or len(table) == 1:
        return {name: Score(None, float(mean), None) for name, mean in zip(values, means, strict=True)}
    samples = resampled_sums(table, resamples, seed) / len(table)
    bounds = [interval(column, confidence) for column in samples.T]
    return {name: Score(low, float(mean), high) for name, mean, (low, high) in zip(values, means, bounds, strict=True)}


def query_scores(
    rankings: Sequence[Ranking] | Mapping[str, Ranking],
    relevant: Sequence[Relevant] | Mapping[str, Relevant],
    k: Sequence[int] = (1, 3, 5, 10, 20),
) -> dict[str, np.ndarray]:
    """Return each metric of each query, {"recall@1": float64 [queries], ...}; 0 for queries without a relevant document.

    Args:
        rankings: See :func:`retrieval_scores`.
        relevant: See :func:`retrieval_scores`.
        k: Numbers of documents that count.

    Raises:
        InputError: See :func:`retrieval_scores`.
    """
    cuts = check_k(k)
    ranking_list, relevant_list = _pairs(rankings, relevant)
    rows = [_scores_of(ranked_ids(a), grades_of(b), cuts) for a, b in zip(ranking_list, relevant_list, strict=True)]
    names = [f"{metric}@{cut}" for metric in METRICS for cut in cuts]
    return dict(zip(names, np.array(rows, np.float64).reshape(len(rows), len(names)).T, strict=True))


def _scores_of(ids: list[str], grades: Mapping[str, float], cuts: Sequence[int]) -> list[float]:
    """Return the metrics of one query, for every metric and cut; sums are in rank order, as in trec_eval."""
    found, precisions, gain, first = 0, 0.0, 0.0, 0
    # After each rank: relevant documents, sum of the precisions at them, discounted gain, rank of the first.
    after: list[tuple[int, float, float, int]] = [(0, 0.0, 0.0, 0)]
    for rank, name in enumerate(ids[: max(cuts)], 1):
        grade = grades.get(name, 0)
        if grade:
            found += 1
            first = first or rank
            precisions += found / rank
            gain += grade / math.log2(rank + 1)
        after.append((found, precisions, gain, first))
    ideal, ideals = 0.0, [0.0]
    for rank, grade in enumerate(sorted(grades.values(), reverse=True)[: max(cuts)], 1):
        ideal += grade / math.log2(rank + 1)
        ideals.append(ideal)
    states, total = [after[min(cut, len(after) - 1)] for cut in cuts], len(grades) or 1
    return [
        *(state[0] / total for state in states),
        *(state[0] / cut for state, cut in zip(states, cuts, strict=True)),
        *(state[1] / total for state in states),
        *(1 / state[3] if state[3] else 0.0 for state in states),
        *(state[2] / (ideals[min(cut, len(ideals) - 1)] or 1.0) for state, cut in zip(states, cuts, strict=True)),
    ]


def ranked_ids(ranking: Ranking) -> list[str]:
    """Return the ids of a ranking, best first.

    Raises:
        InputError: It is a text, repeats a document, or has a score that is not a number.
    """
    if isinstance(ranking, Mapping):
        try:
            scores = {name: float(np.float32(score)) for name, score in ranking.items()}
        except (TypeError, ValueError):
            raise InputError(f"a ranking is {_shown(ranking)}; expected a number as score of each document") from None
        if any(math.isnan(score) for score in scores.values()):
            raise InputError(f"a ranking has the score NaN: {_shown(ranking)}; give numbers")
        return sorted(scores, key=lambda name: (scores[name], name.encode("utf-8", "surrogatepass")), reverse=True)
    if isinstance(ranking, str) or not isinstance(ranking, Iterable):
        raise InputError(f"a ranking is {_shown(ranking)}; expected a list of document ids, or {{id: score}}")
    ids = list(ranking)
    if len(set(ids)) < len(ids):
        repeated = next(name for i, name in enumerate(ids) if name in ids[:i])
        raise InputError(f"a ranking has the document {repeated!r} twice; give each once")
    return ids


def grades_of(relevant: Relevant) -> dict[str, float]:
    """Return the grades of the relevant documents, which are above 0.

    Raises:
        InputError: The entry is a text, or a grade is not a finite number.
    """
    if isinstance(relevant, str) or not isinstance(relevant, Iterable):
        raise InputError(f"relevant documents are {_shown(relevant)}; expected a set of document ids, or {{id: grade}}")
    grades = dict(relevant) if isinstance(relevant, Mapping) else dict.fromkeys(relevant, 1)
    for name, grade in grades.items():
        if not isinstance(grade, (int, float, np.number)) or not math.isfinite(grade):
            raise InputError(f"the grade of document {name!r} is {grade!r}; expected a finite number, 0 if irrelevant")
    return {name: grade for name, grade in grades.items() if grade > 0}


def check_k(k: Sequence[int]) -> list[int]:
    """Return the numbers of documents, sorted and without duplicates.

    Raises:
        InputError: There are none, or one is not a positive integer.
    """
    values = [k] if isinstance(k, (int, np.integer)) else list(k)
    for value in values:
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise InputError(f"k contains {value!r}; give positive integers, such as (1, 5, 10)")
    if not values:
        raise InputError("k is empty; give positive integers, such as (1, 5, 10)")
    return sorted({int(value) for value in values})


def _pairs(rankings: Any, relevant: Any) -> tuple[list[Any], list[Any]]:
    """Return the rankings and the relevant documents as lists with one entry per query."""
    if isinstance(rankings, Mapping) != isinstance(relevant, Mapping):
        raise InputError(
            "one of rankings and relevant is a mapping from queries, the other a list; give both in one form"
        )
    if isinstance(rankings, Mapping):
        differing: list[Hashable] = sorted(rankings.keys() ^ relevant.keys(), key=str)
        if differing:
            named = ", ".join(repr(query) for query in differing[:5])
            raise InputError(
                f"{len(differing)} queries have a ranking or relevant documents, but not both ({named}); give both for each, "
                "which may be empty"
            )
        rankings, relevant = list(rankings.values()), [relevant[query] for query in rankings]
    rankings, relevant = list(rankings), list(relevant)
    if len(rankings) != len(relevant):
        raise InputError(f"there are {len(rankings)} rankings, but relevant documents of {len(relevant)} queries")
    if not rankings:
        raise InputError("there are no rankings; give at least one query")
    return rankings, relevant


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
