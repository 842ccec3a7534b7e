"""Read a split of labeled texts as records: with or without labels, its labels renamed and chosen."""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled import files as labelled_files
from duonlp.data.labelled.columns import LabelledColumns, TextTemplate
from duonlp.data.labelled.label_map import names_from_file, read_label_map
from duonlp.data.labelled.labels import as_list, collect_names, label_lookup, meaning_of
from duonlp.data.labelled.records import (
    Record,
    narrowed,
    records_of,
    renamed,
    with_flags_named,
    with_label_ids,
)
from duonlp.data.reading import document_files
from duonlp.data.reading.tables import SPLIT_NAMES
from duonlp.errors import InputError
from duonlp.util.suggestions import choice

UNLABELLED = ("separate", "negative", "error")
"""What rows without a label mean: texts that nobody has labeled, texts to which no label applies, or an error."""


class LabelledOptions(TypedDict, total=False):
    """Options of :func:`duonlp.data.read_labelled_texts`, which describes them."""

    config: str | None
    text_column: str | Sequence[str] | None
    text_template: str | None
    label_column: str | None
    label_names: Sequence[str] | None
    class_names: Sequence[str] | str | Path | None
    label_separator: str | None
    label_map: Mapping[Any, str | None] | str | Path | None
    most_frequent: int | None
    limit: int | None
    encoding: str | None
    quoting: bool | None
    column_names: Sequence[str] | str | None
    report: CleaningReport | None


