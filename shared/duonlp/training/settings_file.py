"""Read dataclasses from TOML tables with every key and value type checked, and write them back.

A setting is named by its path: ``fit.learning_rate`` is ``learning_rate`` of the dataclass in the field ``fit``. TOML has no
null, so None is written as "none", and "none" is read as None wherever a setting may be None but not a string.
"""

import json
import math
import os
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from duonlp.errors import InputError
from duonlp.training.settings import Settings
from duonlp.util.files import write_text
from duonlp.util.reading import read_toml as read_toml
from duonlp.util.suggestions import unknown_setting

T = TypeVar("T")
NONE = "none"

TYPE_NAMES = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
    tuple: "a list",
    list: "a list",
    dict: "a table",
}


def build(cls: type[T], settings: Mapping[str, Any], what: str = "a run", path: str = "") -> T:
    """Build a dataclass, including nested dataclasses, from a mapping.

    What a nested table leaves out is taken from the default of its field. A member class with a classmethod ``of`` of its own
    is built by that instead.

    Args:
        cls: A dataclass.
        settings: Values by name, as TOML and JSON represent them: lists become tuples, integers floats and strings paths
            where the field says so.
        what: What is being configured, for error messages.
        path: Path of this dataclass in a larger one, for error messages.

    Raises:
        InputError: A key is not a setting (the message names the nearest), a value has the wrong type, a setting is missing,
            or the dataclass itself rejects a value.
    """
    hints = get_type_hints(cls)
    all_fields = fields(cast(Any, cls))
    names = [f.name for f in all_fields if f.init]
    defaults = {f.name: f.default_factory() for f in all_fields if f.default_factory is not MISSING}
    values = {}
    for key, value in settings.items():
        full = f"{path}{key}"
        if key not in names:
            inner = _nested_path(key, hints)
            raise InputError(
                f"{full!r} is not a setting of {what}; it belongs to a table: {path}{inner}"
                if inner
                else unknown_setting(full, [path + name for name in names], what)
            )
        values[key] = _convert(value, hints[key], full, what, defaults.get(key))
    missing = [
        path + f.name
        for f in all_fields
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if missing:
        raise InputError(
            f"{what} lacks {', '.join(missing)}; give {'it as a flag' if len(missing) == 1 else 'them as flags'} or in the "
            "TOML file"
        )
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{path.rstrip('.')}: {error}" if path else str(error)) from error


def _nested_path(key: str, hints: Mapping[str, Any]) -> str | None:
    """Return the path of the first setting of that name in a dataclass field: "fit.epochs" for "epochs"."""
    paths = (f"{name}.{f.name}" for name, hint in hints.items() if is_dataclass(hint) for f in fields(hint))
    return next((path for path in paths if path.rpartition(".")[2] == key.replace("-", "_")), None)


def set_path(settings: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a path of nested dicts, in place.

    Raises:
        InputError: Part of the path is not a table.
    """
    *parents, last = path.split(".")
    for name in parents:
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"cannot set {path!r}: {name} is {inner!r}, which has no settings of its own")
        settings = inner
    settings[last] = value


def replace_settings(settings: T, values: Mapping[str, Any], what: str = "a run") -> T:
    """Return a copy of the settings with some values replaced.

    Args:
        settings: A dataclass.
        values: New values by path, such as {"fit.learning_rate": 1e-4, "distillation.alpha": 0.3}.
        what: What is being configured, for error messages.

    Raises:
        InputError: As for :func:`build`.
    """
    table = as_table(settings)
    for path, value in values.items():
        set_path(table, path, value)
    return build(type(settings), table, what)


def as_table(settings: Any) -> dict[str, Any]:
    """Return a dataclass as nested dicts of TOML and JSON values, for :func:`build`."""
    table = {}
    for f in fields(settings):
        if not f.init:
            continue
        value = getattr(settings, f.name)
        if is_dataclass(value):
            value = _to_plain(cast(Any, value).to_dict()) if _has_own_reader(type(value)) else as_table(value)
        table[f.name] = _to_plain(value)
    return table


def to_toml(settings: Any, heading: str = "") -> str:
    """Return a dataclass as the text of a TOML file that :func:`build` turns back into an equal one.

    Args:
        settings: A dataclass.
        heading: Comment lines at the top, without their #.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()] + ([""] if heading else [])
    _write_table(lines, _without_default_nones(as_table(settings), settings), "")
    return "\n".join(lines).strip("\n") + "\n"


def write_toml(file: str | os.PathLike, settings: Any, heading: str = "") -> None:
    """Write the result of :func:`to_toml` atomically."""
    write_text(file, to_toml(settings, heading))


def _has_own_reader(cls: Any) -> bool:
    """Return whether a class defines its own ``of`` rather than inheriting that of Settings."""
    reader = getattr(cls, "of", None)
    return reader is not None and reader.__func__ is not Settings.of.__func__


def _convert(value: Any, hint: Any, path: str, what: str, default: Any = None) -> Any:
    """Return a TOML or JSON value as the type a field declares; what a table leaves out is taken from `default`."""
    choices = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    if Any in choices:
        return value
    if value is None or (value == NONE and str not in choices and isinstance(value, str)):
        if type(None) in choices:
            return None
        raise InputError(f"{path} is none; it must be {_describe_types(choices)}")
    for choice in choices:
        if is_dataclass(choice) and isinstance(value, cast(type, choice)):
            return value
        if is_dataclass(choice) and isinstance(value, Mapping):
            if not _has_own_reader(choice):
                base = as_table(default) if isinstance(default, cast(type, choice)) else {}
                return build(cast(type, choice), {**base, **value}, what, f"{path}.")
            try:
                return cast(Any, choice).of(value)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        origin = get_origin(choice) or choice
        if origin in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
            item_hints = [arg for arg in get_args(choice) if arg is not Ellipsis]
            item_hints = item_hints * len(value) if len(item_hints) == 1 else item_hints
            if item_hints and len(item_hints) != len(value):
                raise InputError(f"{path} has {len(value)} values; it must have {len(item_hints)}")
            items = [
                _convert(item, item_hint, path, what)
                for item, item_hint in zip(value, item_hints or [Any] * len(value))
            ]
            return items if origin is list else tuple(items)
        if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
            return dict(value)
        if isinstance(value, origin) and not (isinstance(value, bool) and origin is not bool):
            return value
    if isinstance(value, int) and not isinstance(value, bool) and float in choices:
        return float(value)
    if isinstance(value, float) and value.is_integer() and int in choices:
        return int(value)
    if isinstance(value, str) and Path in choices:
        return Path(value)
    raise InputError(f"{path} is {value!r}; it must be {_describe_types(choices)}")


def _describe_types(choices: Sequence[Any]) -> str:
    """Return the types as a phrase: "an integer or none"."""
    names = []
    for choice in choices:
        origin = get_origin(choice) or choice
        if choice is not type(None):
            other = "a table" if is_dataclass(choice) else getattr(origin, "__name__", str(choice))
            names.append(TYPE_NAMES.get(origin, other))
    return " or ".join(dict.fromkeys([*names, *(["none"] if type(None) in choices else [])]))


def _to_plain(value: Any) -> Any:
    """Return a value with dataclasses as dicts, tuples as lists and paths as strings."""
    if is_dataclass(value) and not isinstance(value, type):
        value = cast(Any, value).to_dict() if hasattr(value, "to_dict") else asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _without_default_nones(table: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Drop what is None by default, and spell other Nones as "none"."""
    result = {}
    for f in fields(settings):
        value = table.get(f.name)
        if isinstance(value, dict) and is_dataclass(getattr(settings, f.name)):
            inner = getattr(settings, f.name)
            value = without_nones(value) if _has_own_reader(type(inner)) else _without_default_nones(value, inner)
        if value is not None:
            result[f.name] = value
        elif f.init and f.default is not None:
            result[f.name] = NONE
    return result


def without_nones(value: Any) -> Any:
    """Return nested tables and lists with the keys whose value is None dropped, and tuples as lists."""
    if isinstance(value, Mapping):
        return {key: without_nones(item) for key, item in value.items() if item is not None}
    return [without_nones(item) for item in value] if isinstance(value, (list, tuple)) else value


def _write_table(lines: list[str], table: Mapping[str, Any], path: str) -> None:
    """Append the lines of a table: first its plain values, then its subtables and arrays of tables."""
    subtables = []
    for key, value in table.items():
        is_table_array = isinstance(value, list) and value and all(isinstance(item, dict) for item in value)
        if isinstance(value, Mapping) or is_table_array:
            subtables.append((key, value))
        else:
            lines.append(f"{_format_key(key)} = {_format_value(value)}")
    for key, value in subtables:
        name = f"{path}{_format_key(key)}"
        for subtable in [value] if isinstance(value, Mapping) else value:
            lines += ["", f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"]
            _write_table(lines, subtable, f"{name}.")


def _format_key(key: str) -> str:
    return key if key.isascii() and key.replace("-", "_").isidentifier() else _format_value(key)


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("nan" if math.isnan(value) else "-inf"[value > 0 :])
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_format_key(key)} = {_format_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_format_value(item) for item in value) + "]"
    raise InputError(
        f"a {type(value).__name__} cannot be written as TOML; use numbers, strings, booleans, lists and tables"
    )
