"""Read text, JSON and TOML: whatever files contain, the only errors are those of duonlp (of a parser, ValueError)."""

import codecs
import json
import os
import sys
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from duonlp.errors import CheckpointError, DuonlpError, InputError

MOST_LEVELS = 100
"""Nesting of a file or text; deeper values would exhaust the stack of whatever processes them, even of ``repr``."""

MOST_BYTES = 1 << 28
"""Size of a file that is read as a whole; the index of a model with a million tensors takes a third of it."""


BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
"""What text in other encodings than UTF-8 may begin with; the mark of UTF-32 begins with that of UTF-16."""


def check_encoding(encoding: str | None) -> str | None:
    """Return the canonical name of an encoding; None, for UTF-8 with or without a byte order mark, stays None.

    Raises:
        InputError: Python has no such encoding of text.
    """
    if encoding is None:
        return None
    try:
        codec = codecs.lookup(encoding)
    except (LookupError, TypeError, ValueError):
        codec = None
    if codec is None or not getattr(codec, "_is_text_encoding", True):
        raise InputError(
            f"encoding is {encoding!r}, which is not an encoding of text in Python; give a name such as 'utf-8', 'cp1252', "
            "'latin-1', 'utf-16' or 'gb18030'"
        )
    return "utf-8" if codec.name == "utf-8-sig" else codec.name


def foreign_encoding(start: bytes) -> str | None:
    """Return the encoding that a file begins like, if it is UTF-16 or UTF-32; None otherwise.

    Args:
        start: The first bytes of the file.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return encoding
    start = start[:64]
    if len(start) >= 4:  # ASCII letters without a byte order mark
        for first, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
            if not any(start[first::2]) and all(start[1 - first :: 2]):
                return encoding
    return None


def decode_text(data: bytes, encoding: str | None = None) -> str:
    """Return the text of a file, without a byte order mark.

    Args:
        data: The contents of the file.
        encoding: Their encoding; None for UTF-8.

    Raises:
        ValueError: They are not in this encoding.
    """
    try:
        return data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeError as error:
        raise ValueError(undecodable(data, error, encoding)) from None


def read_text_file(file: str | os.PathLike[str], name: str, remedy: str, encoding: str | None = None) -> str:
    r"""Return the text of a small file, without a byte order mark and with \n line ends.

    Args:
        file: The file; "-" for standard input.
        name: Its name in messages.
        remedy: What to do about a file that cannot be read.
        encoding: Its encoding; None for UTF-8.

    Raises:
        InputError: It cannot be read, or is in another encoding.
    """
    encoding = check_encoding(encoding)
    try:
        if os.fspath(file) != "-":
            data = Path(file).read_bytes()
        elif hasattr(sys.stdin, "buffer"):
            data = sys.stdin.buffer.read()
        else:  # a stand-in without bytes
            return sys.stdin.read().removeprefix("\ufeff")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot read {name}: {why_unreadable(error)}; {remedy}") from None
    try:
        text = decode_text(data, encoding)
    except ValueError as error:
        advice = f"pass its encoding, such as encoding={foreign_encoding(data) or 'cp1252'!r}, or {remedy}"
        raise InputError(f"cannot read {name}: {error}", remedy=advice, argument="encoding") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def undecodable(data: bytes, error: UnicodeError, encoding: str | None = None) -> str:
    """Return why bytes are not text in an encoding (None: UTF-8), from the error of decoding them."""
    if encoding is None and (found := foreign_encoding(data)):
        return f"it is not UTF-8 text, but {found.upper()} text"
    where = f" (byte 0x{data[error.start]:02x} at {error.start})" if isinstance(error, UnicodeDecodeError) else ""
    return f"it is not {(encoding or 'utf-8').upper()} text{where}"


def parse_json(text: str | bytes, *, unique: bool = False) -> Any:
    """Return the value of a JSON text, which may begin with a byte order mark.

    Args:
        text: The text, UTF-8 if bytes.
        unique: Refuse an object with the same key twice, of which Python takes the last.

    Raises:
        ValueError: It is not UTF-8 or JSON, has a number of more than 4300 digits, is nested too deeply, or repeats a key.
    """
    if isinstance(text, bytes):
        text = decode_text(text)
    try:
        value = json.loads(text.removeprefix("\ufeff"), object_pairs_hook=_unique if unique else None)
    except RecursionError:
        raise ValueError(_too_deep()) from None
    return _shallow(value)


def parse_toml(text: str | bytes) -> dict[str, Any]:
    """Return the tables of a TOML text, which may begin with a byte order mark.

    Raises:
        ValueError: It is not UTF-8 or TOML, has a number of more than 4300 digits, or is nested too deeply.
    """
    text = decode_text(text) if isinstance(text, bytes) else text
    try:
        return _shallow(tomllib.loads(text.removeprefix("\ufeff")))
    except RecursionError:
        raise ValueError(_too_deep()) from None


def read_json(
    file: str | os.PathLike[str], *, error: type[DuonlpError] = InputError, advice: str = "fix it or write it again"
) -> Any:
    """Return the contents of a JSON file.

    Args:
        file: The file.
        error: Class of the error.
        advice: What to do about a file that cannot be read, for the error message.

    Raises:
        DuonlpError: Of the class `error`: the file cannot be read, or :func:`parse_json` refuses it.
    """
    return _read(file, lambda data: parse_json(data, unique=True), "JSON", error, advice)


def read_json_object(
    file: str | os.PathLike[str], *, error: type[DuonlpError] = InputError, advice: str = "fix it or write it again"
) -> dict[str, Any]:
    """Return the contents of a JSON file that holds an object; see :func:`read_json`.

    Raises:
        DuonlpError: Also if the file holds something else.
    """
    return _object(read_json(file, error=error, advice=advice), str(file), error, advice)


def parse_json_object(data: bytes, file: str, *, error: type[DuonlpError], advice: str) -> dict[str, Any]:
    """Return the object in the contents of an open JSON file; see :func:`read_json_object`.

    Raises:
        DuonlpError: Of the class `error`.
    """
    return _object(
        _parse(data, lambda data: parse_json(data, unique=True), file, "JSON", error, advice), file, error, advice
    )


def read_toml(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the tables of a TOML file.

    Raises:
        InputError: The file cannot be read or is not valid TOML.
    """
    return _read(Path(file).expanduser(), parse_toml, "TOML", InputError, "give a TOML file of settings")


