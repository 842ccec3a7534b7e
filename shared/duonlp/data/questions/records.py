"""Check rows with the columns of SQuAD: texts, ids and answers, which must occur in the context where they say."""

import ast
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from duonlp.data.pairs.summaries import has_text
from duonlp.data.questions.subjqa import SUBJQA_COLUMNS, cut_sentinel
from duonlp.data.reading.document_files import Problems, is_readable
from duonlp.errors import InputError
from duonlp.util.reading import parse_json
from duonlp.util.suggestions import nearest

SQUAD_COLUMNS = ("question", "context", "answers")
FLAT_ANSWERS = ("answers.text", "answers.answer_start")
"""Columns in place of "answers" after ``Dataset.flatten()`` of the `datasets` library."""

DERIVED = ("is_impossible", *FLAT_ANSWERS)
"""Columns that rows do not keep, because "answers" says the same."""


class QuestionColumns:
    """Checks that a table has the columns of SQuAD or of SubjQA."""

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        """Return all column names, and "question".

        Args:
            names: Names of all columns.
            source: Name of the table, for messages.

        Raises:
            InputError: A column is missing; the message suggests the one that may be meant.
        """
        names = tuple(map(str, names))
        squad = ("question", "context", *FLAT_ANSWERS) if set(FLAT_ANSWERS) <= set(names) else SQUAD_COLUMNS
        if set(squad) <= set(names) or set(SUBJQA_COLUMNS) <= set(names):
            return names, "question"
        wanted = SUBJQA_COLUMNS if len(set(SUBJQA_COLUMNS) & set(names)) > len(set(squad) & set(names)) else squad
        missing = [name for name in wanted if name not in names]
        others = [name for name in names if name not in wanted]
        raise InputError(
            f"{source} has no column {' and no column '.join(map(repr, missing))}; it has {', '.join(names) or 'no columns'}"
            f"{next(filter(None, (nearest(name, others) for name in missing)), '')}",
            remedy='give SQuAD JSON, or rows with the columns "question", "context" and "answers" or with those of SubjQA',
        )


def question_row(row: Mapping[str, Any], place: str, problems: Problems) -> dict[str, Any] | None:
    """Return a row as :class:`duonlp.data.questions.Questions` has it; None (noted) if it is unusable.

    Args:
        row: A row with the columns of SQuAD, of which "id" and "title" are optional.
        place: Location of the row; its id if it has none.
        problems: Notes what is wrong with it.
    """
    name, title = (_to_text(row.get(column)) for column in ("id", "title"))
    texts = {"id": name if name not in (None, "") else place, "title": title or ""}
    texts |= {"question": row["question"], "context": row["context"]}
    for column, text in texts.items():
        if not isinstance(text, str):
            problems.note("corrupt row", place, f"its {column} is of type {type(text).__name__}, not str")
            return None
        if not is_readable(text, place, problems):
            return None
        if column in ("question", "context") and not has_text(text):
            problems.note(f"empty {column}", place, f"its {column} has no text")
            return None
    where = place if texts["id"] == place else f"{place} (id {texts['id']!r})"
    try:
        given = (
            row["answers"] if "answers" in row else {"text": row[FLAT_ANSWERS[0]], "answer_start": row[FLAT_ANSWERS[1]]}
        )
        spans = _spans(given)
        _check_impossible(row.get("is_impossible"), bool(spans))
    except ValueError as error:
        problems.note("corrupt row", where, str(error))
        return None
    for text, start in spans:
        if fault := answer_fault(texts["context"], text, start):
            problems.note(fault[0], where, fault[1])
            return None
        if not is_readable(text, where, problems):
            return None
    texts["context"], spans = cut_sentinel(texts["context"], spans)
    if not has_text(texts["context"]):
        problems.note("empty context", where, "its context has no text but the sentinel of SubjQA")
        return None
    answers = {"text": [text for text, _ in spans], "answer_start": [start for _, start in spans]}
    kept = {key: value for key, value in row.items() if key not in texts and key not in ("answers", *DERIVED)}
    return {**texts, "answers": answers, **kept}