@dataclass(frozen=True)
class SplitRecords:
    """The records of a split.

    Attributes:
        labelled: Records with class indices as labels.
        unlabelled: Records without labels, which are not among the former.
        names: Names of the classes.
        multi_label: Whether labels are lists.
        dropped_labels: Number of rows from which a label was dropped, by label.
        unused: Keys of the label map that no row has.
    """

    labelled: list[Record]
    unlabelled: list[Record]
    names: tuple[str, ...]
    multi_label: bool
    dropped_labels: dict[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Named:
    """The records of a split with names as labels, the names of all classes if they are known, and the name of the table."""

    records: list[Record]
    names: tuple[str, ...] | None
    table_name: str
    unused: tuple[str, ...] = ()


class SplitReader:
    """Reads the splits of a source with the same options; see :func:`duonlp.data.read_labelled_texts` for these."""

    def __init__(
        self,
        source: Any,
        unlabelled: str | None,
        *,
        keeps_empty: bool = False,
        config: str | None = None,
        text_column: str | Sequence[str] | None = None,
        text_template: str | None = None,
        label_column: str | None = None,
        label_names: Sequence[str] | None = None,
        class_names: Sequence[str] | str | Path | None = None,
        label_separator: str | None = None,
        label_map: Mapping[Any, str | None] | str | Path | None = None,
        most_frequent: int | None = None,
        limit: int | None = None,
        encoding: str | None = None,
        quoting: bool | None = None,
        column_names: Sequence[str] | str | None = None,
        report: CleaningReport | None = None,
    ):
        """Check the options.

        Args:
            source: As for :func:`duonlp.data.read_labelled_texts`, and so are the options.
            unlabelled: One of UNLABELLED. None separates lists without labels, and refuses other rows without a label.
            keeps_empty: With None, keep lists without labels as texts to which none applies, with a warning.

        Raises:
            InputError: An option is invalid, or the source does not exist.
        """
        for name, number in (("limit", limit), ("most_frequent", most_frequent)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise InputError(f"{name} is {number!r}; it must be a positive integer or None")
        if unlabelled is not None:
            choice("unlabelled", unlabelled, UNLABELLED)
        self.unlabelled = unlabelled
        self.keeps_empty = keeps_empty
        self.limit = limit
        self.label_names = None if label_names is None else check_label_names(label_names)
        self.class_names = None if class_names is None else read_class_names(class_names)
        self.separator = label_separator
        self.label_map = None if label_map is None else read_label_map(label_map)
        self.most_frequent = most_frequent
        template = None if text_template is None else TextTemplate(text_template)
        self.columns = LabelledColumns(text_column, label_column, template, needs_label=unlabelled is None)
        self.report = report
        text = document_files.TextFormat(encoding, quoting, column_names)
        self.source = source
        self.open_split = labelled_files.open_source(source, config, text)

    def read(self, split: str | None) -> SplitRecords:
        """Read a split.

        Raises:
            InputError: See :func:`duonlp.data.read_labelled_texts`.
        """
        problems = document_files.Problems(self.report)
        named = self._named(split, problems)
        records, names = named.records, named.names
        narrows = self.most_frequent is not None
        if names is None or (narrows and self.label_names is None):
            counted = records if split is not None and SPLIT_NAMES.get(split) == "train" else self._train() or records
            names = names or collect_names(_labels(counted), named.table_name)
            if self.most_frequent is not None:
                names = _most_frequent(names, _labels(counted), self.most_frequent)
        if narrows:
            records = list(narrowed(records, names))
        rows = list(with_label_ids(records, names, problems))
        if not rows:
            raise InputError(f"{self.describe(split)} is empty: no row has both a text and a label; check its columns")
        is_multi_label = any(isinstance(row.labels, list) for row in rows)
        if is_multi_label:
            single = next((row for row in rows if row.labels is not None and not isinstance(row.labels, list)), None)
            if single is not None:
                raise InputError(
                    f"{single.place}: its label is not a list, but the labels of other rows are; give a list in every row"
                )
        labelled, unlabelled = self._separated(rows, is_multi_label, problems)
        if not labelled:
            self._check_label_column(split)
            raise InputError(
                f"none of the {len(rows)} texts of {self.describe(split)} has a label; check its label column and label_map, "
                "or read unlabeled texts with read_unlabelled_texts"
            )
        dropped = Counter(label for row in rows for label in set(row.dropped))
        in_order = {label: dropped[label] for label in sorted(dropped, key=lambda label: (-dropped[label], label))}
        return SplitRecords(labelled, unlabelled, names, is_multi_label, in_order, named.unused)

    def _named(self, split: str | None, problems: document_files.Problems) -> "_Named":
        """Return the records of a split with the final names of their labels."""
        table = self.open_split(split, self.columns, problems)
        needs_label = self.unlabelled is None
        records = list(records_of(table, self.columns, self.separator, self.class_names, problems, needs_label))
        declared = self.class_names or self._declared_names(table)
        changes = self.class_names is not None or self.label_map is not None or self.most_frequent is not None
        records, names = with_flags_named(records, declared if changes else self.label_names or declared, table.name)
        if not changes:
            return _Named(records, names, table.name)
        seen: set[str | int] = set()
        records = list(renamed(records, names, self.label_map, seen))
        if self.label_map is None:
            return _Named(records, self.label_names or names, table.name)
        names = None if names is None else self.label_map.of_names(names)
        unused = tuple(key for meaning, key in self.label_map.keys.items() if meaning not in seen)
        return _Named(records, self.label_names or names, table.name, unused)

    def _declared_names(self, table: labelled_files.Table) -> tuple[str, ...] | None:
        """Return the class names that the dataset declares for the label column, or None."""
        if not table.features:
            return None
        return labelled_files.class_names(table.features.get(self.columns.of(table.features, table.name)[1]))

    def _train(self) -> list[Record]:
        """Return the records of the train split, for its label names; [] if there is no such split."""
        try:  # Problems with its rows are reported when the train split itself is read.
            return self._named("train", document_files.Problems(CleaningReport())).records
        except InputError:
            return []

    def _check_label_column(self, split: str | None) -> None:
        """Raise InputError if the first row of a split has no label column."""
        columns = replace(self.columns, needs_label=True)
        table = self.open_split(split, columns, document_files.Problems(CleaningReport()))
        for _, row in itertools.islice(table.rows, 1):
            columns.of(row, table.name)

    def _separated(
        self, rows: list[Record], is_multi_label: bool, problems: document_files.Problems
    ) -> tuple[list[Record], list[Record]]:
        """Return the rows that count as labeled and those that do not; unusable ones are noted."""
        labelled = [row for row in rows if row.is_labelled]
        unlabelled = [row for row in rows if not row.is_labelled]
        mode = "separate" if self.unlabelled is None and not self.keeps_empty else self.unlabelled
        if not unlabelled or mode == "separate":
            return labelled, unlabelled
        if mode == "error" or (mode == "negative" and not is_multi_label):
            for row in unlabelled:
                dropped = f"; its labels {', '.join(row.dropped)} are dropped" if row.dropped else ""
                problems.note("no label", row.place, f"it has no label{dropped}")
            return labelled, []
        if not is_multi_label:  # their labels were dropped on purpose
            if (report := self.report) is not None:
                for row in unlabelled:
                    report.drop("label dropped", f"{row.place}: its label {row.dropped[0]!r} is dropped", 0)
            return labelled, []
        if mode is None:
            warnings.warn(
                f"{len(unlabelled)} of {len(rows)} texts have no label and are read as texts to which none applies; pass "
                "unlabelled='negative' if that is so, or 'separate' to leave them out",
                stacklevel=4,
            )
        return [row if row.labels is not None else replace(row, labels=[]) for row in rows], []

    def describe(self, split: str | None) -> str:
        """Return the source and the split as a phrase for messages."""
        name = repr(str(self.source)) if isinstance(self.source, (str, Path)) else "the list of rows"
        return f"{name}, split {split!r}," if split is not None else name


def _labels(records: Iterable[Record]) -> list[Any]:
    return [label for record in records if record.labels is not None for label in as_list(record.labels)]


def _most_frequent(names: tuple[str, ...], labels: Iterable[Any], number: int) -> tuple[str, ...]:
    """Return the most frequent names, in the order of all names; of equally frequent ones, the first."""
    ids = label_lookup(names)
    counts = Counter(ids.get(label, ids.get(meaning_of(label))) for label in labels)
    chosen = sorted(range(len(names)), key=lambda index: -counts[index])[:number]
    return tuple(names[index] for index in sorted(chosen))


def read_class_names(source: Sequence[str] | str | Path) -> tuple[str, ...]:
    """Return the names of classes, of which a file has one on each line.

    Raises:
        InputError: The file cannot be read, or the names are invalid.
    """
    return check_label_names(names_from_file(source) if isinstance(source, (str, Path)) else source, "class_names")


def check_label_names(names: Sequence[str], argument: str = "label_names") -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        InputError: There are none, one is not a non-empty str, or one is repeated.
    """
    if isinstance(names, (str, Mapping)) or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{argument} is {names!r}; give a list of names")
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        raise InputError(f"{argument} has {repeated[0]!r} twice; give each class once")
    if not len(names):
        raise InputError(f"{argument} is empty; name at least one class")
    return tuple(names)
