"""Prepare labeled data: keep unlabeled rows apart, drop texts that occur again, and report what was done."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled import files as labelled_files
from duonlp.data.labelled.columns import NO_COLUMN, LabelledColumns, TextTemplate
from duonlp.data.labelled.records import Record, Text, records_of
from duonlp.data.labelled.split_reader import LabelledOptions, SplitReader, SplitRecords
from duonlp.data.labelled.texts import LabelledTexts, labelled_texts, limited
from duonlp.data.reading import document_files
from duonlp.errors import InputError
from duonlp.util.suggestions import choice

if TYPE_CHECKING:
    from rich.table import Table

DUPLICATES = ("drop", "keep")
MOST_CONFLICTS = 5


@dataclass(frozen=True)
class PreparationReport:
    """Report of preparing labeled data. `rich.print` shows it as a table.

    Attributes:
        rows: Number of rows with a usable text.
        labelled: Number of labeled texts, before any limit.
        unlabelled: Number of unlabeled texts.
        labels_dropped: Number of rows that would be labeled if no label had been dropped; before duplicates are.
        duplicates: Number of rows whose text an earlier row has. Where some have labels, those without count as later.
        conflicts: Number of these that have other labels than the row that is kept.
        conflict_examples: The first few of them, as "place: labels, but labels at place".
        duplicates_dropped: Whether duplicates were dropped.
        dropped_labels: Number of rows from which a label was dropped, by label, the most frequent first.
        unused: Keys of the label map that no row has.
        unusable: Number of dropped rows by reason.
        cardinality: Mean number of labels of a labeled text.
    """

    rows: int
    labelled: int
    unlabelled: int
    labels_dropped: int = 0
    duplicates: int = 0
    conflicts: int = 0
    conflict_examples: tuple[str, ...] = ()
    duplicates_dropped: bool = True
    dropped_labels: dict[str, int] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    unusable: dict[str, int] = field(default_factory=dict)
    cardinality: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values for JSON."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def table(self) -> "Table":
        """Return a rich table of the numbers."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(overflow="fold")
        table.add_row("rows", f"{self.rows:,}", "")
        table.add_row("labeled", f"{self.labelled:,}", f"{self.cardinality:.2f} labels a text")
        note = f"{self.labels_dropped:,} lost all their labels" if self.labels_dropped else ""
        table.add_row("unlabeled", f"{self.unlabelled:,}", note)
        what = "dropped" if self.duplicates_dropped else "kept"
        conflicts = f", {self.conflicts:,} with other labels than the first" if self.conflicts else ""
        table.add_row("duplicates", f"{self.duplicates:,}", f"{what}{conflicts}" if self.duplicates else "")
        if self.dropped_labels:
            listed = ", ".join(f"{name} ({count:,})" for name, count in self.dropped_labels.items())
            table.add_row("dropped labels", f"{sum(self.dropped_labels.values()):,}", Text(listed))
        if self.unused:
            listed = ", ".join(self.unused)
            table.add_row("unknown labels", f"{len(self.unused):,}", Text(f"in the label map, but in no row: {listed}"))
        for reason, count in self.unusable.items():
            table.add_row(Text(f"dropped rows, {reason}"), f"{count:,}", "")
        return table

    def __rich__(self) -> "Table":
        return self.table()


@dataclass(frozen=True, eq=False)
class PreparedTexts:
    """Labeled and unlabeled texts of a data set.

    Attributes:
        labelled: The labeled texts.
        unlabelled: The unlabeled texts.
        report: What was found on the way.
        unlabelled_ids: Name of each unlabeled text in the data set, `file:row` if it has none.
    """

    labelled: LabelledTexts
    unlabelled: list[Text]
    report: PreparationReport
    unlabelled_ids: list[str] = field(default_factory=list)