def unique_rows(rows: Iterable[tuple[str, dict[str, Any]]], problems: Problems) -> Iterator[dict[str, Any]]:
    """Yield the rows whose id no row before has; note the others.

    Args:
        rows: (place, row) pairs.
        problems: Notes each repeated id.
    """
    places: dict[str, str] = {}
    for place, row in rows:
        first = places.setdefault(row["id"], place)
        if first == place:
            yield row
        else:
            problems.note(
                "duplicate id", place, f"the id {row['id']!r} is already that of {first}; give each question its own"
            )


def answer_fault(context: str, text: Any, start: Any) -> tuple[str, str] | None:
    """Return the reason and the description of what is wrong with an answer; None if it occurs where it says.

    Args:
        context: The context.
        text: Text of the answer.
        start: Its first character in the context.
    """
    if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, (int, np.integer)):
        return (
            "corrupt row",
            f"an answer has text {text!r:.60} and answer_start {start!r:.60}; they must be a str and an int",
        )
    if not text:
        return "empty answer", 'an answer is ""; a question that the context does not answer has empty lists'
    if context[max(start, 0) : start + len(text)] == text and start >= 0:
        return None
    positions = list(itertools.islice(_occurrences(context, text), 3))
    elsewhere = f"it occurs at {', '.join(map(str, positions))}" if positions else "it occurs nowhere in the context"
    if not 0 <= start <= len(context) - len(text):
        detail = f"answer_start is {start} for a text of {len(text)} characters in a context of {len(context)}"
        return "answer outside the context", f"{detail}; the answer is {text!r:.60}, and {elsewhere}"
    found = context[start : start + len(text)]
    return (
        "answer not found",
        f"the answer {text!r:.60} starts at {start}, where the context has {found!r:.60}; {elsewhere}",
    )


def _occurrences(context: str, text: str) -> Iterator[int]:
    position = context.find(text)
    while position >= 0:
        yield position
        position = context.find(text, position + 1)


def _spans(answers: Any) -> list[tuple[Any, Any]]:
    """Return answers in any of their forms as (text, start) pairs.

    Raises:
        ValueError: They are in none of these forms.
    """
    answers = _parsed(answers)
    if isinstance(answers, Mapping):
        if not {"text", "answer_start"} <= set(answers):
            raise ValueError(
                f'its answers have the keys {", ".join(map(str, answers))}; expected "text" and "answer_start"'
            )
        texts, starts = (_as_list(answers[key]) for key in ("text", "answer_start"))
        if len(texts) != len(starts):
            raise ValueError(f"its answers have {len(texts)} texts and {len(starts)} values of answer_start")
        return list(zip(texts, starts, strict=True))
    if isinstance(answers, (list, tuple)):
        for answer in answers:
            if not isinstance(answer, Mapping) or not {"text", "answer_start"} <= set(answer):
                raise ValueError(f'an answer is {answer!r:.80}; expected an object with "text" and "answer_start"')
        return [(answer["text"], answer["answer_start"]) for answer in answers]
    raise ValueError(
        f"its answers are of type {type(answers).__name__}; expected lists of text and answer_start, empty without an answer"
    )


def _as_list(value: Any) -> list[Any]:
    value = _parsed(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    return [value]


def _parsed(value: Any) -> Any:
    """Return a value whose text is JSON, or a Python literal as `datasets` writes CSV, as that; any other unchanged."""
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, str) or value.strip()[:1] not in ("{", "["):
        return value
    try:
        return parse_json(value, unique=True)
    except ValueError:
        pass
    try:
        return _literal(ast.parse(value.strip(), mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return value


def _literal(node: ast.AST) -> Any:
    """Return the value of a literal, in which array([...], dtype=...) stands for its list."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "array" and node.args:
        return _literal(node.args[0])
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(item) for item in node.elts]
    return ast.literal_eval(node)


def _to_text(value: Any) -> Any:
    """Return an integer, such as an id, as text; other values unchanged."""
    return str(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else value


def _check_impossible(value: Any, answered: bool) -> None:
    """Raise ValueError if "is_impossible" contradicts the answers."""
    if value is None or value == "":
        return
    words: Sequence[Any] = ("true", "1") if answered else ("false", "0")
    if str(value).lower() in words:
        has = "answers" if answered else "no answers"
        raise ValueError(f"is_impossible is {value!r:.20}, but it has {has}; correct one of them")
