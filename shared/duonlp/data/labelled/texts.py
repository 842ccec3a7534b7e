"""Read texts with labels, such as CLINC150 or any table with a text and a label column."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled import files as labelled_files
from duonlp.data.labelled.labels import as_list, collect_names, flags_of, label_lookup, meaning_of, parse_labels
from duonlp.data.pairs.summaries import has_text
from duonlp.data.reading import document_files, documents
from duonlp.data.reading.tables import SPLIT_NAMES
from duonlp.errors import InputError
from duonlp.util.reading import is_unicode
from duonlp.util.suggestions import nearest

TEXT_COLUMNS = ("text", "sentence", "query", "utterance", "utt", "question", "document", "content")
LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "coarse_label")
ID_COLUMN = "id"

Text = str | tuple[str, str]
"""A text, or a pair of texts that form one input, as in entailment."""


@dataclass(frozen=True, eq=False)
class LabelledTexts:
    """Texts, each with one label or, if multi-label, any number of them.

    Attributes:
        texts: All str, or all pairs of str.
        labels: int32 [n], class indices into `label_names`; or float32 [n, len(label_names)], 1.0 for each label of a text
            (multi-label).
        label_names: Name of each class; a model's `id2label`.
        ids: Name of each text in the dataset, `file:row` if it has none.

    Raises:
        InputError: `labels` or `ids` do not fit the texts and the label names.
    """

    texts: list[Text]
    labels: np.ndarray
    label_names: tuple[str, ...]
    ids: list[str] = field(default_factory=list)

    def __post_init__(self):
        count, classes, labels = len(self.texts), len(self.label_names), self.labels
        allowed = {("int32", (count,)), ("float32", (count, classes))}
        if (str(getattr(labels, "dtype", "")), np.shape(labels)) not in allowed:
            raise InputError(
                f"labels are {getattr(labels, 'dtype', type(labels).__name__)} {list(np.shape(labels))} for {count} texts and "
                f"{classes} label names; they must be int32 [{count}] or float32 [{count}, {classes}]"
            )
        if unreadable := next((name for name in self.label_names if not is_unicode(name)), None):
            raise InputError(
                f"the label name {unreadable!r} has an unpaired surrogate; decode the labels with their encoding"
            )
        if labels.ndim == 1 and count and not 0 <= labels.min() <= labels.max() < classes:
            raise InputError(
                f"labels range from {labels.min()} to {labels.max()}, but there are {classes} label names; they must be from 0 "
                f"to {classes - 1}"
            )
        if not self.ids:
            object.__setattr__(self, "ids", [str(number) for number in range(count)])
        if len(self.ids) != count:
            raise InputError(f"there are {len(self.ids)} ids for {count} texts; give one id per text")

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def multi_label(self) -> bool:
        """Whether a text may have several labels, or none."""
        return self.labels.ndim == 2

    def take(self, rows: Sequence[int] | np.ndarray) -> Self:
        """Return the texts at these indices, in this order, with the same label names."""
        rows = [int(row) for row in rows]
        texts, ids = [self.texts[row] for row in rows], [self.ids[row] for row in rows]
        return type(self)(texts, self.labels[rows], self.label_names, ids)

    def counts(self) -> dict[str, int]:
        """Return the number of texts with each label, in the order of `label_names`."""
        counts = self.labels.sum(0) if self.multi_label else np.bincount(self.labels, minlength=len(self.label_names))
        return dict(zip(self.label_names, counts.astype(int).tolist(), strict=True))


@dataclass(frozen=True)
class LabelledColumns:
    """Names of the text and label columns. None selects the first of TEXT_COLUMNS or LABEL_COLUMNS that exists."""

    text: str | Sequence[str] | None = None
    label: str | None = None

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        """Return the one or two text columns and the label column among these column names.

        Args:
            names: Names of all columns.
            source: Name of the table, for messages.

        Raises:
            InputError: A named column does not exist, or no text or label column was recognized.
        """
        names = [str(name) for name in names]
        listed = f"it has {', '.join(names) or 'no columns'}"
        texts = (self.text,) if isinstance(self.text, str) else tuple(self.text or ())
        if isinstance(self.text, str) and self.text not in names and "," in self.text:
            texts = tuple(name.strip() for name in self.text.split(","))  # as on the command line
        if len(texts) > 2:
            raise InputError(f"text_column is {self.text!r}; name one column, or two for pairs of texts")
        labels = () if self.label is None else (self.label,)
        for argument, columns in (("text_column", texts), ("label_column", labels)):
            for name in columns:
                if name not in names:
                    raise InputError(
                        f"{source} has no column {name!r}; {listed}{nearest(name, names)}",
                        remedy=f"name an existing column with {argument}",
                        argument=argument,
                    )
        texts = texts or tuple(itertools.islice((name for name in TEXT_COLUMNS if name in names), 1))
        if not texts:
            raise _missing_column(source, "text", TEXT_COLUMNS, listed)
        label = self.label or next((name for name in LABEL_COLUMNS if name in names and name not in texts), None)
        if not label and {"question", "context", "answers"} <= set(names):
            raise InputError(
                f"{source} has questions on contexts instead of labeled texts; {listed}; read it with read_questions, or train "
                "on it with duonlp finetune --task question-answering"
            )
        if not label:
            raise _missing_column(source, "label", LABEL_COLUMNS, listed)
        return texts, label


def _missing_column(source: str, kind: str, candidates: Sequence[str], listed: str) -> InputError:
    argument = f"{kind}_column"
    return InputError(
        f"{source} has no column {' or '.join(map(repr, candidates))}; {listed}",
        remedy=f"name the {kind} column with {argument}",
        argument=argument,
    )


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
    encoding: str | None = None,
    quoting: bool | None = None,
    report: CleaningReport | None = None,
) -> LabelledTexts:
    """Read a split of a dataset of labeled texts, in the dataset's order.

    Recognized sources:

    - CLINC150, intents with out-of-scope queries (Larson et al. 2019, arXiv:1909.02027): "clinc_oos" on the Hub with
      configuration "plus" (the default), "small" or "imbalanced"; or the original file, {split: [[text, intent], ...]},
      whose "train" is train plus oos_train, "validation" is val plus oos_val, and "test" is test plus oos_test. The oos
      splits can also be read by name.
    - Any dataset on the Hub, or saved by `datasets`, that consists of data files rather than a script.
    - .jsonl, .json (rows, or {split: rows}), .csv and .tsv files (optionally .gz or .zst), .parquet and .arrow files with a
      text and a label column, and folders of them with the split in the file names.

    Args:
        source: A file, a folder, a dataset on the Hub ("hub://owner/name", optionally followed by "@revision" and
            "#configuration"; "clinc_oos", and any name given with `config`, need no "hub://"), or rows: dicts, a `datasets`
            object, or a dict of them by split.
        split: "train", "validation" (or "val", "valid", "dev"), "test", or one of the dataset's own names; None for a file
            or rows without splits.
        config: Configuration of a dataset on the Hub.
        text_column: Column of the text, or two columns for pairs of texts, also as "first,second".
            Defaults to the first of TEXT_COLUMNS that exists.
        label_column: Column of the label. Defaults to the first of LABEL_COLUMNS that exists. Its values are names or
            numbers; numbers are classes of the dataset or of `label_names`, or else names themselves. An object with a
            name, such as a GitHub label, is that name. Spellings of one number or truth value, such as 1 and 1.0, are one
            class. Lists of labels make the texts multi-label, and so do lists with a 0
            or 1 per class (one-hot). The latter are recognized if a list repeats 0 or 1 or, with two classes, is [1, 0].
        label_names: Names of the classes, in order. Read validation data with those of the training data, so that their
            class indices agree. Defaults to the dataset's class names, or else the sorted labels of its train split, or of
            this split if there is none.
        label_separator: Separator of several labels in one field, which makes the texts multi-label.
        limit: Maximum number of texts, spread evenly over the data, because many files are sorted by label. The label names
            still cover all texts.
        encoding: Encoding of text files, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        quoting: Whether fields of CSV and TSV files may be quoted. None: CSV files quote; TSV files do not, unless they can only
            be read as quoted.
        report: Collects the rows that are dropped because they have no text, no label or an unknown label, or are corrupt.
            Without a report, the first such row raises InputError; no row is dropped silently.

    Raises:
        InputError: The source, the split or a column does not exist (the message lists the ones that do), the split is
            empty, or, without a report, a row is unusable.
        MissingExtraError: A library that the source needs is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a positive integer or None")
    names = None if label_names is None else check_label_names(label_names)
    columns = LabelledColumns(text_column, label_column)
    open_split = labelled_files.open_source(source, config, document_files.TextFormat(encoding, quoting))
    problems = document_files.Problems(report)

    table = open_split(split, columns, problems)
    records = list(_records(table, columns, label_separator, problems))
    names = names or _declared_names(table, columns)
    if (flags := _one_hot_flags(records, names)) is not None:
        names = _names_of_flags(names, len(flags[0]), table.name)
        records = [
            replace(record, labels=np.flatnonzero(row).tolist()) for record, row in zip(records, flags, strict=True)
        ]
    else:
        if names is None:
            others = (
                records
                if split is not None and SPLIT_NAMES.get(split) == "train"
                else _train_records(open_split, columns, label_separator)
            )
            named = (label for record in others or records for label in as_list(record.labels))
            names = collect_names(named, table.name)
        records = list(_with_label_ids(records, names, problems))
    if not records:
        raise InputError(f"{_describe(source, split)} is empty: no row has both a text and a label; check its columns")
    if len({isinstance(record.labels, list) for record in records}) > 1:
        single = next(record for record in records if not isinstance(record.labels, list))
        raise InputError(
            f"{single.place}: its label is not a list, but the labels of other rows are; give a list in every row"
        )
    texts = LabelledTexts(
        [record.text for record in records], _label_array(records, names), names, [record.id for record in records]
    )
    if limit is None or limit >= len(texts):
        return texts
    return texts.take(np.linspace(0, len(texts) - 1, limit).round().astype(int))


