"""Texts and their labels, read from where they are kept: CLINC150 and whatever else has a column of each."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled import files as labelled_files
from duonlp.data.pairs.summaries import has_text
from duonlp.data.reading import document_files, documents
from duonlp.data.reading.tables import SPLIT_NAMES
from duonlp.errors import InputError
from duonlp.util.suggestions import nearest

TEXT_COLUMNS = ("text", "sentence", "query", "utterance", "utt", "question", "document", "content")
LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "coarse_label")
ID_COLUMN = "id"

Text = str | tuple[str, str]
"""A text, or two that are one input, as of entailment."""


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts, each with its label, or with several.

    texts: a text each, or all pairs of texts.
    labels: int32 [n], a class each, in range(len(label_names)); or float32 [n, len(label_names)], 1.0 for each label that a
        text has (multi-label).
    label_names: the name of each class; a model's `id2label`.
    ids: what the dataset calls them; `file:row` where it does not.
    """

    texts: list[Text]
    labels: np.ndarray
    label_names: tuple[str, ...]
    ids: list[str] = field(default_factory=list)

    def __post_init__(self):
        count, classes, labels = len(self.texts), len(self.label_names), self.labels
        kinds = {("int32", (count,)), ("float32", (count, classes))}
        if (str(getattr(labels, "dtype", "")), np.shape(labels)) not in kinds:
            raise InputError(
                f"labels are {getattr(labels, 'dtype', type(labels).__name__)} {list(np.shape(labels))}, of {count} texts and "
                f"{classes} label names; they must be int32 [{count}] or float32 [{count}, {classes}]"
            )
        if labels.ndim == 1 and count and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(
                f"labels go from {labels.min()} to {labels.max()}, and there are {classes} label names; they count from 0"
            )
        if not self.ids:
            object.__setattr__(self, "ids", [str(number) for number in range(count)])
        if len(self.ids) != count:
            raise InputError(f"there are {len(self.ids)} ids and {count} texts; give each its own")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.ndim == 2

    def take(self, rows: Sequence[int]) -> "LabelledTexts":
        """Some of them, in the order of `rows`; the label names stay."""
        rows = [int(row) for row in rows]
        texts, ids = ([each[row] for row in rows] for each in (self.texts, self.ids))
        return LabelledTexts(texts, self.labels[rows], self.label_names, ids)

    def counts(self) -> dict[str, int]:
        """How many texts have each label, in the labels' order."""
        found = self.labels.sum(0) if self.multi_label else np.bincount(self.labels, minlength=len(self.label_names))
        return dict(zip(self.label_names, found.astype(int).tolist(), strict=True))


@dataclass(frozen=True)
class LabelledColumns:
    """Names of the columns of a row; one that is None is looked for under the names that public datasets use."""

    text: str | Sequence[str] | None = None
    label: str | None = None

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        """Returns the columns of the text, one or two, and the column of the label.

        Raises:
            InputError: a column that was named is not there, or none of a text or of a label is.
        """
        names = [str(name) for name in names]
        has = f"it has {', '.join(names) or 'no columns'}"
        texts = (self.text,) if isinstance(self.text, str) else tuple(self.text or ())
        if len(texts) > 2:
            raise InputError(f"text_column is {self.text!r}; name one column, or two for pairs of texts")
        for argument, given in (("text_column", texts), ("label_column", (self.label,) * (self.label is not None))):
            for name in given:
                if name not in names:
                    raise InputError(
                        f"{source} has no column {name!r}; {has}{nearest(name, names)}",
                        remedy=f"name an existing column with {argument}", argument=argument,
                    )  # fmt: skip
        texts = texts or tuple(itertools.islice((name for name in TEXT_COLUMNS if name in names), 1))
        label = self.label or next((name for name in LABEL_COLUMNS if name in names and name not in texts), None)
        for argument, found, usual in (("text", texts, TEXT_COLUMNS), ("label", label, LABEL_COLUMNS)):
            if not found:
                raise InputError(
                    f"{source} has no column {' or '.join(map(repr, usual))}; {has}",
                    remedy=f"name the {argument} column with {argument}_column", argument=f"{argument}_column",
                )  # fmt: skip
        return texts, label


