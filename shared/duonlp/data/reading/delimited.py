"""Read rows of CSV and TSV files: quoted or not, in any encoding, every lost row noted."""

import csv
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from duonlp.data.reading.document_files import (
    UTF8,
    Problems,
    TextFormat,
    check_columns,
    foreign_start,
    invalid_in,
    is_readable,
    text_lines,
)
from duonlp.errors import InputError

MAX_FIELD_CHARACTERS = 2**27
"""Limit on the characters of a CSV field; Python's default of 131,072 is shorter than a long document."""

QUOTE = '"'
_MAC_LINE = re.compile(r"[^\r]*\r|[^\r]+$")


def csv_rows(file: Path, problems: Problems, text: TextFormat = UTF8) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield (file:line, {column: value}) for each row of a CSV file; .tsv files are tab-separated.

    The line is the one where the row begins.

    Args:
        file: The file, decompressed if it ends in .gz or .zst.
        problems: Notes each row that is corrupt or has a field that is not text. What cannot be parsed, such as everything after
            a quote that is never closed, counts once per line that is not empty.
        text: How the file is written.

    Raises:
        InputError: A column is there twice, the header is not text, or a TSV file can be read as quoted and as not quoted, with
            different rows.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARACTERS))
    foreign = foreign_start(file, text.encoding)
    lines = _Lines(file, foreign or text.encoding)
    advice = "" if text.encoding else foreign or "cp1252"
    named = "the header has" if text.columns is None else "column_names has"
    header = None if text.columns is None else check_columns(list(text.columns), file)
    try:
        tabs = is_tab_separated(file)
        quoted = text.quoting if text.quoting is not None else not tabs or _is_quoted_tsv(file, lines.encoding)
        delimiter = "\t" if tabs else ","
        for number, row in _quoted_rows(lines, delimiter) if quoted else _plain_rows(lines, delimiter):
            place = f"{file}:{number}"
            if header is None:
                header = check_columns([name.strip() for name in row], file)
                _check_header(header, place, advice)
            elif foreign:
                problems.note("invalid UTF-8", place, f"it is {foreign.upper()} text", encoding=foreign)
            elif len(row) != len(header):
                detail = f"row has {len(row)} fields, but {named} {len(header)}: {', '.join(header)}"
                hint = "; if its fields are quoted, pass quoting=True" if not quoted and QUOTE in "".join(row) else ""
                problems.note("corrupt row", place, detail + hint)
            elif all(is_readable(field, place, problems, advice or "cp1252", text.encoding) for field in row):
                yield place, dict(zip(header, row))
    except csv.Error as error:
        for number, line in lines.lost():
            if line.strip("\r\n"):
                detail = f"{error}; unreadable from here on" if number == lines.start else "lost after the previous row"
                problems.note("corrupt row", f"{file}:{number}", detail, len(line))
    except UnicodeError as error:
        place = f"{file}:{lines.number + 1}"
        problems.note(invalid_in(lines.encoding), place, f"{error}; unreadable from here on")
    except (EOFError, OSError, zlib.error) as error:
        problems.note_file(file, error, f"line {lines.number}")


def is_tab_separated(file: Path) -> bool:
    """Return whether a file is tab-separated, by its name."""
    return ".tsv" in file.name.lower()


class _Lines:
    """The lines of a file, of which those of the current row are kept.

    Attributes:
        encoding: Encoding of the file; None for UTF-8.
        number: Number of lines read.
        start: Number of the line where the current row begins, from 1.
    """

    def __init__(self, file: Path, encoding: str | None):
        self.encoding = encoding
        self.number, self.start = 0, 1
        self._lines = _split_mac_lines(text_lines(file, encoding))
        self._row: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._lines:
            self.number += 1
            self._row.append(line)
            yield line

    def end_row(self) -> int:
        """Return the number of the line where the row began that ends here."""
        start, self.start = self.start, self.number + 1
        self._row.clear()
        return start

    def lost(self) -> Iterator[tuple[int, str]]:
        """Yield (number, line) for the lines of the current row and all that follow."""
        yield from enumerate(self._row, self.start)
        for line in self._lines:
            self.number += 1
            yield self.number, line