def _declared_names(table: labelled_files.Table, columns: LabelledColumns) -> tuple[str, ...] | None:
    """Return the class names that the dataset declares for the label column, or None."""
    if not table.features:
        return None
    return labelled_files.class_names(table.features.get(columns.of(table.features, table.name)[1]))


def _train_records(
    open_split: labelled_files.SplitOpener, columns: LabelledColumns, separator: str | None
) -> list["_Record"]:
    """Return the records of the train split, for its label names; [] if there is no such split."""
    # Problems with its rows are reported when the train split itself is read.
    problems = document_files.Problems(CleaningReport())
    try:
        return list(_records(open_split("train", columns, problems), columns, separator, problems))
    except InputError:
        return []


def check_label_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        InputError: There are none, one is not a non-empty str, or one is repeated.
    """
    if isinstance(names, (str, Mapping)) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"label_names is {names!r}; give a list of names")
    repeated = sorted({name for name in names if list(names).count(name) > 1})
    if repeated:
        raise InputError(f"label_names has {repeated[0]!r} twice; give each class once")
    if not len(names):
        raise InputError("label_names is empty; name at least one class")
    return tuple(names)


@dataclass(frozen=True)
class _Record:
    """A row of a dataset.

    Attributes:
        place: Location of the row, for messages.
        id: Name of the row in the dataset, or its location.
        text: The text or pair of texts.
        labels: A name, a class index, or a list of either (multi-label).
        flags: The raw label if it is a list of only 0 and 1, which may be one-hot; None otherwise.
    """

    place: str
    id: str
    text: Text
    labels: Any
    flags: tuple[float, ...] | None = None


def _one_hot_flags(records: list[_Record], names: tuple[str, ...] | None) -> list[tuple[float, ...]] | None:
    """Return the flags of all records if their labels are one-hot, or None.

    They are if all have the same number of flags and one list cannot be a list of class indices: it repeats 0 or 1 or,
    with two classes, is [1, 0].
    """
    flags = [record.flags for record in records if record.flags is not None]
    if not flags or len(flags) < len(records) or len(set(map(len, flags))) > 1:
        return None
    two_classes = len(flags[0]) == len(names or flags[0]) == 2
    is_one_hot = any(len(set(row)) < len(row) or (two_classes and row == (1, 0)) for row in flags)
    return flags if is_one_hot else None


def _names_of_flags(names: tuple[str, ...] | None, classes: int, table_name: str) -> tuple[str, ...]:
    """Return the names of the classes of one-hot labels; by default their indices."""
    names = names or tuple(map(str, range(classes)))
    if len(names) != classes:
        raise InputError(
            f"{table_name}: its labels are lists of {classes} values, 0 or 1, but there are {len(names)} label names "
            f"({', '.join(names[:20])}{', ...' * (len(names) > 20)}); give label_names with one name per value"
        )
    return names


def _records(
    table: labelled_files.Table,
    columns: LabelledColumns,
    separator: str | None,
    problems: document_files.Problems,
) -> Iterator[_Record]:
    """Yield the records of a table; rows without a usable text or label are noted in `problems`."""
    for place, row, (text_columns, label) in documents.with_columns(table.rows, table.name, columns, problems):
        name = row.get(ID_COLUMN)
        name = str(name) if name not in (None, "") else place
        parts = [row[column] for column in text_columns]
        unusable = [part for part in parts if not isinstance(part, str) or not has_text(part)]
        if unusable:
            problems.note("empty text", place, f"its text is {unusable[0]!r}")
        elif all(document_files.is_readable(part, place, problems) for part in parts):
            try:
                labels = parse_labels(row[label], labelled_files.class_names(table.features.get(label)), separator)
            except ValueError as error:
                problems.note("no label", place, str(error))
            else:
                own = [part for part in (name, *as_list(labels)) if isinstance(part, str) and part != place]
                if all(document_files.is_readable(part, place, problems) for part in own):
                    text = parts[0] if len(parts) == 1 else (parts[0], parts[1])
                    yield _Record(place, name, text, labels, flags_of(row[label]))


def _with_label_ids(
    records: Iterable[_Record], names: tuple[str, ...], problems: document_files.Problems
) -> Iterator[_Record]:
    """Yield the records with class indices as labels; unknown and repeated labels are noted in `problems`."""
    ids = label_lookup(names)
    for record in records:
        is_list = isinstance(record.labels, list)
        labels = as_list(record.labels)
        found = [ids.get(label, ids.get(meaning_of(label))) for label in labels]
        unknown = [label for label, index in zip(labels, found) if index is None]
        if unknown:
            listed = ", ".join(names[:20]) + (f", ... ({len(names)} in total)" if len(names) > 20 else "")
            suggestion = nearest(str(unknown[0]), names)
            problems.note("unknown label", record.place, f"its label {unknown[0]!r} is not one of {listed}{suggestion}")
            continue
        label_ids = [index for index in found if index is not None]
        if len(set(label_ids)) < len(label_ids):
            repeated = next(label for number, label in enumerate(labels) if label_ids[number] in label_ids[:number])
            problems.note(
                "repeated label",
                record.place,
                f"its labels have {repeated!r} twice; give each label's name or number once, or a 0 or 1 for each class in "
                "every row",
            )
            continue
        yield _Record(record.place, record.id, record.text, label_ids if is_list else label_ids[0])


def _label_array(records: list[_Record], names: tuple[str, ...]) -> np.ndarray:
    """Return the labels as in `LabelledTexts`: int32 [n], or float32 [n, len(names)]."""
    if not isinstance(records[0].labels, list):
        return np.array([record.labels for record in records], np.int32)
    labels = np.zeros((len(records), len(names)), np.float32)
    for row, record in enumerate(records):
        labels[row, record.labels] = 1.0
    return labels


def _describe(source: Any, split: str | None) -> str:
    name = repr(str(source)) if isinstance(source, (str, Path)) else "the list of rows"
    return f"{name}, split {split!r}," if split is not None else name
