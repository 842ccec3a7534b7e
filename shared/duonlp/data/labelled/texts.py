"""Read texts with labels, such as CLINC150 or any table with a text and a label column."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled.columns import LABEL_COLUMNS, TEXT_COLUMNS, LabelledColumns
from duonlp.data.labelled.records import Text
from duonlp.data.labelled.split_reader import SplitReader, SplitRecords, check_label_names
from duonlp.errors import InputError
from duonlp.util.reading import is_unicode

__all__ = [
    "LABEL_COLUMNS", "TEXT_COLUMNS", "LabelledColumns", "LabelledTexts", "Text", "check_label_names", "labelled_texts",
    "limited", "read_labelled_texts",
]  # fmt: skip


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


def read_labelled_texts(
    source: Any,
    split: str | None = None,
    *,
    config: str | None = None,
    text_column: str | Sequence[str] | None = None,
    text_template: str | None = None,
    label_column: str | None = None,
    label_names: Sequence[str] | None = None,
    class_names: Sequence[str] | str | Path | None = None,
    label_separator: str | None = None,
    label_map: Mapping[Any, str | None] | str | Path | None = None,
    most_frequent: int | None = None,
    unlabelled: str | None = None,
    limit: int | None = None,
    encoding: str | None = None,
    quoting: bool | None = None,
    column_names: Sequence[str] | str | None = None,
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
        text_template: What to make the text of instead, with columns in braces: "{title}\n\n{body}". Columns may be empty (None,
            NaN, ""); a row whose columns are all empty has no text. Nothing but column names may stand in the braces.
        label_column: Column of the label. Defaults to the first of LABEL_COLUMNS that exists. Its values are names or
            numbers; numbers are classes of the dataset or of `label_names`, or else names themselves. An object with a
            name, such as a GitHub label, is that name. Spellings of one number or truth value, such as 1 and 1.0, are one
            class. Lists of labels make the texts multi-label, and so do lists with a 0
            or 1 per class (one-hot). The latter are recognized if a list repeats 0 or 1 or, with two classes, is [1, 0].
        label_names: Names of the classes, in order. Read validation data with those of the training data, so that their
            class indices agree. Defaults to the dataset's class names, or else the sorted labels of its train split, or of
            this split if there is none.
        class_names: Names of the classes that numbers in the data stand for, in order, or a file with one name on each line.
            Defaults to those that the dataset declares. Unlike `label_names`, they are the names before `label_map` and
            `most_frequent`.
        label_separator: Separator of several labels in one field, which makes the texts multi-label; "json" if fields hold lists
            in JSON.
        label_map: {old name: new name, or None to drop the label}, or a .json or .toml file with that. Several labels may get the
            same name and are then one. The key "*" stands for all labels without a key, which otherwise keep their names.
        most_frequent: Keep this many labels, those of most rows of the train split (or of this split if there is none), and
            drop all others. With `label_names`, keep those instead.
        unlabelled: What rows without a label mean, be it that they have none or that all of theirs are dropped. "separate": they
            are left out; :func:`duonlp.data.prepare_labels` returns their texts. "negative": no label applies to them, so their
            row of `labels` is all zero; only for multi-label texts. "error": they are unusable. None: empty lists of labels are
            read as with "negative", with a warning, and other rows without a label are unusable. A list with a 0 or 1 per
            class always says which labels apply, even if none does.
        limit: Maximum number of texts, spread evenly over the data, because many files are sorted by label. The label names
            still cover all texts.
        encoding: Encoding of text files, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        quoting: Whether fields of CSV and TSV files may be quoted. None: CSV files quote; TSV files do not, unless they can only
            be read as quoted.
        column_names: Names of the columns, in order, of a CSV or TSV file without a header, also as "text,label".
        report: Collects the rows that are dropped because they have no text, no label or an unknown label, or are corrupt.
            Without a report, the first such row raises InputError; no row is dropped silently.

    Raises:
        InputError: The source, the split or a column does not exist (the message lists the ones that do), the split is
            empty, or, without a report, a row is unusable.
        MissingExtraError: A library that the source needs is not installed.
    """
    reader = SplitReader(
        source, unlabelled, keeps_empty=True, config=config, text_column=text_column, text_template=text_template,
        label_column=label_column, label_names=label_names, class_names=class_names, label_separator=label_separator,
        label_map=label_map, most_frequent=most_frequent, limit=limit, encoding=encoding, quoting=quoting,
        column_names=column_names, report=report,
    )  # fmt: skip
    return limited(labelled_texts(reader.read(split)), limit)


def labelled_texts(split: SplitRecords) -> LabelledTexts:
    """Return the labeled records of a split as texts with labels."""
    records, names = split.labelled, split.names
    if split.multi_label:
        labels = np.zeros((len(records), len(names)), np.float32)
        for row, record in enumerate(records):
            labels[row, record.labels] = 1.0
    else:
        labels = np.array([record.labels for record in records], np.int32)
    return LabelledTexts([record.text for record in records], labels, names, [record.id for record in records])


def limited(texts: LabelledTexts, limit: int | None) -> LabelledTexts:
    """Return at most `limit` of the texts, spread evenly over them; None for all."""
    if limit is None or limit >= len(texts):
        return texts
    return texts.take(np.linspace(0, len(texts) - 1, limit).round().astype(int))
