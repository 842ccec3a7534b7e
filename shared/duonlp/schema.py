"""Kinds and bounds of the values that files hold, checked before anything is computed or allocated from them.

    SCHEMA = {"hidden_size": WIDTH, "dropout": RATE | None, "image_size": WIDTH | list_of(WIDTH, 2, 2)}
    check("config.json", values, SCHEMA)

Bounds are generous: they keep a damaged or hostile file from exhausting the memory or the stack, not a person from building a
large model.
"""

import math
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from duonlp.errors import ConfigError, DuonlpError
from duonlp.util.reading import is_unicode


@dataclass(frozen=True)
class Fault:
    """A value that is not of its kind.

    Attributes:
        path: Its path in what was checked: "" or a suffix such as "[2]".
        value: The value.
        expected: What it must be, as a phrase.
    """

    path: str
    value: Any
    expected: str


@dataclass(frozen=True)
class Kind:
    """A kind of values. ``kind | other`` accepts both, and ``kind | None`` accepts null.

    Attributes:
        expected: The kind as a phrase, such as "an integer from 1 to 10,000".
        fault: Return what is wrong with a value, or None.
    """

    expected: str
    fault: Callable[[Any], Fault | None]

    def __or__(self, other: "Kind | None") -> "Kind":
        other = NULL if other is None else other
        expected = f"{self.expected} or {other.expected}"

        def fault(value: Any) -> Fault | None:
            faults = [self.fault(value), other.fault(value)]
            if None in faults:
                return None
            inner = next((fault for fault in faults if fault is not None and fault.path), None)
            return inner or Fault("", value, expected)

        return Kind(expected, fault)


def check(
    where: str, values: Mapping[str, Any], schema: Mapping[str, Kind], error: type[DuonlpError] = ConfigError
) -> None:
    """Raise an error unless every value with a kind is of it; keys that the schema lacks are not checked.

    Args:
        where: File, for the error message.
        values: The values by key.
        schema: Their kinds by key.
        error: Class of the error.
    """
    for key, kind in schema.items():
        fault = kind.fault(values[key]) if key in values else None
        if fault is not None:
            raise error(f"{where}: {key}{fault.path} is {shorten(fault.value)}; it must be {fault.expected}")


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_REPR.maxlevel = 3


def shorten(value: Any) -> str:
    """Return the repr of any value on one line of at most about 200 characters."""
    try:
        text = _REPR.repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits; a value nested too deeply
        return f"a {type(value).__name__} that is too long to print"
    return text if len(text) <= 200 else f"{text[:197]}..."


def simple(expected: str, accepts: Callable[[Any], bool]) -> Kind:
    """Return the kind of the values that a predicate accepts."""
    return Kind(expected, lambda value: None if accepts(value) else Fault("", value, expected))


def integer(low: int, high: int) -> Kind:
    """Return the kind of integers in a closed range; true and false are none."""

    def accepts(value: Any) -> bool:
        return isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high

    return simple(f"an integer from {low:,} to {high:,}", accepts)


def number(low: float, high: float, above: bool = False) -> Kind:
    """Return the kind of finite numbers in a closed range, or with `above` of those above its lower end."""

    def accepts(value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        plain = value if isinstance(value, int) else float(value)  # a large integer would overflow
        return low <= plain <= high and math.isfinite(plain) and not (above and plain == low)

    start = f"above {low:g}, at most" if above else f"from {low:g} to"
    return simple(f"a number {start} {high:g}", accepts)


def text(longest: int = 1000) -> Kind:
    """Return the kind of valid Unicode texts of limited length."""
    return simple(f"a text of at most {longest:,} characters", lambda value: _is_text(value, longest))


def _is_text(value: Any, longest: int) -> bool:
    if not isinstance(value, str) or len(value) > longest:
        return False
    return is_unicode(value)


def choice(*names: str) -> Kind:
    """Return the kind of one of several texts."""
    return simple(f"one of {', '.join(names)}", lambda value: isinstance(value, str) and value in names)


def list_of(kind: Kind, shortest: int = 0, longest: int = 1 << 20) -> Kind:
    """Return the kind of lists (or tuples) of a limited number of values of one kind."""
    count = f"{longest}" if shortest == longest else f"{shortest:,} to {longest:,}"
    expected = f"a list of {count} values, each {kind.expected}"

    def fault(value: Any) -> Fault | None:
        if not isinstance(value, (list, tuple)) or not shortest <= len(value) <= longest:
            return Fault("", value, expected)
        faults = ((i, kind.fault(item)) for i, item in enumerate(value))
        return next((Fault(f"[{i}]{f.path}", f.value, f.expected) for i, f in faults if f is not None), None)

    return Kind(expected, fault)


def mapping_of(
    kind: Kind,
    keys: Callable[[Any], bool] = lambda key: isinstance(key, str),
    keys_are: str = "texts",
    longest: int = 1 << 20,
) -> Kind:
    """Return the kind of objects whose values are all of one kind and whose keys a predicate accepts."""
    expected = f"an object of at most {longest:,} values whose keys are {keys_are}"

    def fault(value: Any) -> Fault | None:
        if not isinstance(value, Mapping) or len(value) > longest:
            return Fault("", value, expected)
        for key, item in value.items():
            if not keys(key):
                return Fault("", {key: item}, expected)
            inner = kind.fault(item)
            if inner is not None:
                return Fault(f"[{shorten(key)}]{inner.path}", inner.value, inner.expected)
        return None

    return Kind(expected, fault)


def table(schema: Mapping[str, Kind]) -> Kind:
    """Return the kind of objects some of whose keys have kinds of their own."""

    def fault(value: Any) -> Fault | None:
        if not isinstance(value, Mapping):
            return Fault("", value, "an object")
        faults = ((key, kind.fault(value[key])) for key, kind in schema.items() if key in value)
        return next((Fault(f"[{key!r}]{f.path}", f.value, f.expected) for key, f in faults if f is not None), None)

    return Kind("an object", fault)


NULL = simple("null", lambda value: value is None)
ANY = simple("anything", lambda value: True)
BOOL = simple("true or false", lambda value: isinstance(value, bool))
TEXT = text()

MOST_LAYERS = 10_000
MOST_LABELS = 1 << 20

LAYERS = integer(1, MOST_LAYERS)
HEADS = integer(1, 1 << 16)
WIDTH = integer(1, 1 << 20)
VOCABULARY = integer(1, 1 << 26)
POSITIONS = integer(1, 1 << 30)
LABELS = integer(0, MOST_LABELS)
RATE = number(0, 1)
EPSILON = number(0, 1)
SCALE = number(0, 1e6)
ACTIVATION = TEXT | None
TOKEN = integer(0, (1 << 31) - 1)
PADDING = integer(-1, (1 << 31) - 1)
"""An id of padding; -1 stands for none in early Llama checkpoints."""


def is_class_id(key: Any) -> bool:
    """Return whether a key of id2label is the number of a class, or its digits."""
    if isinstance(key, Integral):
        return not isinstance(key, bool)
    return isinstance(key, str) and key.isascii() and key.isdigit() and len(key) <= 9
