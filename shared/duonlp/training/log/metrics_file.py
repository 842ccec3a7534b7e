"""metrics.jsonl: what a run measured, one JSON object a line, in the order of its steps."""

import json
import math
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from duonlp.errors import InputError

FILE = "metrics.jsonl"
STEP, EVALUATION = "step", "evaluation"
"""Values of a record's "kind"."""

NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
"""How numbers that JSON does not have are written: as these strings."""


def plain(value: Any) -> Any:
    """A value for a record: whole numbers, floats, texts and None as Python has them; zero-dimensional arrays too."""
    if value is None or isinstance(value, (str, bool)):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def to_line(record: Mapping[str, Any]) -> bytes:
    """A record as a line of the file, its end included."""
    legible = {key: _text_of(value) for key, value in record.items()}
    return json.dumps(legible, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> dict[str, Any]:
    """The record of a line; raises ValueError when it is none."""
    record = json.loads(line)
    if not isinstance(record, dict):
        raise ValueError("not an object")
    return {key: NON_FINITE.get(value, value) if isinstance(value, str) else value for key, value in record.items()}


def read_metrics(file: str | os.PathLike) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, or of the one in a folder; a last line that was torn off is left out.

    Raises:
        InputError: the file is not there, or another line than the last is no record.
    """
    file = Path(file)
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise InputError(f"there is no {str(file)!r}; name a {FILE}, or the folder of a run that has one")
    with open(file, "rb") as lines:
        return [record for _, record in _records(lines, file)]


def cut_back(file: Path, step: int) -> int:
    """Removes the records of steps after `step`, and a last line that was torn off; returns how many records went.

    The file is written anew under another name and then renamed, or left alone when nothing has to go.

    Raises:
        InputError: another line than the last is no record.
    """
    unfinished, removed = file.with_name(f".{file.name}.{os.getpid()}.part"), 0
    try:
        with open(file, "rb") as lines, open(unfinished, "wb") as kept:
            for line, record in _records(lines, file):
                if record.get("step", 0) > step:
                    removed += 1
                else:
                    kept.write(line.rstrip(b"\n") + b"\n")
        if unfinished.stat().st_size != file.stat().st_size:
            os.replace(unfinished, file)
    finally:
        unfinished.unlink(missing_ok=True)
    return removed


def _records(lines, file: Path):
    """Each line and its record; a line that is none is an error, unless it is the last and has no end."""
    for number, line in enumerate(lines, 1):
        try:
            record = from_line(line)
        except ValueError as error:
            if not line.endswith(b"\n"):
                return
            raise InputError(
                f"line {number} of {str(file)!r} is no record of a run ({error}); mend or remove that line"
            ) from error
        yield line, record


def _text_of(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
