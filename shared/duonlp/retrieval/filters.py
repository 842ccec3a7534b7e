"""Haystack's filter language, evaluated on columns of all documents at once.

A filter is a comparison, ``{"field": "meta.year", "operator": ">=", "value": 2020}``, or combines others,
``{"operator": "AND", "conditions": [...]}``. The meaning is that of Haystack's InMemoryDocumentStore: a missing field equals
None; None is neither greater nor less than anything; strings are ordered only if they are dates, and dates are equal if they are
the same moment, where a date without a time zone has that of the other. ``x`` is short for ``meta.x``, except for the fields of a
document (``id``, ``content``, ...).

Every distinct value of a field is compared once; the columns are kept for the next filter.
"""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.retrieval.document import Document, Filters
from duonlp.util.suggestions import choice, nearest

ATTRIBUTES = ("id", "content", "meta", "score", "embedding", "blob", "sparse_embedding")
"""Fields of Haystack's documents; the last two are None in ours."""

ORDERINGS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
COMPARISONS = ("==", "!=", *ORDERINGS, "in", "not in")
LOGIC = ("AND", "OR", "NOT")

FALSE, TRUE, INVALID = 0, 1, 2
"""Outcomes of a condition for a document; INVALID (not comparable) is an error, unless an earlier condition decides."""

BASIC = (str, int, float, bool, type(None))
"""Types whose equal values have equal hashes and nothing else that a filter sees."""

LARGEST_EXACT = 2**53
"""Integers up to this size are exact in float64."""

MISSING = object()


class UnknownFieldWarning(UserWarning):
    """A filter names a field that no document of the store has."""


class Column:
    """The values of one field: distinct ones, and which of them each document has.

    Attributes:
        values: The distinct values; those of other types than BASIC once per document.
        codes: int32 [documents], index of each document's value.
        exists: Whether any document has the field.
    """

    def __init__(self, values: Sequence[Any]):
        self.exists = False
        self.values: list[Any] = []
        self.index: dict[Any, int] = {}
        codes = []
        for value in values:
            if value is MISSING:
                value = None
            else:
                self.exists = True
            if type(value) in BASIC and value == value:  # not NaN
                code = self.index.setdefault(value, len(self.values))
            else:
                code = len(self.values)
            if code == len(self.values):
                self.values.append(value)
            codes.append(code)
        self.codes = np.array(codes, np.int32)

    @cached_property
    def others(self) -> list[int]:
        """Indices of the values that are not in the index."""
        indexed = set(self.index.values())
        return [i for i in range(len(self.values)) if i not in indexed]

    @cached_property
    def dates(self) -> list[tuple[int, datetime]]:
        """The values that are dates, with their indices."""
        pairs = ((i, _iso_date(value)) for i, value in enumerate(self.values))
        return [(i, date) for i, date in pairs if date is not None]

    @cached_property
    def numbers(self) -> np.ndarray:
        """The values as float64, NaN for those that are not numbers that float64 holds exactly."""
        return np.array([float(v) if _is_exact_number(v) else np.nan for v in self.values], np.float64)

    @cached_property
    def incomparable(self) -> list[int]:
        """Indices of the values that :attr:`numbers` leaves out, without None."""
        return [i for i in np.flatnonzero(np.isnan(self.numbers)).tolist() if self.values[i] is not None]

    def equal_to(self, value: Any) -> list[int]:
        """Return the indices of the values that equal a filter's."""
        if type(value) in BASIC:
            equal = [self.index[value]] if value == value and value in self.index else []
            equal += [i for i in self.others if _same(self.values[i], value)]
        else:
            equal = [i for i, other in enumerate(self.values) if _same(other, value)]
        date = _iso_date(value)
        if date is not None:
            equal += [i for i, other in self.dates if operator.eq(*_same_zone(other, date))]
        return equal


class Columns:
    """The columns of a list of documents, made when a filter first asks for them."""

    def __init__(self, documents: Sequence[Document]):
        self.documents = documents
        self._columns: dict[str, Column] = {}

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, field: str) -> Column:
        column = self._columns.get(field)
        if column is None:
            getter = _getter(field)
            column = self._columns[field] = Column([getter(document) for document in self.documents])
        if not column.exists and self.documents:
            names = dict.fromkeys(f"meta.{key}" for document in self.documents for key in document.meta)
            wanted = field if field.startswith("meta.") else f"meta.{field}"
            known = ", ".join(list(names)[:10]) + (" ..." if len(names) > 10 else "")
            warnings.warn(
                f"the filter's field {field!r} is in none of the {len(self.documents)} documents, which have "
                f"{known or 'no meta'}{nearest(wanted, names)}",
                UnknownFieldWarning,
                stacklevel=2,
            )
        return column