def read_labelled_texts(
    source: Any,
    split: str | None = None,
    *,
    config: str | None = None,
    text_column: str | Sequence[str] | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    label_separator: str | None = None,
    limit: int | None = None,
    report: CleaningReport | None = None,
) -> LabelledTexts:
    """Reads a split of a dataset of texts with labels, in the dataset's own order.

    Layouts that are known by themselves:

    - CLINC150, intents with queries that are out of scope (Larson et al. 2019, arXiv:1909.02027): "clinc_oos" on the Hub with
      the configuration "plus" (unless another is named), "small" or "imbalanced"; or the original file, {split: [[text,
      intent], ...]}, where "train" is its train and oos_train, "validation" its val and oos_val, and "test" its test and
      oos_test. Each of the oos splits can be named by itself.
    - Any dataset on the Hub, or saved by `datasets`, whose files are read without a program of its own.
    - .jsonl, .json (rows, or {split: rows}), .csv, .tsv (each also .gz or .zst), .parquet and .arrow files with columns of a
      text and of a label, and folders of them with the split in the files' names.

    Args:
        source: a file, a folder, a dataset's name on the Hub ("hub://owner/name", with "@revision" and "#configuration" after
            it where needed; "clinc_oos", and any name that comes with a `config`, need no "hub://"), or rows: dicts, a
            `datasets` object, or a dict of them by split.
        split: "train", "validation" ("val", "valid" and "dev" are the same), "test", or one of the dataset's own; None for a
            file or rows that have no splits.
        config: the configuration of a dataset on the Hub.
        text_column: by default the first of TEXT_COLUMNS that is there. Two columns make pairs of texts.
        label_column: by default the first of LABEL_COLUMNS that is there. Its values are names, or numbers: classes of the
            dataset or of `label_names`, and their own names otherwise. An object with a name, as a label of GitHub's, is
            that name. A list of labels makes the texts multi-label; so do lists with a 0 or 1 for each class (one-hot), which
            are known by one of them that has 0 or 1 twice, or, of two classes, is [1, 0].
        label_names: of the classes, in order. Read validation data with those of the training data, so that ids agree. By
            default those of the dataset, or else all that its train split has, sorted; of this split if there is none.
        label_separator: what is between the labels of a text, in one field: they are multi-label.
        limit: so many texts at most, spread evenly over all, for many files are sorted by label. The label names are those
            of all.
        report: where rows that cannot be used are counted and named: no text, no label, an unknown label, a corrupt line.
            Without one, the first of them is an error; nothing is left out in silence.

    Raises:
        InputError: the source, the split or a column is not there (the message lists those that are), the split is empty, or,
            without a report, a row is of no use: the message names it.
        MissingExtraError: a library that the source needs is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a whole number from 1 on, or None")
    names = None if label_names is None else check_label_names(label_names)
    columns = LabelledColumns(text_column, label_column)
    open_split = labelled_files.open_source(source, config)
    problems = document_files.Problems(report)

    table = open_split(split, columns, problems)
    records = list(_records(table, columns, label_separator, problems))
    names = names or _declared_names(table, columns)
    if _are_one_hot(records, names):
        names = _names_of_flags(names, len(records[0].flags), table.name)
        kept = [replace(each, labels=np.flatnonzero(each.flags).tolist()) for each in records]
    else:
        if names is None:
            others = records if SPLIT_NAMES.get(split) == "train" else _train(open_split, columns, label_separator)
            names = _found_names(others or records)
        kept = list(_known(records, names, problems))
    if not kept:
        raise InputError(f"{_called(source, split)} is empty: no row of it has a text and a label")
    if len({isinstance(record.labels, list) for record in kept}) > 1:
        one = next(record for record in kept if not isinstance(record.labels, list))
        raise InputError(f"{one.place}: its label is no list, and others are; give a list of labels in every row")
    texts = LabelledTexts([each.text for each in kept], _array(kept, names), names, [each.id for each in kept])
    if limit is None or limit >= len(texts):
        return texts
    return texts.take(np.linspace(0, len(texts) - 1, limit).round().astype(int))


def _declared_names(table: labelled_files.Table, columns: LabelledColumns) -> tuple[str, ...] | None:
    if not table.features:
        return None
    return labelled_files.class_names(table.features.get(columns.of(table.features, table.name)[1]))


def _train(open_split, columns: LabelledColumns, separator: str | None) -> list["_Record"]:
    """The records of the train split, for the names of its labels; none when there is no such split."""
    # What is wrong with its rows is said when they are what is read.
    problems = document_files.Problems(CleaningReport())
    try:
        return list(_records(open_split("train", columns, problems), columns, separator, problems))
    except InputError:
        return []


def check_label_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of classes as a tuple; InputError when there are none, one is no text, or one is there twice."""
    if isinstance(names, (str, Mapping)) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"label_names is {names!r}; give a list of names")
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice or not len(names):
        raise InputError(
            f"label_names has {twice[0]!r} twice; give each class once" if twice else "label_names is empty"
        )
    return tuple(names)


@dataclass(frozen=True)
class _Record:
    """A row: its labels are a name, a number (of a class of `label_names`), or a list of such.

    flags: the labels as they were, of a list of 0 and 1 alone, which may be one of each class; None of any other.
    """

    place: str
    id: str
    text: Text
    labels: Any
    flags: tuple[float, ...] | None = None


