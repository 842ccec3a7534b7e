"""Find the files of a folder that hold documents, and split them into passages that know their place."""

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading import TextFormat, file_rows
from duonlp.data.reading.document_files import Problems, is_readable, read_text
from duonlp.errors import InputError
from duonlp.retrieval.answer import CJK
from duonlp.retrieval.document import Document
from duonlp.util.files import may_read, unreadable

TEXT_ENDINGS = (".txt", ".text", ".md", ".markdown", ".rst")
"""Endings of files that are one document each."""

ROW_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"}
"""Endings of files with a document per row, optionally followed by .gz or .zst."""

TEXT_COLUMNS = ("text", "content", "document", "context", "passage", "body", "review", "review_text", "article")
"""Usual names of the text column, in order of preference."""

PROBLEMS_SHOWN = 5
"""Problems of one kind in a file that are described."""

_WORD = re.compile(rf"[{CJK}]|[^\s{CJK}]{{1,100}}")  # very long words are cut
_PARAGRAPH_END = re.compile(r"\n[ \t]*(?:\n[ \t]*)+")


@dataclass(frozen=True)
class PassageSettings:
    """How documents are read and split.

    Attributes:
        words: Maximum number of words in a passage.
        overlap: Number of words that two passages of one long paragraph share.
        text_column: Text column of files with rows; "" for the first of TEXT_COLUMNS that a file has.
        encoding: Encoding of the files; "" for UTF-8.

    Raises:
        InputError: A setting is out of range, or the encoding is unknown.
    """

    words: int = 200
    overlap: int = 40
    text_column: str = ""
    encoding: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.words, bool) or not isinstance(self.words, int) or self.words < 1:
            raise InputError(f"words is {self.words!r}; it must be an integer of at least 1")
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, int) or not 0 <= self.overlap < self.words:
            raise InputError(f"overlap is {self.overlap!r}; it must be an integer from 0 to below words ({self.words})")
        TextFormat(self.encoding or None)  # raises


def document_files(source: str | Path, exclude: Path | None = None) -> dict[str, os.stat_result]:
    """Return the files with documents, {path relative to the folder: status}, sorted by path.

    Hidden files and folders, links to folders, and files with another ending than those of TEXT_ENDINGS and ROW_ENDINGS, are left
    out. A file that is given itself is read as text if its ending is another one.

    Args:
        source: A folder, which is searched recursively, or a file.
        exclude: A folder to leave out, such as the index.

    Raises:
        InputError: The source does not exist or cannot be read, or a folder has no such files.
    """
    source = Path(source)
    if not may_read(source):
        raise InputError(f"{str(source)!r} does not exist; give a file or folder of documents")
    if source.is_file():
        return {source.name: source.stat()}
    if not source.is_dir():
        raise InputError(f"{str(source)!r} is neither a file nor a folder; give a file or folder of documents")

    def fail(error: OSError) -> None:
        raise unreadable(error.filename, error) from error

    found: dict[str, os.stat_result] = {}
    excluded = os.path.realpath(exclude) if exclude is not None else None
    for parent, folders, names in os.walk(source, onerror=fail):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(parent, name)) != excluded
        ]
        for name in names:
            path = Path(parent, name)
            if not name.startswith(".") and _kind(path) is not None and path.is_file():
                with contextlib.suppress(FileNotFoundError):  # it was deleted meanwhile
                    found[path.relative_to(source).as_posix()] = path.stat()
    if not found:
        endings = ", ".join((*TEXT_ENDINGS, *ROW_ENDINGS))
        raise InputError(
            f"{str(source)!r} has no documents: no file in it ends in {endings}; give another folder or file"
        )
    return dict(sorted(found.items()))


def has_rows(name: str) -> bool:
    """Return whether a file has a document per row, by its name."""
    return _kind(Path(name)) not in (None, "text")


def line_of(passage: Document, start: int) -> int:
    """Return the line of a character of a passage in its file; in a file with rows, the line of the row."""
    return passage.meta["line"] + (0 if has_rows(passage.meta["file"]) else passage.content.count("\n", 0, start))


def _kind(path: Path) -> str | None:
    """Return "text", or the kind of a file of rows; None for other endings."""
    name = path.name.lower()
    if Path(name).suffix in TEXT_ENDINGS:
        return "text"
    return ROW_ENDINGS.get(Path(name.removesuffix(".gz").removesuffix(".zst")).suffix)