class Filter:
    """A filter that has been checked, ready to be evaluated.

    Args:
        filters: The filter; None or an empty dict matches every document.

    Raises:
        InputError: It is malformed.
    """

    def __init__(self, filters: Filters | None):
        if filters is not None and not isinstance(filters, Mapping):
            raise InputError(f"a filter is {filters!r}; expected a dict with 'field' or 'conditions'")
        self.condition = _compile(filters) if filters else None

    def mask(self, columns: Columns) -> np.ndarray | None:
        """Return which documents match, bool [documents]; None for a filter that matches every document.

        Raises:
            InputError: A document's value cannot be compared with the filter's.
        """
        if self.condition is None:
            return None
        outcomes = self.condition.evaluate(columns)
        invalid = np.flatnonzero(outcomes == INVALID)
        if invalid.size:
            document = columns.documents[invalid[0]]
            raise InputError(f"document {document.id!r} cannot be filtered: {self.condition.explain(document)}")
        return outcomes == TRUE


def matches(filters: Filters | None, document: Document) -> bool:
    """Return whether a document matches a filter; every document matches None.

    Raises:
        InputError: The filter is malformed, or a value cannot be compared.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownFieldWarning)
        mask = Filter(filters).mask(Columns([document]))
    return mask is None or bool(mask[0])


# -- conditions ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Logic:
    operator: str
    conditions: tuple["_Logic | _Comparison", ...]

    def evaluate(self, columns: Columns) -> np.ndarray:
        goes_on = FALSE if self.operator == "OR" else TRUE  # the outcome after which the next condition counts
        outcomes = np.full(len(columns), goes_on, np.int8)
        for condition in self.conditions:
            open_ = outcomes == goes_on
            if not open_.any():
                break
            outcomes = np.where(open_, condition.evaluate(columns), outcomes)
        return np.array([TRUE, FALSE, INVALID], np.int8)[outcomes] if self.operator == "NOT" else outcomes

    def explain(self, document: Document) -> str:
        columns = Columns([document])
        invalid = (c for c in self.conditions if c.evaluate(columns)[0] == INVALID)
        return next(condition.explain(document) for condition in invalid)


@dataclass(frozen=True)
class _Comparison:
    field: str
    operator: str
    value: Any

    def evaluate(self, columns: Columns) -> np.ndarray:
        column = columns[self.field]
        outcomes = np.zeros(len(column.values), np.int8)
        if self.operator in ORDERINGS:
            self._order(column, outcomes)
        else:
            many = self.operator in ("in", "not in")
            for value in self.value if many else (self.value,):
                outcomes[column.equal_to(value)] = TRUE
            if self.operator in ("!=", "not in"):
                outcomes = 1 - outcomes
        return outcomes[column.codes]

    def _order(self, column: Column, outcomes: np.ndarray) -> None:
        if self.value is None:
            return
        compare, rest = ORDERINGS[self.operator], range(len(column.values))
        if _is_exact_number(self.value):
            outcomes[compare(column.numbers, self.value)] = TRUE
            rest = column.incomparable
        for i in rest:
            outcomes[i] = self._order_one(column.values[i])

    def _order_one(self, value: Any) -> int:
        limit = self.value
        if value is None:
            return FALSE
        if isinstance(value, str) or (isinstance(limit, datetime) and not isinstance(value, datetime)):
            value = _any_date(value)
        if isinstance(value, datetime) != isinstance(limit, datetime):
            return INVALID
        try:
            if isinstance(value, datetime):
                value, limit = _same_zone(value, limit)
            return TRUE if ORDERINGS[self.operator](value, limit) else FALSE
        except (TypeError, ValueError):
            return INVALID

    def explain(self, document: Document) -> str:
        value = _getter(self.field)(document)
        return (
            f"{self.field!r} is {value!r}, which cannot be compared with {self.value!r} by {self.operator!r}; compare "
            "numbers with numbers, and dates with ISO 8601 dates"
        )


def _compile(condition: Any) -> "_Logic | _Comparison":
    if not isinstance(condition, Mapping):
        raise InputError(f"a condition of a filter is {condition!r}; expected a dict with 'field' or 'conditions'")
    is_comparison = "field" in condition
    needed = ("operator", "value") if is_comparison else ("operator", "conditions")
    for key in needed:
        if key not in condition:
            form = "field, operator and value" if is_comparison else "operator and conditions"
            raise InputError(f"{key!r} is missing in the condition {dict(condition)!r} of a filter; it needs {form}")
    if not is_comparison:
        name = choice("the logical operator of a filter", condition["operator"], LOGIC)
        conditions = condition["conditions"]
        if isinstance(conditions, (str, Mapping)) or not isinstance(conditions, Sequence):
            raise InputError(f"the conditions of {name} are {conditions!r}; expected a list of conditions")
        try:
            return _Logic(name, tuple(_compile(inner) for inner in conditions))
        except RecursionError:
            raise InputError("a filter is nested too deeply; simplify it") from None
    field, value = condition["field"], condition["value"]
    if not isinstance(field, str):
        raise InputError(f"the field of a filter is {field!r}; expected a name such as 'meta.year'")
    name = choice("the operator of a filter", condition["operator"], COMPARISONS)
    if name in ("in", "not in") and not isinstance(value, list):
        raise InputError(f"the value of {name!r} on {field!r} is {value!r}; expected a list of values")
    if name in ORDERINGS:
        if isinstance(value, list):
            raise InputError(f"the value of {name!r} on {field!r} is a list; expected a number or a date")
        if isinstance(value, str) and (text := value) is not None and (value := _any_date(text)) is None:
            raise InputError(f"the value of {name!r} on {field!r} is {text!r}; expected a number or an ISO 8601 date")
    return _Comparison(field, name, value)


# -- values ----------------------------------------------------------------------------------------------------------------


def _getter(field: str) -> Callable[[Document], Any]:
    """Return a function that returns the value of a field, or MISSING."""
    if "." in field:
        root, *parts = field.split(".")

        def nested(document: Document) -> Any:
            value: Any = document.meta
            for part in parts:
                if not isinstance(value, dict) or part not in value:
                    return MISSING
                value = value[part]
            return value

        return nested if root == "meta" else lambda document: MISSING
    if field == "embedding":
        return lambda document: None if document.embedding is None else document.embedding.tolist()
    if field in ATTRIBUTES:
        return lambda document: getattr(document, field, None)
    return lambda document: document.meta.get(field, MISSING)


def _same(first: Any, second: Any) -> bool:
    try:
        return bool(first == second)
    except (TypeError, ValueError):  # arrays
        return False


def _is_exact_number(value: Any) -> bool:
    if type(value) in (int, bool):
        return abs(value) <= LARGEST_EXACT
    return type(value) is float and value == value


def _iso_date(value: Any) -> datetime | None:
    """Return a datetime, or the one that a string of at least ``YYYY-MM-DD`` states."""
    if isinstance(value, datetime):
        return value
    if not isinstance(value, str) or len(value) < 10 or value[4] != "-" or value[7] != "-":
        return None
    if not (value[:4].isdigit() and value[5:7].isdigit() and value[8:10].isdigit()) or value[10:11] not in "Tt ":
        return None
    try:
        return datetime.fromisoformat(value)
    except ValueError:
        return _by_dateutil("isoparse", value)


def _any_date(value: Any) -> datetime | None:
    """Return the date that a string states in any form that dateutil reads."""
    try:
        return datetime.fromisoformat(value)
    except TypeError:
        return None
    except ValueError:
        return _by_dateutil("parse", value)


def _by_dateutil(function: str, value: str) -> datetime | None:
    """Return the date that dateutil reads in a string; None if there is none, or without dateutil, which Haystack brings."""
    try:
        import dateutil.parser
    except ImportError:
        return None
    try:
        return getattr(dateutil.parser, function)(value)
    except (ValueError, TypeError, OverflowError):
        return None


def _same_zone(first: datetime, second: datetime) -> tuple[datetime, datetime]:
    if first.tzinfo is None and second.tzinfo is not None:
        first = first.replace(tzinfo=second.tzinfo)
    elif second.tzinfo is None and first.tzinfo is not None:
        second = second.replace(tzinfo=first.tzinfo)
    return first, second
