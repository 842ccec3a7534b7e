"""What the labels of a row mean: names, class indices, lists of them, and one name for several spellings of a value."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.util.reading import parse_json

JSON = "json"
"""Separator that stands for fields with a list in JSON."""

JSON_EXAMPLE = '["bug", "docs"]'


def _to_python(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def flags_of(value: Any) -> tuple[float, ...] | None:
    """Return a label that is a list of only 0 and 1 as a tuple; None for any other label."""
    value = _to_python(value)
    if not isinstance(value, (list, tuple)) or len(value) < 2:
        return None
    return tuple(value) if all(isinstance(flag, (int, float)) and flag in (0, 1) for flag in value) else None


def parse_labels(value: Any, names: tuple[str, ...] | None, separator: str | None) -> Any:
    """Return the labels of a row: a name, a class index, or a list of either.

    Args:
        value: The label as read.
        names: Names of the classes that the dataset declares, which turn indices into names; None if there are none.
        separator: Separator of several labels in one text.

    Raises:
        ValueError: They are invalid.
    """
    value = _to_python(value)
    if separator is not None and not isinstance(value, (list, tuple)):
        value = [part for part in value.split(separator) if part.strip()] if isinstance(value, str) else [value]
    if isinstance(value, (list, tuple)):
        return [_parse_label(part, names) for part in value]
    return _parse_label(value, names)


def parse_json_list(value: Any) -> Any:
    """Return the list in a field of a table that holds JSON, such as '["bug", "docs"]'; an empty field is an empty list.

    Raises:
        ValueError: The field holds anything else.
    """
    if not isinstance(value, str):
        return value
    try:
        labels = parse_json(value) if value.strip() else []
    except ValueError:
        labels = None
    if not isinstance(labels, list):
        raise ValueError(f"its label {value!r} is not a list in JSON, such as {JSON_EXAMPLE}")
    return labels


def _parse_label(value: Any, names: tuple[str, ...] | None) -> str | int:
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):  # a GitHub label
        value = value["name"]
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():  # an integer column with missing values is read as floats
        value = int(value)
    if isinstance(value, int):
        if names is None:
            return value
        if not 0 <= value < len(names):
            raise ValueError(f"its label is {value}, but the dataset has the classes 0 to {len(names) - 1}")
        return names[value]
    if value is None or value != value or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"its label is {value!r}")
    if not isinstance(value, str):
        raise ValueError(f"its label is {value!r}, a {type(value).__name__}; labels are names or integers")
    return value.strip()


def as_list(labels: Any) -> list[Any]:
    """Return the labels of a row, one or several, as a list."""
    return labels if isinstance(labels, list) else [labels]


_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d{0,17})(?:\.0*)?", re.ASCII)
_TRUTH = ("false", "true")


def meaning_of(label: str | int) -> str | int:
    """Return what a label's spellings have in common: the number of "1", "1.0" and 1; "true" for "True"; else the label."""
    if isinstance(label, int):
        return label
    if _WHOLE.fullmatch(label):
        return int(label.partition(".")[0])
    return label.lower() if label.lower() in _TRUTH else label


def _number(text: str) -> float | None:
    """Return the number that a text is, in any spelling; None for other texts."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def collect_names(labels: Iterable[str | int], source: str) -> tuple[str, ...]:
    """Return the sorted names of the classes of these labels, in numerical order if all are integers.

    Spellings of the same number or truth value are one class. Where all labels are whole numbers, they are named as integers.

    Args:
        labels: Labels as :func:`parse_labels` returns them.
        source: Name of the table, for messages.

    Raises:
        InputError: The labels are truth values and the numbers 0 and 1, or numbers such as 1 and 01, which may mean the same.
    """
    spellings: dict[str | int, set[str]] = {}
    for label in set(labels):
        spellings.setdefault(meaning_of(label), set()).add(str(label))
    numbers = [meaning for meaning in spellings if isinstance(meaning, int)]
    if numbers and set(spellings) - set(numbers) and set(spellings) <= {0, 1, *_TRUTH}:
        raise InputError(
            f"{source}: the labels {', '.join(sorted(map(str, spellings)))} mix truth values with numbers; use one of the two"
        )
    values: dict[float, str] = {}
    for text in map(str, spellings):
        value = _number(text)
        if value is not None and values.setdefault(value, text) != text:
            raise InputError(
                f"{source}: the labels {values[value]!r} and {text!r} are the same number; write it in one way, or pass "
                "label_names if they are two classes"
            )
    if len(numbers) == len(spellings):
        return tuple(map(str, sorted(numbers)))
    names = {str(meaning) if len(known) > 1 else next(iter(known)) for meaning, known in spellings.items()}
    return tuple(sorted(names))


def label_lookup(names: tuple[str, ...]) -> dict[str | int, int]:
    """Return the class index of each name, and of each number or truth value that only one name spells or that is an index."""
    # "3" is a class name among "1" to "5", but the index of the fourth class among ("anger", "fear", "joy", "love").
    numbers: dict[str | int, int] = {}
    if not any(isinstance(meaning_of(name), int) for name in names):
        numbers = {number: number for number in range(len(names))}
    meanings = [meaning_of(name) for name in names]
    numbers |= {meaning: index for index, meaning in enumerate(meanings) if meanings.count(meaning) == 1}
    return numbers | {name: index for index, name in enumerate(names)}
