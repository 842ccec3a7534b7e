"""Read and write prediction files: one text per line, or JSON Lines."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from duonlp.errors import InputError
from duonlp.util.files import replacing
from duonlp.util.reading import parse_json, read_text_file

FIELDS = ("prediction", "summary_text", "generated_text", "translation_text", "summary", "text")
"""Keys that may hold the text in an object of a JSONL file; the first that exists is used."""

JSONL = (".jsonl", ".ndjson")


def read_predictions(
    file: str | os.PathLike, ids: Sequence[str], *, limited: bool = False, encoding: str | None = None
) -> list[str]:
    """Read a system's text for each example, in the order of `ids`.

    Args:
        file: A .jsonl or .ndjson file has one text or object per line; an object holds the text under one of FIELDS and
            optionally the example's "id". Any other file has one text per line, where an empty line is an empty text.
        ids: Ids of the examples. If all objects have an "id", they are matched by it; otherwise by their order.
        encoding: Encoding of the file, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        limited: Whether the examples are the first ones of a larger dataset, so that the file may have more predictions.

    Raises:
        InputError: The file cannot be read, a line is invalid, or there are too few or too many texts.
    """
    path = Path(file)
    text = read_text_file(path, f"predictions from {str(file)!r}", "give one text per line, or JSONL", encoding)
    lines = text.removesuffix("\n").split("\n")
    lines = [line.removesuffix("\r") for line in lines]
    texts: list[str]
    names: list[str | None]
    if path.suffix.lower() in JSONL:
        rows = [_parse_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        texts, names = [text for text, _ in rows], [name for _, name in rows]
    else:
        texts, names = (lines if lines != [""] else []), []
    known_names = [name for name in names if name is not None]
    if known_names and len(known_names) == len(names) and names[: len(ids)] != list(ids):
        return _match_by_id(path, texts, known_names, ids)
    if len(texts) != len(ids) and not (limited and len(texts) > len(ids)):
        raise InputError(
            f"{str(file)!r} has {len(texts)} predictions, but there are {len(ids)} examples; give one for each"
        )
    return texts[: len(ids)]


def _match_by_id(path: Path, texts: list[str], names: list[str], ids: Sequence[str]) -> list[str]:
    text_by_id = dict(zip(names, texts, strict=True))
    if len(text_by_id) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{str(path)!r} has the id {repeated!r} more than once; give each example one prediction")
    for name in ids:
        if name not in text_by_id:
            raise InputError(
                f"{str(path)!r} has no prediction for the example {name!r} (its first id is {names[0]!r}); give one for each "
                'example, or drop the "id"s if the predictions are in the order of the data'
            )
    return [text_by_id[name] for name in ids]


def _parse_row(path: Path, number: int, line: str) -> tuple[str, str | None]:
    """Return the text and the id of a line of JSON."""
    try:
        row: Any = parse_json(line, unique=True)
    except ValueError as error:
        raise InputError(f"line {number} of {str(path)!r} is not valid JSON ({error}); fix it") from None
    if isinstance(row, str):
        return row, None
    field = next((field for field in FIELDS if isinstance(row, dict) and field in row), None)
    if field is None or not isinstance(row[field], str):
        raise InputError(
            f"line {number} of {str(path)!r} has no text; give a text, or an object with one under {', '.join(FIELDS)}"
        )
    return row[field], None if row.get("id") is None else str(row["id"])


def write_predictions(file: str | os.PathLike, ids: Sequence[str], texts: Sequence[str]) -> None:
    """Write one {"id", "prediction"} object per line, atomically.

    Raises:
        StorageError: The file cannot be written.
    """
    rows = (
        json.dumps({"id": name, "prediction": text}, ensure_ascii=False) for name, text in zip(ids, texts, strict=True)
    )
    write_atomically(Path(file), "".join(row + "\n" for row in rows))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file atomically.

    Raises:
        StorageError: The file cannot be written, for example because the disk is full.
    """
    with replacing(path) as stream:
        # A model may write an unpaired surrogate, which UTF-8 cannot encode.
        stream.write(text.encode("utf-8", errors="replace"))
