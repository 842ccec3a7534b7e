"""SubjQA (Bjerva et al. 2020, arXiv:2004.14283): questions on product reviews, one row per annotator.

Every review ends in a sentinel, at which the rows of annotators who found no answer point. `human_ans_spans` is tokenized, so
answers are cut out of the review by `human_ans_indices`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from duonlp.data.pairs.summaries import has_text
from duonlp.data.reading.document_files import Problems

SENTINEL = " ANSWERNOTFOUND"
SUBJQA_COLUMNS = ("q_review_id", "question", "review", "human_ans_indices")
ANNOTATOR_COLUMNS = (
    "human_ans_spans", "human_ans_indices", "question_subj_level", "answer_subj_level", "ans_subj_score", "is_ans_subjective",
)  # fmt: skip
"""Columns with a value per annotator, which become lists."""

_INDICES = re.compile(r"\s*[\[(]\s*(-?\d{1,15})\s*,\s*(-?\d{1,15})\s*[\])]\s*")


def cut_sentinel(context: str, spans: Sequence[tuple[str, int]]) -> tuple[str, list[tuple[str, int]]]:
    """Return a context without the sentinel, and its answers without those at the sentinel and clipped if they include it.

    Args:
        context: A context; one without a sentinel is returned as it is.
        spans: (text, start) pairs.
    """
    if not context.endswith(SENTINEL):
        return context, list(spans)
    context = context.removesuffix(SENTINEL)
    clipped = [(context[start : start + len(text)], start) for text, start in spans]
    return context, [(text, start) for text, start in clipped if text]


def merged_rows(
    rows: Iterable[tuple[str, Mapping[str, Any]]], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, row with the columns of SQuAD) for each question, in the order of their first rows.

    The id is `q_review_id`, the title `item_id`. A row that says that there is no answer adds none. The columns of
    ANNOTATOR_COLUMNS have one value per row of the question, the others are those of its first row.

    Args:
        rows: (place, row) pairs with the columns of SUBJQA_COLUMNS.
        problems: Notes rows that are corrupt, and rows whose question or review is not that of the first row with their id.
    """
    merged: dict[str, tuple[str, dict[str, Any]]] = {}
    for place, row in rows:
        span = _span(row, place, problems)
        if span is None:
            continue
        start, end = span
        name, review = row["q_review_id"], row["review"]
        own = {key: [row[key]] for key in ANNOTATOR_COLUMNS if key in row}
        if name not in merged:
            skipped = ("q_review_id", "item_id", "question", "review")
            merged[name] = place, {
                "id": name, "title": row.get("item_id"), "question": row["question"], "context": review,
                "answers": {"text": [], "answer_start": []},
                **{key: value for key, value in row.items() if key not in skipped}, **own,
            }  # fmt: skip
        else:
            first_place, first = merged[name]
            if (first["question"], first["context"]) != (row["question"], review):
                part = "question" if first["question"] != row["question"] else "review"
                problems.note(
                    "duplicate id", place, f"the id {name!r} is already that of {first_place}, with another {part}"
                )
                continue
            for key, value in own.items():
                first[key] = first.get(key, []) + value
        answers = merged[name][1]["answers"]
        answers["text"].append(review[start:end])
        answers["answer_start"].append(start)
    for place, row in merged.values():
        yield place, row


def _span(row: Mapping[str, Any], place: str, problems: Problems) -> tuple[int, int] | None:
    """Return the characters of an annotator's answer; None (noted) if the row is corrupt."""
    for column in ("q_review_id", "question", "review"):
        if not isinstance(row[column], str) or not has_text(row[column]):
            problems.note("corrupt row", place, f"its {column} is {row[column]!r:.60}; expected a text")
            return None
    match = _INDICES.fullmatch(str(row["human_ans_indices"]))
    if match is None:
        problems.note(
            "corrupt row", place, f"human_ans_indices is {row['human_ans_indices']!r:.60}; expected (start, end)"
        )
        return None
    start, end, length = int(match[1]), int(match[2]), len(row["review"])
    if not 0 <= start < end <= length:
        detail = f"human_ans_indices is ({start}, {end}), but the review has {length} characters"
        problems.note("answer outside the context", place, detail)
        return None
    return start, end
