"""Files of what a system wrote: one text a line, or JSONL; the latter written here, too."""

import contextlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duonlp.errors import InputError

FIELDS = ("prediction", "summary_text", "generated_text", "translation_text", "summary", "text")
"""Where the text is in an object of a JSONL file; the first of them that is there."""

JSONL = (".jsonl", ".ndjson")


def read_predictions(file: str | os.PathLike, ids: Sequence[str], *, limited: bool = False) -> list[str]:
    """A system's texts for examples, in their order.

    Args:
        file: in .jsonl or .ndjson a text or an object a line, the object with the text under one of FIELDS and, maybe, the
            example's "id"; in any other file one text a line. Empty lines of a text file are empty texts.
        ids: of the examples. Objects with an "id" are found by it, whatever their order, and all others go by their place.
        limited: the examples are the first of more, and so may the file have more.

    Raises:
        InputError: the file cannot be read, a line is of no use, or texts are missing or too many.
    """
    path = Path(file)
    try:
        lines = path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"cannot read predictions from {str(file)!r}: {why}; give one text a line, or JSONL") from None
    lines = [line.removesuffix("\r") for line in lines]
    if path.suffix.lower() not in JSONL:
        texts, names = (lines if lines != [""] else []), []
    else:
        rows = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        texts, names = map(list, zip(*(_row(path, number, line) for number, line in rows))) if rows else ([], [])
    if names and None not in names and names[: len(ids)] != list(ids):
        return _by_id(path, texts, names, ids)
    if len(texts) != len(ids) and not (limited and len(texts) > len(ids)):
        raise InputError(
            f"{str(file)!r} has {len(texts)} predictions, and there are {len(ids)} examples; give one for each"
        )
    return texts[: len(ids)]


def _by_id(path: Path, texts: list[str], names: list[str], ids: Sequence[str]) -> list[str]:
    found = dict(zip(names, texts, strict=True))
    if len(found) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{str(path)!r} has the id {twice!r} more than once; give each example one prediction")
    for name in ids:
        if name not in found:
            raise InputError(
                f"{str(path)!r} has no prediction for the example {name!r}, its first id being {names[0]!r}; give one for "
                'each example, or leave the "id" out where they are in the order of the data'
            )
    return [found[name] for name in ids]


def _row(path: Path, number: int, line: str) -> tuple[str, str | None]:
    """The text of a line of JSON, and its id."""
    try:
        row: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"line {number} of {str(path)!r} is not valid JSON ({error}); mend it") from None
    if isinstance(row, str):
        return row, None
    field = next((field for field in FIELDS if isinstance(row, dict) and field in row), None)
    if field is None or not isinstance(row[field], str):
        raise InputError(
            f"line {number} of {str(path)!r} has no text; give a text, or an object with one under {', '.join(FIELDS)}"
        )
    return row[field], None if row.get("id") is None else str(row["id"])


def write_predictions(file: str | os.PathLike, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Writes {"id", "prediction"} a line, whole or not at all."""
    rows = (
        json.dumps({"id": name, "prediction": text}, ensure_ascii=False) for name, text in zip(ids, texts, strict=True)
    )
    write_whole(Path(file), "".join(row + "\n" for row in rows))


def write_whole(path: Path, text: str) -> None:
    """A text in a file, whole or not at all.

    Raises:
        InputError: it cannot be written, for want of room, say.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # half a surrogate pair, which a model may write, is no UTF-8
        unfinished.write_text(text, encoding="utf-8", errors="replace", newline="\n")
        unfinished.replace(path)
    except OSError as error:
        raise InputError(
            f"cannot write {str(path)!r}: {error.strerror}; make room, or give a folder that can be written to"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
