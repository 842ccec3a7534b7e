"""Read and write metrics.jsonl: the records of a run, one JSON object per line, in the order of its steps."""

import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.schema import integer, shorten
from duonlp.util.files import may_read, replacing, unreadable
from duonlp.util.reading import parse_json

FILE = "metrics.jsonl"
STEP, EVALUATION = "step", "evaluation"
"""Values of a record's "kind"."""

STEP_NUMBER = integer(0, 1 << 53)

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""Strings that stand for the numbers JSON lacks."""


def to_plain(value: Any) -> Any:
    """Convert a value to a Python int, float, str, bool or None; zero-dimensional arrays are accepted."""
    if value is None or isinstance(value, (str, bool)):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def to_line(record: Mapping[str, Any]) -> bytes:
    """Return a record as a line of the file, with its newline."""
    values = {key: _encode_non_finite(value) for key, value in record.items()}
    return json.dumps(values, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """Parse a line of the file; raise ValueError if it is not a record."""
    record = parse_json(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    fault = STEP_NUMBER.fault(record.get("step", 0))
    if fault is not None:
        raise ValueError(f"step is {shorten(fault.value)}; it must be {fault.expected}")
    return {key: NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def read_metrics(file: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl, dropping a truncated last line.

    Args:
        file: The file, or the folder that contains it.

    Raises:
        InputError: The file does not exist or cannot be read, or a line other than the last is invalid.
    """
    file = Path(file)
    file = file / FILE if may_read(file) and file.is_dir() else file
    if not may_read(file):
        raise InputError(f"{str(file)!r} does not exist; give a {FILE}, or the folder of a run that has one")
    with open(file, "rb") as lines:
        return [record for _, record in _records(lines, file)]


def remove_after(file: Path, step: int) -> int:
    """Remove the records after `step` and a truncated last line, and return the number of records removed.

    The file is replaced atomically, or left alone if nothing has to be removed.

    Raises:
        InputError: A line other than the last is invalid, or the file cannot be read.
        StorageError: The file cannot be written.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None
    records = list(_records(io.BytesIO(content), file))
    lines = [line.rstrip(b"\n") + b"\n" for line, record in records if record.get("step", 0) <= step]
    kept = b"".join(lines)
    if kept != content:
        with replacing(file) as stream:
            stream.write(kept)
    return len(records) - len(lines)


def _records(lines: Iterable[bytes], file: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """Yield each line and its record; an invalid line is an error unless it is the last and has no newline."""
    for number, line in enumerate(lines, 1):
        try:
            record = from_line(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise InputError(
                f"line {number} of {str(file)!r} is not a valid record ({error}); fix or remove that line"
            ) from error
        yield line, record


def _encode_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
