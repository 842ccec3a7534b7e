"""Augment the rows of a file, whatever other columns they have."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from duonlp.augmentation.augmenter import Augmenter, Unchanged
from duonlp.augmentation.labelled import copies_of, new_copies, nothing_new
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled.columns import TEXT_COLUMNS
from duonlp.data.labelled.files import open_source
from duonlp.data.labelled.records import ID_COLUMN
from duonlp.data.reading.document_files import Problems, TextFormat, is_readable
from duonlp.data.reading.documents import with_columns
from duonlp.errors import InputError
from duonlp.util.suggestions import nearest


@dataclass(frozen=True)
class TextColumns:
    """Names of the columns with text; () for the first of the usual names."""

    names: tuple[str, ...] = ()

    def of(self, names: Iterable[str], source: str) -> tuple[str, ...]:
        """Return the text columns among these column names.

        Raises:
            InputError: There is no such column.
        """
        names = [str(name) for name in names]
        for name in self.names:
            if name not in names:
                raise InputError(
                    f"{source} has no column {name!r}; it has {', '.join(names) or 'no columns'}{nearest(name, names)}",
                    remedy="name an existing column with text_column",
                    argument="text_column",
                )
        found = self.names or next(((name,) for name in TEXT_COLUMNS if name in names), ())
        if not found:
            raise InputError(
                f"{source} has no column {' or '.join(map(repr, TEXT_COLUMNS))}; it has {', '.join(names) or 'no columns'}",
                remedy="name the text column with text_column",
                argument="text_column",
            )
        return found


class _AllColumns:
    """Reads every column of a file."""

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        names = tuple(map(str, names))
        return names, names[0] if names else ""


@dataclass(frozen=True)
class Rows:
    """Rows of a file.

    Attributes:
        rows: The rows.
        columns: The text columns of each.
    """

    rows: list[dict[str, Any]]
    columns: list[tuple[str, ...]]


def read_rows(
    source: Any,
    split: str | None = None,
    *,
    text_column: str | Sequence[str] | None = None,
    encoding: str | None = None,
    quoting: bool | None = None,
    report: CleaningReport | None = None,
) -> Rows:
    """Read the rows of a table, labeled or not, with all their columns.

    Args:
        source: A file, folder or dataset as for :func:`duonlp.data.read_labelled_texts`.
        split: Split of the data, if it has several.
        text_column: Columns with text, as a list or "title,body". Defaults to the first with a usual name.
        encoding: Encoding of text files; None for UTF-8.
        quoting: Whether fields of CSV and TSV files may be quoted.
        report: Collects the rows that are dropped because they have no text or are corrupt. Without one, they are errors.

    Raises:
        InputError: The source, the split or a column does not exist, no row has text, or, without a report, a row is unusable.
    """
    names = text_column.split(",") if isinstance(text_column, str) else [*(text_column or ())]
    finder, problems = TextColumns(tuple(name.strip() for name in names)), Problems(report)
    table = open_source(source, None, TextFormat(encoding, quoting))(split, _AllColumns(), problems)
    rows, columns = [], []
    for place, row, found in with_columns(table.rows, table.name, finder, problems):
        texts = [row[column] for column in found if row[column] is not None]
        if unusable := [text for text in texts if not isinstance(text, str)]:
            problems.note("empty text", place, f"its text is {unusable[0]!r}")
        elif not any(text.strip() for text in texts):
            problems.note("empty text", place, f"its text is {texts[0] if texts else None!r}")
        elif all(is_readable(text, place, problems) for text in texts):
            rows.append(dict(row))
            columns.append(tuple(column for column in found if row[column] is not None))
    if not rows:
        raise InputError(f"{table.name} has no row with text; check its columns")
    return Rows(rows, columns)


def augment_rows(
    rows: Rows,
    augmenter: Augmenter,
    per_text: int = 1,
    *,
    seed: int = 0,
    originals: bool = False,
    keep_unchanged: bool = False,
    progress: bool | None = None,
) -> tuple[list[dict[str, Any]], Unchanged]:
    """Return copies of rows in which the text columns are augmented, and a count of those that are not new.

    Args:
        rows: The rows.
        augmenter: Makes the copies.
        per_text: Number of copies of each row.
        seed: Seed of the copies.
        originals: Whether the result has the rows themselves too, each before its copies.
        keep_unchanged: Whether to keep copies that are the row itself or repeat an earlier copy.
        progress: Whether to show a progress bar; None shows one on a terminal if it takes long.

    Returns:
        The rows, whose column "id", if there is one, gets "+1", "+2", ...; and the count.

    Raises:
        InputError: An argument is out of range, or no copy differs from its row.
    """
    texts = [row[column] for row, columns in zip(rows.rows, rows.columns, strict=True) for column in columns]
    made = iter(copies_of(texts, augmenter, per_text, seed, progress))
    result, unchanged, repeated = [], 0, 0
    for row, columns in zip(rows.rows, rows.columns, strict=True):
        text = tuple(row[column] for column in columns)
        copies = list(zip(*(next(made) for _ in columns), strict=True))
        numbered: list[Any] = [(copy, f"+{number}") for number, copy in enumerate(copies, 1)]
        new: list[Any] = new_copies(text, numbered)  # pyrefly: ignore[bad-argument-type]
        same = sum(copy == text for copy in copies)
        unchanged, repeated = unchanged + same, repeated + len(copies) - same - len(new)
        result += [row] if originals else []
        for copy, suffix in numbered if keep_unchanged else new:
            result.append(_with_text(row, columns, copy, suffix))
    if unchanged == per_text * len(rows.rows):
        raise InputError(nothing_new(len(rows.rows)))
    return result, Unchanged(len(rows.rows), per_text * len(rows.rows), unchanged, repeated)


def _with_text(row: Mapping[str, Any], columns: Sequence[str], texts: Sequence[str], suffix: str) -> dict[str, Any]:
    changed = {**row, **dict(zip(columns, texts, strict=True))}
    if changed.get(ID_COLUMN) not in (None, "") and ID_COLUMN not in columns:
        changed[ID_COLUMN] = f"{row[ID_COLUMN]}{suffix}"
    return changed