def prepare_labels(
    source: Any,
    split: str | None = None,
    *,
    unlabelled: str | None = "separate",
    duplicates: str = "drop",
    **options: Unpack[LabelledOptions],
) -> PreparedTexts:
    r"""Read a split of a data set in which some texts may have no label, and drop texts that occur again.

    issues = prepare_labels(
        "issues.jsonl", text_template="{title}\n\n{body}", label_map={"bug report": "bug"}, most_frequent=9
    )
    train, validation, test = stratified_split(issues.labelled, (0.7, 0.15, 0.15))

    Two texts are the same if they are equal, character by character. Of labeled ones the first row is kept with its labels; where
    later ones have other labels, the report counts and shows them. An unlabeled text that a labeled row has too is dropped.

    Args:
        source: As for :func:`read_labelled_texts`, and so is `split`.
        split: Name of the split.
        unlabelled: What rows without a label mean, be it that they have none or that all of theirs are dropped: "separate", texts
            that nobody has labeled, which are returned as such; "negative", texts to which no label applies (multi-label
            only); "error". None separates empty lists of labels but refuses other rows without a label, such as single-label rows
            and, in JSONL, rows without the label's key.
        duplicates: "drop", or "keep" to only count them.
        **options: Further options of :func:`read_labelled_texts`. `limit` is that of labeled texts.

    Raises:
        InputError: As for :func:`read_labelled_texts`; or no row has a label.
    """
    choice("duplicates", duplicates, DUPLICATES)
    cleaning = options.get("report") or CleaningReport()
    reader = SplitReader(source, unlabelled, **options)
    found = reader.read(split)
    rows = len(found.labelled) + len(found.unlabelled)
    labels_dropped = sum(bool(record.dropped) for record in found.unlabelled)
    kept, counts = _without_duplicates(found, drop=duplicates == "drop")
    labelled = labelled_texts(kept)
    report = PreparationReport(
        rows=rows, labelled=len(labelled), unlabelled=len(kept.unlabelled), labels_dropped=labels_dropped,
        duplicates_dropped=duplicates == "drop", dropped_labels=found.dropped_labels, unused=found.unused,
        unusable={reason: entry.documents for reason, entry in cleaning.dropped.items()},
        cardinality=float(labelled.labels.sum(1).mean()) if labelled.multi_label else 1.0, **counts,
    )  # fmt: skip
    return PreparedTexts(
        limited(labelled, options.get("limit")),
        [record.text for record in kept.unlabelled],
        report,
        [record.id for record in kept.unlabelled],
    )


def _without_duplicates(split: SplitRecords, drop: bool) -> tuple[SplitRecords, dict[str, Any]]:
    """Return a split without texts that occur again, and the entries of the report about them."""
    first: dict[Text, Record] = {}
    labelled: list[Record] = []
    conflicts: list[str] = []
    for record in split.labelled:
        known = first.setdefault(record.text, record)
        if known is record or not drop:
            labelled.append(record)
        if known is not record and _label_set(known) != _label_set(record):
            conflicts.append(
                f"{record.place}: {_described(record, split.names)}, but {_described(known, split.names)} at {known.place}"
            )
    unlabelled = [record for record in split.unlabelled if first.setdefault(record.text, record) is record]
    counts = {
        "duplicates": len(split.labelled) + len(split.unlabelled) - len(first),
        "conflicts": len(conflicts),
        "conflict_examples": tuple(conflicts[:MOST_CONFLICTS]),
    }
    return replace(split, labelled=labelled, unlabelled=unlabelled if drop else split.unlabelled), counts


def _label_set(record: Record) -> frozenset[int]:
    return frozenset(record.labels if isinstance(record.labels, list) else [record.labels])


def _described(record: Record, names: Sequence[str]) -> str:
    return ", ".join(sorted(names[label] for label in _label_set(record))) or "no label"


def read_unlabelled_texts(
    source: Any,
    split: str | None = None,
    *,
    config: str | None = None,
    text_column: str | Sequence[str] | None = None,
    text_template: str | None = None,
    duplicates: str = "drop",
    limit: int | None = None,
    encoding: str | None = None,
    quoting: bool | None = None,
    column_names: Sequence[str] | str | None = None,
    report: CleaningReport | None = None,
) -> list[Text]:
    """Read texts of which the labels, if they have any, do not matter.

    Args:
        source: As for :func:`read_labelled_texts`, except that it needs no label column; so are the other arguments.
        split: Name of the split.
        config: Configuration of a dataset on the Hub.
        text_column: Column of the text, or two columns for pairs of texts.
        text_template: What to make the text of instead, with columns in braces.
        duplicates: "drop" texts that occur again, or "keep" them.
        limit: Maximum number of texts, spread evenly over the data.
        encoding: Encoding of text files.
        quoting: Whether fields of CSV and TSV files may be quoted.
        column_names: Names of the columns of a CSV or TSV file without a header.
        report: Collects the rows that are dropped because they have no text or are corrupt; without it, they raise.

    Raises:
        InputError: As for :func:`read_labelled_texts`.
    """
    choice("duplicates", duplicates, DUPLICATES)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a positive integer or None")
    template = None if text_template is None else TextTemplate(text_template)
    columns = LabelledColumns(text_column, NO_COLUMN, template, needs_label=False)
    open_split = labelled_files.open_source(source, config, document_files.TextFormat(encoding, quoting, column_names))
    problems = document_files.Problems(report)
    table = open_split(split, columns, problems)
    texts = [record.text for record in records_of(table, columns, None, None, problems, needs_label=False)]
    if not texts:
        raise InputError(f"{table.name} has no text; check its text column")
    if duplicates == "drop":
        texts = list(dict.fromkeys(texts))
    if limit is None or limit >= len(texts):
        return texts
    return [texts[row] for row in np.linspace(0, len(texts) - 1, limit).round().astype(int)]