def is_unicode(text: str) -> bool:
    """Return whether a text has no unpaired surrogates, which neither files nor tokenizers take."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def why_unreadable(error: Exception) -> str:
    """Return why a file could not be read as text, from the error of the attempt."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8 text"
    return getattr(error, "strerror", None) or first_line(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message (its type if empty), at most 300 characters."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _read(
    file: str | os.PathLike[str], parse: Callable[[bytes], Any], kind: str, error: type[DuonlpError], advice: str
) -> Any:
    name = str(file) if issubclass(error, CheckpointError) else repr(str(file))
    try:
        with open(file, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as problem:  # ValueError: a NUL in the name
        raise error(f"cannot read {name}: {why_unreadable(problem)}; {advice}") from None
    return _parse(data, parse, name, kind, error, advice)


def _parse(
    data: bytes, parse: Callable[[bytes], Any], name: str, kind: str, error: type[DuonlpError], advice: str
) -> Any:
    if len(data) > MOST_BYTES:
        raise error(f"{name} is not valid {kind}: it has more than {MOST_BYTES >> 20} MiB; {advice}")
    try:
        return parse(data)
    except ValueError as problem:
        raise error(f"{name} is not valid {kind}: {first_line(problem)}; {advice}") from None


def _object(value: Any, file: str, error: type[DuonlpError], advice: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise error(f"{file!r} holds a {type(value).__name__}; expected a JSON object, so {advice}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        repeated = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {repeated[:60]!r} twice")
    return values


def _shallow(value: Any) -> Any:
    """Return a value; raise ValueError if it is nested more than MOST_LEVELS deep."""
    level = [value]
    for _ in range(MOST_LEVELS):
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, (dict, list))
        ] if level and isinstance(level[0], (dict, list)) else []  # fmt: skip
        if not level:
            return value
    raise ValueError(_too_deep())


def _too_deep() -> str:
    return f"it is nested more than {MOST_LEVELS} levels deep"
