"""Settings as TOML: dataclasses from tables, with every key and every kind of value checked, and back to a file.

A setting is named by its path: ``fit.learning_rate`` is ``learning_rate`` of the dataclass that is the field ``fit``. TOML
has no null: "none" is written for one, and read as one wherever a setting may be None and is no text.
"""

import json
import math
import os
import tomllib
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from duonlp.errors import InputError
from duonlp.training.settings import Settings
from duonlp.util.files import write_text
from duonlp.util.suggestions import unknown_setting

T = TypeVar("T")
NONE = "none"

KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    Path: "a path",
    tuple: "a list",
    list: "a list",
    dict: "a table",
}


def read_toml(file: str | os.PathLike) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        InputError: it cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(Path(file).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read {str(file)!r}: {why}; give a TOML file of settings") from None
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{str(file)!r} is no valid TOML: {error}; mend that line") from None


def build(cls: type[T], settings: Mapping[str, Any], what: str = "a run", path: str = "") -> T:
    """A dataclass from a mapping, its fields that are dataclasses from the mappings in it; what these leave out is as in the
    field's default. A member that reads mappings in a way of its own, by a classmethod ``of``, does so.

    Args:
        cls: a dataclass.
        settings: values by name, as TOML and JSON have them: lists become tuples, whole numbers floats, texts paths.
        what: the settings are of, for messages.
        path: of this dataclass in a larger one, for messages.

    Raises:
        InputError: a key that is no setting (the nearest one is named), a value of the wrong kind, a setting that is missing,
            or a value that the dataclass itself does not allow.
    """
    hints, known = get_type_hints(cls), [f.name for f in fields(cls) if f.init]
    defaults = {f.name: f.default_factory() for f in fields(cls) if f.default_factory is not MISSING}
    values = {}
    for key, value in settings.items():
        full = f"{path}{key}"
        if key not in known:
            inner = _path_below(key, hints)
            raise InputError(
                f"{full!r} is no setting of {what}; it is in a table: {path}{inner}"
                if inner
                else unknown_setting(full, [path + name for name in known], what)
            )
        values[key] = _converted(value, hints[key], full, what, defaults.get(key))
    missing = [
        path + f.name
        for f in fields(cls)
        if f.init and f.default is MISSING and f.default_factory is MISSING and f.name not in values
    ]
    if missing:
        raise InputError(
            f"{what} lacks {', '.join(missing)}; give {'it as a flag' if len(missing) == 1 else 'them as flags'}, or in the "
            "TOML file"
        )
    try:
        return cls(**values)
    except InputError as error:
        raise InputError(f"{path.rstrip('.')}: {error}" if path else str(error)) from error


def _path_below(key: str, hints: Mapping[str, Any]) -> str | None:
    """The path of the first setting of that name in a field that is a dataclass itself: "fit.epochs" of "epochs"."""
    inner = (f"{name}.{each.name}" for name, kind in hints.items() if is_dataclass(kind) for each in fields(kind))
    return next((path for path in inner if path.rpartition(".")[2] == key.replace("-", "_")), None)


def set_path(settings: dict[str, Any], path: str, value: Any) -> None:
    """Sets a value by its path in nested dicts, in place.

    Raises:
        InputError: on the way there is something that has no settings of its own.
    """
    *parents, last = path.split(".")
    for name in parents:
        inner = settings.setdefault(name, {})
        if not isinstance(inner, dict):
            raise InputError(f"{path!r}: {name} is {inner!r} and has no settings of its own")
        settings = inner
    settings[last] = value


def replaced(settings: T, values: Mapping[str, Any], what: str = "a run") -> T:
    """The settings with others in their places.

    Args:
        values: by path, such as {"fit.learning_rate": 1e-4, "distillation.alpha": 0.3}.

    Raises:
        InputError: as of :func:`build`.
    """
    table = as_table(settings)
    for path, value in values.items():
        set_path(table, path, value)
    return build(type(settings), table, what)


def as_table(settings: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of what TOML and JSON have; :func:`build` reads it."""
    table = {}
    for each in fields(settings):
        if not each.init:
            continue
        value = getattr(settings, each.name)
        if is_dataclass(value):
            value = _plain(value.to_dict()) if _reads_itself(type(value)) else as_table(value)
        table[each.name] = _plain(value)
    return table


def to_toml(settings: Any, heading: str = "") -> str:
    """A dataclass as the text of a TOML file that :func:`build` makes the same dataclass of.

    Args:
        heading: comments before it, without their #.
    """
    lines = [f"# {line}".rstrip() for line in heading.splitlines()] + ([""] if heading else [])
    _write_table(lines, _without_idle(as_table(settings), settings), "")
    return "\n".join(lines).strip("\n") + "\n"


def write_toml(file: str | os.PathLike, settings: Any, heading: str = "") -> None:
    """Writes :func:`to_toml` to a temporary name and renames that."""
    write_text(file, to_toml(settings, heading))


def _reads_itself(cls) -> bool:
    own = getattr(cls, "of", None)
    return own is not None and own.__func__ is not Settings.of.__func__


def _converted(value: Any, hint: Any, path: str, what: str, default: Any = None) -> Any:
    """A value of TOML or JSON as the kind that a field is declared to be; what a table leaves out is the default's."""
    choices = list(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else [hint]
    if Any in choices:
        return value
    if value is None or (value == NONE and str not in choices and isinstance(value, str)):
        if type(None) in choices:
            return None
        raise InputError(f"{path} is none; it must be {_kinds(choices)}")
    for kind in choices:
        if is_dataclass(kind) and isinstance(value, kind):
            return value
        if is_dataclass(kind) and isinstance(value, Mapping):
            if not _reads_itself(kind):
                base = as_table(default) if isinstance(default, kind) else {}
                return build(kind, {**base, **value}, what, f"{path}.")
            try:
                return kind.of(value)
            except InputError as error:
                raise InputError(f"{path}: {error}") from error
        origin = get_origin(kind) or kind
        if origin in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
            inner = [each for each in get_args(kind) if each is not Ellipsis]
            alike = inner * len(value) if len(inner) == 1 else inner
            if alike and len(alike) != len(value):
                raise InputError(f"{path} has {len(value)} values; it must have {len(alike)}")
            made = [_converted(each, one, path, what) for each, one in zip(value, alike or [Any] * len(value))]
            return made if origin is list else tuple(made)
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
    raise InputError(f"{path} is {value!r}; it must be {_kinds(choices)}")


def _kinds(choices: Sequence[Any]) -> str:
    names = []
    for kind in choices:
        origin = get_origin(kind) or kind
        if kind is not type(None):
            names.append(KINDS.get(origin, "a table" if is_dataclass(kind) else getattr(origin, "__name__", str(kind))))
    return " or ".join(dict.fromkeys([*names, *(["none"] if type(None) in choices else [])]))


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        value = value.to_dict() if hasattr(value, "to_dict") else asdict(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def _without_idle(table: dict[str, Any], settings: Any) -> dict[str, Any]:
    """Without what is None by default; another None is said."""
    kept = {}
    for each in fields(settings):
        value = table.get(each.name)
        if isinstance(value, dict) and is_dataclass(getattr(settings, each.name)):
            inner = getattr(settings, each.name)
            value = _dense(value) if _reads_itself(type(inner)) else _without_idle(value, inner)
        if value is not None:
            kept[each.name] = value
        elif each.init and each.default is not None:
            kept[each.name] = NONE
    return kept


def _dense(value: Any) -> Any:
    """Tables without their Nones."""
    if isinstance(value, dict):
        return {key: _dense(each) for key, each in value.items() if each is not None}
    return [_dense(each) for each in value] if isinstance(value, list) else value


def _write_table(lines: list[str], table: Mapping[str, Any], path: str) -> None:
    later = []
    for key, value in table.items():
        if isinstance(value, Mapping) or (
            isinstance(value, list) and value and all(isinstance(v, dict) for v in value)
        ):
            later.append((key, value))
        else:
            lines.append(f"{_key(key)} = {_value(value)}")
    for key, value in later:
        name = f"{path}{_key(key)}"
        for each in [value] if isinstance(value, Mapping) else value:
            lines += ["", f"[{name}]" if isinstance(value, Mapping) else f"[[{name}]]"]
            _write_table(lines, each, f"{name}.")


def _key(key: str) -> str:
    return key if key.isascii() and key.replace("-", "_").isidentifier() else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ("nan" if math.isnan(value) else "-inf"[value > 0 :])
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_value(each) for each in value) + "]"
    raise InputError(f"a {type(value).__name__} cannot be written as TOML; use numbers, texts, lists and tables")
