"""Find the columns of texts and labels in a table, and make one text of several columns by a template."""

import itertools
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from duonlp.errors import InputError
from duonlp.util.suggestions import nearest

TEXT_COLUMNS = ("text", "sentence", "query", "utterance", "utt", "question", "document", "content")
LABEL_COLUMNS = ("label", "labels", "intent", "category", "class", "coarse_label")

NO_COLUMN = ""
"""Stands for a label column that a table does not have."""


@dataclass(frozen=True)
class TextTemplate:
    r"""A text made of columns, such as "{title}\n\n{body}".

    Column names stand in braces, and {{ and }} stand for braces. There is nothing else to it: no format specifications, no
    conversions, and no access to attributes or items, so that "{a.b}" is the column "a.b".

    Attributes:
        template: The template.
        parts: (text before a column, name of the column or None after the last one) pairs.

    Raises:
        InputError: It is not such a template, or names no column.
    """

    template: str
    parts: tuple[tuple[str, str | None], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        example = "; write column names in braces, such as {title}"
        if not isinstance(self.template, str):
            raise InputError(f"text_template is {self.template!r}; it must be a text{example}")
        try:
            parsed = list(string.Formatter().parse(self.template))
        except ValueError as error:
            raise InputError(
                f"text_template {self.template!r} is invalid ({error}){example}, and {{{{ for a brace"
            ) from None
        for _, name, specification, conversion in parsed:
            if name is not None and (specification or conversion or not name.strip()):
                raise InputError(
                    f"text_template {self.template!r} has more or less than the name of a column in a pair of braces{example}"
                )
        parts = tuple((literal, name) for literal, name, _, _ in parsed)
        if all(name is None for _, name in parts):
            raise InputError(f"text_template {self.template!r} names no column{example}")
        object.__setattr__(self, "parts", parts)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, each once."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))

    def render(self, row: Mapping[str, Any]) -> str:
        """Return the text of a row without surrounding whitespace; "" if its columns are all empty.

        None and NaN are empty texts, and numbers are written as they are.

        Raises:
            ValueError: A column holds anything else, such as a list.
        """
        values = {name: _as_text(row[name], name) for name in self.columns}
        if not any(value.strip() for value in values.values()):
            return ""
        return "".join(literal + ("" if name is None else values[name]) for literal, name in self.parts).strip()


def _as_text(value: Any, column: str) -> str:
    if value is None or value != value:
        return ""
    if not isinstance(value, (str, int, float)):
        raise ValueError(f"column {column!r} has type {type(value).__name__}; a template takes text and numbers")
    return str(value)


@dataclass(frozen=True)
class LabelledColumns:
    """Names of the text and label columns. None selects the first of TEXT_COLUMNS or LABEL_COLUMNS that exists.

    Attributes:
        text: The text column, or two columns for pairs of texts, also as "first,second".
        label: The label column.
        template: What to make the text of, instead of a text column.
        needs_label: Whether a table must have a label column; if not, NO_COLUMN stands for a missing one.
    """

    text: str | Sequence[str] | None = None
    label: str | None = None
    template: TextTemplate | None = None
    needs_label: bool = True

    def __post_init__(self) -> None:
        if self.template is not None and self.text:
            raise InputError(
                f"text_column is {self.text!r} and text_template is {self.template.template!r}; give one of the two"
            )

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        """Return the text columns (one or two, or those of the template) and the label column among these column names.

        Args:
            names: Names of all columns.
            source: Name of the table, for messages.

        Raises:
            InputError: A named column does not exist, or no text or label column was recognized.
        """
        names = [str(name) for name in names]
        listed = f"it has {', '.join(names) or 'no columns'}"
        texts, text_argument = self._named_texts(names), "text_column" if self.template is None else "text_template"
        labels = () if self.label is None or not self.needs_label else (self.label,)
        for argument, columns in ((text_argument, texts), ("label_column", labels)):
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
        return texts, self._label_of(names, texts, source, listed)

    def _named_texts(self, names: Sequence[str]) -> tuple[str, ...]:
        if self.template is not None:
            return self.template.columns
        texts = (self.text,) if isinstance(self.text, str) else tuple(self.text or ())
        if isinstance(self.text, str) and self.text not in names and "," in self.text:
            texts = tuple(name.strip() for name in self.text.split(","))  # as on the command line
        if len(texts) > 2:
            raise InputError(f"text_column is {self.text!r}; name one column, or two for pairs of texts")
        return texts

    def _label_of(self, names: Sequence[str], texts: Sequence[str], source: str, listed: str) -> str:
        if not self.needs_label:
            usual = (name for name in LABEL_COLUMNS if name in names and name not in texts)
            return next(usual, NO_COLUMN) if self.label is None else self.label if self.label in names else NO_COLUMN
        label = self.label or next((name for name in LABEL_COLUMNS if name in names and name not in texts), None)
        if not label and {"question", "context", "answers"} <= set(names):
            raise InputError(
                f"{source} has questions on contexts instead of labeled texts; {listed}; read it with read_questions, or train "
                "on it with duonlp finetune --task question-answering"
            )
        if not label:
            raise _missing_column(source, "label", LABEL_COLUMNS, listed)
        return label


def _missing_column(source: str, kind: str, candidates: Sequence[str], listed: str) -> InputError:
    argument = f"{kind}_column"
    return InputError(
        f"{source} has no column {' or '.join(map(repr, candidates))}; {listed}",
        remedy=f"name the {kind} column with {argument}",
        argument=argument,
    )