def _split_mac_lines(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines; the first one in parts if it has several, since old Macs ended lines with \\r."""
    for number, line in enumerate(lines):
        yield from _MAC_LINE.findall(line) if number == 0 and 0 <= line.find("\r") < len(line) - 2 else (line,)


def _quoted_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (first line, fields) of each row that is not empty; raise csv.Error where quotes are wrong."""
    for row in csv.reader(iter(lines), delimiter=delimiter, strict=True):
        number = lines.end_row()
        if row:
            yield number, row


def _plain_rows(lines: _Lines, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, fields) of each line that is not empty; quotes are characters like any other."""
    for line in lines:
        number, line = lines.end_row(), line.removesuffix("\n").removesuffix("\r")
        if line:
            yield number, line.split(delimiter)


def _check_header(header: list[str], place: str, encoding: str) -> None:
    """Raise InputError if the names of the columns are not text, whether or not there is a report."""

    class Header(Problems):
        def note(self, reason: str, place: str, detail: str, byte_count: int = 0, encoding: str = "") -> None:
            text = f"{place}: the header is not text ({reason}: {detail})"
            if not encoding:
                raise InputError(f"{text}; give a text file, compressed only if its name ends in .gz or .zst")
            remedy = f"pass the file's encoding, such as encoding={encoding!r}"
            raise InputError(text, remedy=remedy, argument="encoding")

    for name in header:
        is_readable(name, place, Header(None), encoding or "cp1252")


@dataclass
class _Quotes:
    """What quotes a TSV file has, if it is read as quoted.

    Attributes:
        needed: Fields that a program would quote: with a tab, a line end or doubled quotes.
        odd: What would not be there if a program had quoted the file: rows of another length, quotes that are not closed, and
            fields of several lines with a tab, which quotes at the beginning of two fields of different rows make.
        header: Whether every name in the header is quoted.
    """

    needed: int = 0
    odd: int = 0
    header: bool = False


def _is_quoted_tsv(file: Path, encoding: str | None) -> bool:
    """Return whether a TSV file is quoted, as spreadsheets and csv.writer write it, rather than plain, as GLUE's files are.

    A file that cannot be read to its end is judged by what can be read.

    Raises:
        InputError: It has signs of both.
    """
    if not any(line.startswith(QUOTE) or f"\t{QUOTE}" in line for line in _readable_lines(file, encoding)):
        return False
    quotes = _quotes(_readable_lines(file, encoding))
    if quotes.header:
        return True
    if quotes.needed and quotes.odd:
        raise InputError(
            f"{file} has fields that are quoted and quotes that are part of a text",
            remedy="pass quoting=True if its fields are quoted, or quoting=False if double quotes are characters like any other",
            argument="quoting",
        )
    return quotes.needed > 0


def _readable_lines(file: Path, encoding: str | None) -> Iterator[str]:
    with suppress(EOFError, OSError, UnicodeError, zlib.error):  # noted where the file is read
        yield from _Lines(file, encoding)


def _quotes(lines: Iterator[str]) -> _Quotes:
    found = _Quotes()
    width = 0
    raw: list[str] = []

    def kept() -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line

    try:
        for row in csv.reader(kept(), delimiter="\t", strict=True):
            source = "".join(raw)
            raw.clear()
            if not width:
                width = len(row)
                names = source.strip("\r\n\ufeff ").split("\t")
                found.header = all(len(name) > 1 and name[0] == name[-1] == QUOTE for name in names)
            elif row and QUOTE in source:
                # The first text of a pair may begin with a quote and the second end with one.
                found.odd += len(row) != width
                for field in row if len(row) == width else ():
                    has_line_end = "\n" in field or "\r" in field
                    if "\t" in field and has_line_end:
                        found.odd += 1
                    elif "\t" in field or has_line_end or (QUOTE in field and _doubled(field) in source):
                        found.needed += 1
    except csv.Error:
        found.odd += 1
    return found


def _doubled(field: str) -> str:
    """Return a field as csv.writer quotes it."""
    return QUOTE + field.replace(QUOTE, QUOTE * 2) + QUOTE
