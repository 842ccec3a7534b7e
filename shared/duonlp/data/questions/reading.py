"""Read questions with contexts and answers: SQuAD, SubjQA and tables with SQuAD's columns."""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled.files import Table, open_source
from duonlp.data.questions.questions import Questions
from duonlp.data.questions.records import QuestionColumns, question_row, unique_rows
from duonlp.data.questions.squad import flatten, read_articles, squad_entries
from duonlp.data.questions.subjqa import SUBJQA_COLUMNS, merged_rows
from duonlp.data.reading import tables
from duonlp.data.reading.document_files import Problems, TextFormat
from duonlp.data.reading.documents import with_columns
from duonlp.errors import InputError
from duonlp.util.files import may_read


def read_questions(
    source: Any,
    split: str | None = None,
    *,
    config: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
    quoting: bool | None = None,
    report: CleaningReport | None = None,
) -> Questions:
    """Read a split of a dataset of questions on contexts, in the dataset's order.

    Recognized sources:

    - SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016 and 2018): the original JSON, optionally .gz or .zst, whose keys other than
      SQuAD's become columns; "squad" and "squad_v2" on the Hub.
    - SubjQA (Bjerva et al. 2020, arXiv:2004.14283): the original CSV. Rows of one `q_review_id` are merged, `item_id` becomes
      the title, and the sentinel " ANSWERNOTFOUND" is cut off the reviews and the answers that include it.
    - Rows with the columns "question", "context" and "answers", and optionally "id" and "title", in .jsonl, .json (rows,
      {"data": rows} or {split: rows}), .csv, .tsv, .parquet and .arrow files, folders of them with the split in the file
      names, datasets saved by `datasets` or on the Hub, and in memory. Answers are {"text": [...], "answer_start": [...]} or a
      list of {"text", "answer_start"}, or their JSON or Python literal in a text file; "answers.text" and
      "answers.answer_start" may be two columns.

    Other columns are carried through, "is_impossible" excepted, which must agree with the answers. Equal answers of several
    annotators are kept. Characters of texts are never changed, so that offsets stay valid.

    Args:
        source: A file, a folder, a dataset on the Hub ("hub://owner/name", optionally followed by "@revision" and
            "#configuration"; "squad", "squad_v2" and any name given with `config` need no "hub://"), the value of a SQuAD file,
            or rows: dicts, a `datasets` object, or a dict of them by split.
        split: "train", "validation" (or "val", "valid", "dev"), "test", or one of the dataset's own names; None for a file
            or rows without splits.
        config: Configuration of a dataset on the Hub.
        limit: Maximum number of questions, spread evenly over the data, which is usually sorted by article.
        encoding: Encoding of text files, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        quoting: Whether fields of CSV and TSV files may be quoted. None: CSV files quote; TSV files do not, unless they can only
            be read as quoted.
        report: Collects the rows that are dropped, with examples: corrupt rows, rows without a question or context, repeated
            ids, and rows with an answer that is empty, outside the context or not at its `answer_start` (the example says where
            it is). Without a report, the first such row raises InputError; no row is dropped silently.

    Raises:
        InputError: The source, the split or a column does not exist (the message lists the ones that do), the split is
            empty, or, without a report, a row is unusable.
        MissingExtraError: A library that the source needs is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a positive integer or None")
    problems, before = Problems(report), _counts(report)
    table = _open(source, split, config, TextFormat(encoding, quoting), problems)
    rows = list(unique_rows(_question_rows(table, problems), problems))
    dropped = {reason: count - before.get(reason, 0) for reason, count in _counts(report).items()}
    dropped = {reason: count for reason, count in dropped.items() if count}
    if not rows:
        lost = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        raise InputError(
            f"{table.name} has no questions{f' (dropped rows: {lost})' if lost else ''}; give SQuAD JSON, SubjQA, or rows with "
            "SQuAD's columns"
        )
    if limit is not None and limit < len(rows):
        rows = [rows[number] for number in np.linspace(0, len(rows) - 1, limit).round().astype(int)]
    return Questions(rows, table.name, dropped)


def _counts(report: CleaningReport | None) -> dict[str, int]:
    return {} if report is None else {reason: entry.documents for reason, entry in report.dropped.items()}


def _question_rows(table: Table, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, checked row) for each question of a table."""
    with_form = with_columns(table.rows, table.name, QuestionColumns(), problems)
    for is_subjqa, group in itertools.groupby(with_form, lambda item: set(SUBJQA_COLUMNS) <= set(item[1])):
        rows: Iterable[tuple[str, Mapping[str, Any]]] = ((place, row) for place, row, _ in group)
        for place, row in merged_rows(rows, problems) if is_subjqa else rows:
            if (checked := question_row(row, place, problems)) is not None:
                yield place, checked


def _open(source: Any, split: str | None, config: str | None, text: TextFormat, problems: Problems) -> Table:
    """Return the rows of a split; SQuAD's JSON, which has no rows, is flattened."""
    if isinstance(source, Mapping):
        entries = squad_entries(source)
        if entries is not None and any(isinstance(entry, Mapping) and "paragraphs" in entry for entry in entries):
            text.check("rows", source)
            if split is not None or config is not None:
                raise InputError(f"split is {split!r} and config {config!r}, but the articles have neither; drop them")
            return Table(flatten(entries, "rows", problems), "rows")
    elif isinstance(source, (str, Path)) and config is None:
        path = Path(os.path.expanduser(source))
        if may_read(path) and _is_json(path):
            text.check("json", source)
            if path.is_dir():
                files = tables.split_files(path, split, "json")
                rows = itertools.chain.from_iterable(_file_rows(file, problems, text) for file in files)
                return Table(rows, str(files[0]))
            if (rows := read_articles(path, problems, text)) is not None:
                tables.split_files(path, split, "json")  # checks the split
                return Table(rows, str(path))
    return open_source(source, config, text)(split, QuestionColumns(), problems)


def _is_json(path: Path) -> bool:
    if path.is_file():
        return tables.ending_kind(path) == "json"
    if not path.is_dir() or any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return False
    files = [file for file in (*path.iterdir(), *path.glob("*/*")) if file.is_file()]
    return any(map(tables.ending_kind, files)) and tables.kind_of(path) == "json"


def _file_rows(file: Path, problems: Problems, text: TextFormat) -> Iterator[tuple[str, Any]]:
    rows = read_articles(file, problems, text)
    return tables.json_rows(file, problems, text) if rows is None else rows
