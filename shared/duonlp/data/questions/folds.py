"""Split questions for cross-validation so that no document, product or other group is on both sides."""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from duonlp.data.questions.questions import Questions
from duonlp.errors import InputError
from duonlp.util.suggestions import nearest


def folds(questions: Questions, k: int, by: str = "title", seed: int = 0) -> Iterator[tuple[Questions, Questions]]:
    """Return an iterator over k pairs (training questions, held-out questions) for cross-validation.

    Questions with the same value in a column are always on the same side, and every question is held out once. The groups are
    shuffled, then assigned from the largest to the smallest, each to the fold that has the fewest questions, so that the folds
    have nearly equal sizes. Questions keep their order.

    Args:
        questions: Such as `read_questions` returns.
        k: Number of folds, at least 2.
        by: Column that must not be on both sides: "title" (the document, or the product in SubjQA), "context", or any other.
        seed: Seed of the shuffle.

    Raises:
        InputError: k is below 2 or above the number of groups, a question has no such column, or no title.
    """
    try:
        count = 0 if isinstance(k, bool) else operator.index(k)
    except TypeError:
        count = 0
    if count < 2:
        raise InputError(f"k is {k!r}; it must be an integer of at least 2")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; it must be a non-negative integer")
    groups: dict[Any, list[int]] = {}
    for number, row in enumerate(questions):
        groups.setdefault(_group(row, by), []).append(number)
    if len(groups) < count:
        raise InputError(f"k is {k}, but {questions.name} has only {len(groups)} different values of {by!r}; lower k")
    return _folds(questions, list(groups.values()), count, seed)


def _folds(
    questions: Questions, groups: Sequence[list[int]], k: int, seed: int
) -> Iterator[tuple[Questions, Questions]]:
    shuffled = [groups[number] for number in np.random.default_rng(seed).permutation(len(groups))]
    fold_of = np.empty(len(questions), np.int64)
    sizes = [0] * k
    for rows in sorted(shuffled, key=lambda rows: -len(rows)):  # stable: equal sizes stay shuffled
        fold = sizes.index(min(sizes))
        fold_of[rows] = fold
        sizes[fold] += len(rows)
    for fold in range(k):
        sides = (np.flatnonzero(fold_of != fold), np.flatnonzero(fold_of == fold))
        train, held_out = ([questions[int(row)] for row in rows] for rows in sides)
        yield (
            Questions(train, f"{questions.name}, training part {fold + 1} of {k}"),
            Questions(held_out, f"{questions.name}, held-out part {fold + 1} of {k}"),
        )


def _group(row: Any, by: str) -> Any:
    """Return the value of a column that questions are grouped by, in a form that can be a key."""
    if by not in row:
        raise InputError(f"the question {row['id']!r} has no column {by!r}; it has {', '.join(row)}{nearest(by, row)}")
    value = row[by]
    if value in ("", None):
        raise InputError(
            f"the question {row['id']!r} has no {by}, so its group is unknown; pass by= with another column, such as by='context'"
        )
    return value if isinstance(value, (str, int)) else repr(value)
