"""SQuAD's JSON (Rajpurkar et al. 2016, arXiv:1606.05250, and 2018, arXiv:1806.03822): articles, paragraphs, questions."""

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from duonlp.data.questions.records import DERIVED, QuestionColumns, question_row, unique_rows
from duonlp.data.reading.document_files import (
    Problems,
    TextFormat,
    foreign_start,
    invalid_in,
    is_readable,
    text_lines,
)
from duonlp.data.reading.tables import strings_in
from duonlp.errors import InputError
from duonlp.util.files import replacing
from duonlp.util.json_text import to_json
from duonlp.util.reading import is_unicode, parse_json

ENDINGS = (".json", ".json.gz")
"""Endings of the files that :func:`write_squad` writes."""


def write_squad(questions: Iterable[Mapping[str, Any]], path: str | os.PathLike) -> None:
    """Write questions as SQuAD 2.0 JSON, atomically.

    Questions are grouped by title, then by context, in the order of their first questions. `read_questions` returns the same
    rows; other columns are keys of the questions, "is_impossible" is derived from the answers.

    Args:
        questions: Such as `read_questions` returns.
        path: A .json or .json.gz file.

    Raises:
        InputError: There are no questions, a row is not one of `Questions`, an id occurs twice, or a column has values that JSON
            lacks.
        StorageError: The file cannot be written; an existing one is unchanged.
    """
    path = Path(path)
    if not path.name.lower().endswith(ENDINGS):
        raise InputError(f"{str(path)!r} ends in none of {', '.join(ENDINGS)}; give a file that does")
    problems, columns = Problems(None), QuestionColumns()
    articles: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for row in unique_rows(_checked(questions, columns, problems), problems):
        answers = [
            {"text": text, "answer_start": int(start)}
            for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True)
        ]
        others = {key: value for key, value in row.items() if key not in ("title", "context", "answers")}
        qa = {**others, "answers": answers, "is_impossible": not answers}
        articles.setdefault(row["title"], {}).setdefault(row["context"], []).append(qa)
    if not articles:
        raise InputError(f"there are no questions to write to {str(path)!r}; give at least one")
    data = [
        {"title": title, "paragraphs": [{"context": context, "qas": qas} for context, qas in contexts.items()]}
        for title, contexts in articles.items()
    ]
    try:
        text = to_json({"version": "v2.0", "data": data})
    except (TypeError, ValueError) as error:
        raise InputError(
            f"a column of the questions has a value that JSON lacks: {error}; drop or convert it"
        ) from None
    content = text.encode("utf-8")
    with replacing(path) as stream:
        stream.write(gzip.compress(content, 6, mtime=0) if path.name.lower().endswith(".gz") else content)


def _checked(
    questions: Iterable[Mapping[str, Any]], columns: QuestionColumns, problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(questions):
        place = f"question {number}"
        columns.of(row, place)
        if (checked := question_row(row, place, problems)) is not None:
            yield place, checked


def read_articles(file: Path, problems: Problems, text: TextFormat) -> Iterator[tuple[str, Any]] | None:
    """Return an iterator over (place, row) of a SQuAD file, which is loaded whole; None if its JSON is of another form.

    Args:
        file: The file, decompressed if it ends in .gz or .zst.
        problems: Notes the file or the rows that cannot be read.
        text: How the file is written.
    """
    foreign = foreign_start(file, text.encoding)
    try:
        lines = text_lines(file, foreign or text.encoding)
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip()[:1] != "{":
            return None
        value = _parse(first)
        if value is not None and squad_entries(value) is None:
            return None  # JSON Lines, or a form that only other readers know
        content = first + "".join(lines)
    except UnicodeError as error:
        problems.note(invalid_in(text.encoding), str(file), str(error))
        return iter(())
    except (EOFError, OSError, zlib.error) as error:
        problems.note_file(file, error)
        return iter(())
    try:
        entries = squad_entries(parse_json(content, unique=True))
    except ValueError as error:
        if '"paragraphs"' not in content:
            return None  # JSON Lines with a corrupt first line
        problems.note("corrupt file", str(file), f"not JSON: {error}", len(content))
        return iter(())
    if entries is None:
        return None
    rows = flatten(entries, str(file), problems)
    if not foreign and (content.isascii() or is_unicode(content)):
        return rows
    return _readable(rows, foreign, problems, text)


def _readable(
    rows: Iterable[tuple[str, Any]], foreign: str | None, problems: Problems, text: TextFormat
) -> Iterator[tuple[str, Any]]:
    """Yield the rows without undecodable bytes; note the others."""
    for place, row in rows:
        if foreign:
            problems.note(invalid_in(None), place, f"it is {foreign.upper()} text", encoding=foreign)
        elif is_readable("".join(strings_in(row)), place, problems, "cp1252", text.encoding):
            yield place, row


def _parse(text: str) -> Any:
    try:
        return parse_json(text, unique=True)
    except ValueError:
        return None


def squad_entries(value: Any) -> list[Any] | None:
    """Return the articles, or rows, in a value of SQuAD's JSON; None if it is of another form.

    Args:
        value: {"data": [...]}, usually with a "version", or a single article.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("paragraphs"), list):
        return [value]
    data = value.get("data")
    return data if isinstance(data, list) else None


def flatten(entries: Iterable[Any], name: str, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Yield (place, row with the columns of SQuAD) for each question; entries that are not articles are rows already.

    Other keys of a question, its paragraph and its article are columns too; the innermost wins.

    Args:
        entries: Articles, or rows as in the question-answering examples of Transformers.
        name: Name of the file, for places.
        problems: Notes what is not of this form.
    """
    for number, article in enumerate(entries):
        where = f"{name}:data[{number}]"
        if not isinstance(article, Mapping) or "paragraphs" not in article:
            yield where, article
            continue
        outer = _others(article, "paragraphs")
        for place, paragraph in _objects(article["paragraphs"], f"{where}.paragraphs", problems):
            inner = outer | _others(paragraph, "qas")
            for qa_place, qa in _objects(paragraph.get("qas"), f"{place}.qas", problems):
                row = inner | dict(qa)
                first = {key: row[key] for key in ("id", "title", "question", "context", "answers") if key in row}
                yield qa_place, first | row


def _others(value: Mapping[str, Any], contents: str) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in (contents, *DERIVED)}


def _objects(value: Any, where: str, problems: Problems) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield (place, object) for each object of a list; note anything else."""
    if not isinstance(value, list):
        problems.note("corrupt row", where, f"found a value of type {type(value).__name__}; expected a list of objects")
        return
    for number, item in enumerate(value):
        if isinstance(item, Mapping):
            yield f"{where}[{number}]", item
        else:
            problems.note(
                "corrupt row", f"{where}[{number}]", f"found a value of type {type(item).__name__}; expected an object"
            )