def read_passages(path: Path, name: str, settings: PassageSettings) -> tuple[list[Document], list[str]]:
    """Return the passages of a file, in order, and what could not be read.

    Args:
        path: The file.
        name: Its name in the passages' meta.
        settings: How it is read and split.

    Returns:
        (passages, problems). A passage's meta has "file", "line" (the line that it, or its row, begins on; in a JSON list, the
        number of its entry) and "offset" (its first character in the text of the file, or of the row); those of rows also have
        the row's other columns, except those of these three names.
        A problem is a line of text, such as "a.txt: invalid UTF-8: byte 0xff at 3".
    """
    report = CleaningReport(most_examples=PROBLEMS_SHOWN)
    problems, passages = Problems(report), []
    for text, line, meta in _texts(path, settings, problems):
        at = 0
        for start, end in split_text(text, settings.words, settings.overlap):
            line, at = line if has_rows(name) else line + text.count("\n", at, start), start
            place = {"file": name, "line": line, "offset": start}
            passages.append(Document(text[start:end], meta | place))
    found = []
    for reason, dropped in report.dropped.items():
        found += [f"{_short(example, path, name)} ({reason})" for example in dropped.examples]
        if dropped.documents > len(dropped.examples):
            found.append(f"{name}: {dropped.documents - len(dropped.examples)} more ({reason})")
    return passages, found


def _short(example: str, path: Path, name: str) -> str:
    return example.replace(str(path), name, 1)


def _texts(path: Path, settings: PassageSettings, problems: Problems) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Yield (text, its line, other columns) of each document in a file."""
    kind = _kind(path)
    if kind in (None, "text"):
        text = read_text(path, problems, settings.encoding or None)
        if text is not None:
            yield text, 1, {}
        return
    try:
        for place, row in file_rows(path, str(kind), list, problems, TextFormat(settings.encoding or None)):
            if not isinstance(row, dict):
                problems.note("not an object", place, f"{type(row).__name__} instead of an object with columns")
                continue
            column = settings.text_column or _text_column(row)
            text = row.get(column)
            if not isinstance(text, str):
                wanted = repr(column) if column else "a usual name (" + ", ".join(TEXT_COLUMNS) + ")"
                detail = f"no text in a column of {wanted}; its columns are {', '.join(map(str, row)) or 'none'}"
                problems.note("no text", place, detail)
                continue
            if not is_readable(text, place, problems):
                continue
            meta = {str(key): value for key, value in row.items() if key != column and _is_plain(value)}
            yield text.replace("\r\n", "\n").replace("\r", "\n"), int(place.rpartition(":")[2]), meta
    except InputError as error:  # a header that is not one
        problems.note("corrupt file", str(path), error.message)


def _text_column(names: Iterable[str]) -> str:
    """Return the first usual name of a text column, in any case, or ""."""
    lowered = {str(name).lower(): name for name in names}
    return next((lowered[name] for name in TEXT_COLUMNS if name in lowered), "")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def split_text(text: str, words: int, overlap: int) -> list[tuple[int, int]]:
    """Return the character ranges of a text's passages, in order.

    Paragraphs, which end at an empty line, are joined as long as they have at most `words` words. One that is longer is cut into
    windows of `words` words, of which adjacent ones share `overlap` words.

    Args:
        text: The text.
        words: Maximum number of words in a passage.
        overlap: Words that two windows of a paragraph share, less than `words`.
    """
    ranges: list[tuple[int, int]] = []
    begin, finish, count = 0, 0, 0  # of the paragraphs joined so far
    start = 0
    for end, after in (*((match.start(), match.end()) for match in _PARAGRAPH_END.finditer(text)), (len(text), 0)):
        spans = [match.span() for match in _WORD.finditer(text, start, end)]
        start = after
        if not spans:
            continue
        if count and count + len(spans) > words:
            ranges.append((begin, finish))
            count = 0
        if len(spans) > words:
            step = words - overlap
            firsts = range(0, len(spans) - overlap, step)
            ranges += [(spans[first][0], spans[min(first + words, len(spans)) - 1][1]) for first in firsts]
            continue
        begin = spans[0][0] if not count else begin
        finish, count = spans[-1][1], count + len(spans)
    if count:
        ranges.append((begin, finish))
    return ranges
