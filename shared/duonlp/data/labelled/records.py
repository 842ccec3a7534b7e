"""Turn the rows of a table into records of a text and its labels, and the labels into class indices."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from duonlp.data.labelled import files as labelled_files
from duonlp.data.labelled.columns import NO_COLUMN, LabelledColumns
from duonlp.data.labelled.label_map import LabelMap
from duonlp.data.labelled.labels import JSON, as_list, flags_of, label_lookup, meaning_of, parse_json_list, parse_labels
from duonlp.data.pairs.summaries import has_text
from duonlp.data.reading import document_files, documents
from duonlp.errors import InputError
from duonlp.util.suggestions import nearest

ID_COLUMN = "id"

Text = str | tuple[str, str]
"""A text, or a pair of texts that form one input, as in entailment."""


@dataclass(frozen=True)
class Record:
    """A row of a dataset.

    Attributes:
        place: Location of the row, for messages.
        id: Name of the row in the dataset, or its location.
        text: The text or pair of texts.
        labels: A name, a class index, a list of either (multi-label), or None if there is no label.
        flags: The raw label if it is a list of only 0 and 1, which may be one-hot; None otherwise.
        is_stated: Whether the row says of every class whether it applies, as one-hot labels do.
        dropped: Labels that a map or a choice of labels has removed.
    """

    place: str
    id: str
    text: Text
    labels: Any
    flags: tuple[float, ...] | None = None
    is_stated: bool = False
    dropped: tuple[str, ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether the row has a label, or says that none applies."""
        return self.is_stated or self.labels not in (None, [])


def records_of(
    table: labelled_files.Table,
    columns: LabelledColumns,
    separator: str | None,
    class_names: tuple[str, ...] | None,
    problems: document_files.Problems,
    needs_label: bool,
) -> Iterator[Record]:
    """Yield the records of a table; rows without a usable text or label are noted in `problems`.

    Args:
        table: The table.
        columns: Finds its columns.
        separator: Separator of several labels in one field.
        class_names: Names of the classes that numbers stand for; None for those that the table declares.
        problems: Notes unusable rows.
        needs_label: Whether a row without a label is unusable. If not, its labels are None.
    """
    for place, row, (text_columns, label) in documents.with_columns(table.rows, table.name, columns, problems):
        name = row.get(ID_COLUMN)
        name = str(name) if name not in (None, "") else place
        text = _text_of(row, text_columns, columns, place, problems)
        if text is None:
            continue
        value = None if label == NO_COLUMN else row[label]
        names = class_names or labelled_files.class_names(table.features.get(label))
        try:
            value = parse_json_list(value) if separator == JSON else value
            missing = not needs_label and _is_missing(value, separator)
            labels = None if missing else parse_labels(value, names, None if separator == JSON else separator)
        except ValueError as error:
            problems.note("no label", place, str(error))
            continue
        own = [part for part in (name, *as_list(labels)) if isinstance(part, str) and part != place]
        if all(document_files.is_readable(part, place, problems) for part in own):
            yield Record(place, name, text, labels, flags_of(value))


def _text_of(
    row: Any,
    text_columns: Sequence[str],
    columns: LabelledColumns,
    place: str,
    problems: document_files.Problems,
) -> Text | None:
    """Return the text or pair of texts of a row; None (noted) if it has no usable one."""
    parts = [row[column] for column in text_columns]
    if columns.template is not None:
        try:
            parts = [columns.template.render(row)]
        except ValueError as error:
            problems.note("corrupt row", place, str(error))
            return None
    unusable = [part for part in parts if not isinstance(part, str) or not has_text(part)]
    if unusable:
        problems.note("empty text", place, f"its text is {unusable[0]!r}")
        return None
    if not all(document_files.is_readable(part, place, problems) for part in parts):
        return None
    return parts[0] if len(parts) == 1 else (parts[0], parts[1])


def _is_missing(value: Any, separator: str | None) -> bool:
    """Return whether a row has no label: none, NaN, or an empty text that is not an empty list of labels."""
    if isinstance(value, str):
        return separator is None and not value.strip()
    return value is None or (isinstance(value, (float, np.floating)) and value != value)


def with_flags_named(
    records: list[Record], names: tuple[str, ...] | None, table_name: str
) -> tuple[list[Record], tuple[str, ...] | None]:
    """Return the records with one-hot labels as lists of names, and the names; records with other labels as they are.

    Args:
        records: All records of a table.
        names: Names of the classes; None for their indices.
        table_name: Name of the table, for messages.

    Raises:
        InputError: There is another number of names.
    """
    flags = _one_hot_flags([record for record in records if record.labels is not None], names)
    if flags is None:
        return records, names
    known = _names_of_flags(names, len(flags[0]), table_name)
    rows = iter(flags)

    def named(record: Record) -> Record:
        if record.labels is None:
            return record
        return replace(record, labels=[known[index] for index in np.flatnonzero(next(rows))], is_stated=True)

    return [named(record) for record in records], known


def _one_hot_flags(records: list[Record], names: tuple[str, ...] | None) -> list[tuple[float, ...]] | None:
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


def renamed(
    records: Iterable[Record], names: tuple[str, ...] | None, names_map: LabelMap | None, seen: set[str | int]
) -> Iterator[Record]:
    """Yield the records with names instead of class indices, then with the new names of a map.

    Labels that the map gives the same name become one; a label that a row has twice stays there twice, to be noted later.

    Args:
        records: The records.
        names: Names of the classes that numbers stand for; None if numbers are names.
        names_map: The map of labels, or None.
        seen: Collects what `meaning_of` makes of the old names.
    """
    ids = {} if names is None else label_lookup(names)
    for record in records:
        if record.labels is None:
            yield record
            continue
        sources: dict[str, str] = {}
        labels: list[str] = []
        dropped: list[str] = []
        for label in as_list(record.labels):
            index = ids.get(label, ids.get(meaning_of(label)))
            old = str(label) if index is None or names is None else names[index]
            seen.add(meaning_of(old))
            new = old if names_map is None else names_map.new_name(old)
            if new is None:
                dropped.append(old)
            elif sources.setdefault(new, old) == old:  # unless another label of the row has the same new name
                labels.append(new)
        yield _with_labels(record, labels, dropped)


def narrowed(records: Iterable[Record], names: tuple[str, ...]) -> Iterator[Record]:
    """Yield the records with only those labels that are among the names."""
    ids = label_lookup(names)
    for record in records:
        labels, dropped = [], []
        for label in () if record.labels is None else as_list(record.labels):
            known = label in ids or meaning_of(label) in ids
            (labels if known else dropped).append(label)
        yield _with_labels(record, labels, map(str, dropped)) if dropped else record


def _with_labels(record: Record, labels: list[Any], dropped: Iterable[str]) -> Record:
    """Return a record with other labels: as many, or fewer, than it had."""
    kept = labels if isinstance(record.labels, list) else labels[0] if labels else None
    return replace(record, labels=kept, dropped=(*record.dropped, *dropped))


def with_label_ids(
    records: Iterable[Record], names: tuple[str, ...], problems: document_files.Problems
) -> Iterator[Record]:
    """Yield the records with class indices as labels; unknown and repeated labels are noted in `problems`."""
    ids = label_lookup(names)
    for record in records:
        if record.labels is None:
            yield record
            continue
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
        yield replace(record, labels=label_ids if isinstance(record.labels, list) else label_ids[0])