def _plain_value(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _flags(value: Any) -> tuple[float, ...] | None:
    """Labels that may have a 0 or 1 for each class, as they are; None of any others."""
    value = _plain_value(value)
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return None
    return tuple(value) if all(isinstance(each, (int, float)) and each in (0, 1) for each in value) else None


def _are_one_hot(records: list[_Record], names: tuple[str, ...] | None) -> bool:
    """Whether labels have a 0 or 1 for each class: all the same number of them, and one is no list of the numbers of classes,
    which has each once, and of two classes is hardly [1, 0]."""
    flags = [record.flags for record in records]
    if not flags or None in flags or len(set(map(len, flags))) > 1:
        return False
    two = len(flags[0]) == len(names or flags[0]) == 2
    return any(len(set(each)) < len(each) or (two and each == (1, 0)) for each in flags)


def _names_of_flags(names: tuple[str, ...] | None, classes: int, called: str) -> tuple[str, ...]:
    names = names or tuple(map(str, range(classes)))
    if len(names) != classes:
        raise InputError(
            f"{called}: its labels are lists of {classes} values, 0 or 1, and there are {len(names)} label names "
            f"({', '.join(names[:20])}{', ...' * (len(names) > 20)}); give label_names, one for each value"
        )
    return names


def _labels(value: Any, names: tuple[str, ...] | None, separator: str | None) -> Any:
    """Labels as a _Record has them; ValueError when they are none."""
    value = _plain_value(value)
    if separator is not None and not isinstance(value, (list, tuple)):
        value = [each for each in value.split(separator) if each.strip()] if isinstance(value, str) else [value]
    if isinstance(value, (list, tuple)):
        return [_label(each, names) for each in value]
    return _label(value, names)


def _label(value: Any, names: tuple[str, ...] | None) -> str | int:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):  # GitHub's labels
        value = value["name"]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():  # a column of numbers, some of which are missing
        value = int(value)
    if isinstance(value, int):
        if names is None:
            return value
        if not 0 <= value < len(names):
            raise ValueError(f"its label is {value}, and the dataset has the classes 0 to {len(names) - 1}")
        return names[value]
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"its label is {value!r}")
    if not isinstance(value, str):
        raise ValueError(f"its label is {value!r}, a {type(value).__name__}; labels are names or whole numbers")
    return value.strip()


def _records(
    table: labelled_files.Table, columns: LabelledColumns, separator: str | None, problems
) -> Iterator[_Record]:
    for place, row, (texts, label) in documents.with_columns(table.rows, table.name, columns, problems):
        name = row.get(ID_COLUMN)
        name = str(name) if name not in (None, "") else place
        found = [row[column] for column in texts]
        wrong = [text for text in found if not isinstance(text, str) or not has_text(text)]
        if wrong:
            problems.note("empty text", place, f"its text is {wrong[0]!r}")
        elif all(document_files.is_readable(text, place, problems) for text in found):
            try:
                labels = _labels(row[label], labelled_files.class_names(table.features.get(label)), separator)
            except ValueError as error:
                problems.note("no label", place, str(error))
            else:
                yield _Record(place, name, found[0] if len(found) == 1 else tuple(found), labels, _flags(row[label]))


def _found_names(records: Iterable[_Record]) -> tuple[str, ...]:
    found = set()
    for record in records:
        found.update(record.labels if isinstance(record.labels, list) else [record.labels])
    if all(_is_number(label) for label in found):
        return tuple(map(str, sorted(set(map(int, found)))))
    return tuple(sorted(set(map(str, found))))


def _is_number(label: str | int) -> bool:
    return isinstance(label, int) or (label.removeprefix("-").isdecimal() and str(int(label)) == label)


def _known(records: Iterable[_Record], names: tuple[str, ...], problems) -> Iterator[_Record]:
    """Records with the ids of their labels for these; a record with a label that is unknown is noted."""
    ids = {name: number for number, name in enumerate(names)}
    # "3" is a class of its own among "1" to "5", and the fourth class of ("anger", "fear", "joy", "love").
    if not any(map(_is_number, names)):
        ids |= {number: number for number in range(len(names))}
        ids |= {str(number): number for number in range(len(names))}
    else:
        ids |= {int(name): number for name, number in list(ids.items()) if _is_number(name)}
    for record in records:
        several = isinstance(record.labels, list)
        labels = record.labels if several else [record.labels]
        unknown = [label for label in labels if label not in ids]
        if unknown:
            listed = ", ".join(names[:20]) + (f", ... ({len(names)} in all)" if len(names) > 20 else "")
            problems.note(
                "unknown label",
                record.place,
                f"its label {unknown[0]!r} is none of {listed}{nearest(str(unknown[0]), names)}",
            )
            continue
        found = [ids[label] for label in labels]
        if len(set(found)) < len(found):
            twice = next(label for number, label in enumerate(labels) if found[number] in found[:number])
            problems.note(
                "repeated label",
                record.place,
                f"its labels have {twice!r} twice; give the names or the numbers of its labels, each once, or a 0 or 1 for "
                "each class in every row",
            )
            continue
        yield _Record(record.place, record.id, record.text, found if several else found[0])


def _array(records: list[_Record], names: tuple[str, ...]) -> np.ndarray:
    if not isinstance(records[0].labels, list):
        return np.array([record.labels for record in records], np.int32)
    labels = np.zeros((len(records), len(names)), np.float32)
    for row, record in enumerate(records):
        labels[row, record.labels] = 1.0
    return labels


def _called(source: Any, split: str | None) -> str:
    name = repr(str(source)) if isinstance(source, (str, Path)) else "the list of rows"
    return f"{name}, split {split!r}," if split is not None else name
