"""Read text and rows from text, JSONL, Parquet and Arrow files, and count or raise what cannot be read."""

import gzip
import importlib
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.errors import InputError, MissingExtraError
from duonlp.util.reading import check_encoding, foreign_encoding, parse_json, undecodable

ROWS_PER_BATCH = 1024
WIDE = ("utf-16", "utf-32", "utf_16", "utf_32")
"""Prefixes of the names of encodings in which a line end takes more than one byte."""

TEXT_KINDS = ("csv", "json", "jsonl", "stories", "tree")
"""Kinds of files that have an encoding."""


@dataclass(frozen=True)
class TextFormat:
    """How files of text are written.

    Attributes:
        encoding: Encoding of the files; None for UTF-8, with or without a byte order mark.
        quoting: Whether fields of CSV and TSV files may be quoted: a field in double quotes may hold delimiters and line
            ends, and two double quotes in it stand for one. If False, a double quote is a character like any other.
            None: CSV files quote; TSV files do not, unless they can only be read as quoted.
        columns: Names of the columns of CSV and TSV files without a header, also as "first,second"; None if they have one.

    Raises:
        InputError: An option is invalid.
    """

    encoding: str | None = None
    quoting: bool | None = None
    columns: Sequence[str] | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "encoding", check_encoding(self.encoding))
        if self.quoting not in (None, True, False):
            raise InputError(f"quoting is {self.quoting!r}; it must be True, False or None")
        if self.columns is not None:
            names = self.columns.split(",") if isinstance(self.columns, str) else list(self.columns)
            if not names or not all(isinstance(name, str) and name.strip() for name in names):
                raise InputError(f"column_names is {self.columns!r}; give the name of each column, such as text,label")
            object.__setattr__(self, "columns", tuple(name.strip() for name in names))

    def check(self, kind: str, source: Any) -> None:
        """Raise InputError if an option has no effect on files of a kind.

        Args:
            kind: Kind of the source.
            source: The source, for messages.
        """
        name = repr(str(source)) if isinstance(source, (str, Path)) else "the source"
        if self.encoding is not None and kind not in TEXT_KINDS:
            raise InputError(f"encoding is {self.encoding!r}, but {name} is not a file of text; drop encoding")
        if self.quoting is not None and kind != "csv":
            raise InputError(f"quoting is {self.quoting!r}, but {name} is neither CSV nor TSV; drop quoting")
        if self.columns is not None and kind != "csv":
            raise InputError(
                f"column_names is {','.join(self.columns)!r}, but {name} is neither CSV nor TSV; drop column_names"
            )


UTF8 = TextFormat()


class Problems:
    """Handle unreadable input: count it in a report, or raise where there is no report.

    Attributes:
        report: Counts unreadable input by reason; None makes `note` raise.
    """

    def __init__(self, report: CleaningReport | None):
        self.report = report

    def note(self, reason: str, place: str, detail: str, byte_count: int = 0, encoding: str = "") -> None:
        """Count one unreadable file or row.

        Args:
            reason: Key in `report.dropped`, such as "corrupt line".
            place: File, or file and row, as in "corpus.jsonl:3".
            detail: What is wrong there.
            byte_count: Size of what is dropped.
            encoding: An encoding that the file may have instead, for advice.

        Raises:
            InputError: If there is no report.
        """
        if self.report is None:
            remedy = "fix it, or pass report=CleaningReport() to count and drop such records"
            if encoding:
                remedy = f"pass the file's encoding, such as encoding={encoding!r}; or {remedy}"
            argument = "encoding" if encoding else "report"
            raise InputError(f"{place}: {reason}: {detail}", remedy=remedy, argument=argument)
        self.report.drop(reason, f"{place}: {detail}", byte_count)

    def note_file(self, file: str | Path, error: Exception, last: str = "") -> None:
        """Count a file that cannot be read, or not beyond a point.

        Args:
            file: The file.
            error: What reading it raised. With an error number it comes from the system, otherwise from the contents.
            last: Last part that was read, as in "line 7"; "" for none of it.

        Raises:
            InputError: If there is no report.
        """
        reason, after = getattr(error, "strerror", None), f"; unreadable after {last}" if last else ""
        if reason:
            self.note("unreadable", str(file), f"{reason}{after}")
        else:
            self.note("corrupt archive", str(file), f"{error or type(error).__name__}{after}")


def is_readable(text: str, place: str, problems: Problems, encoding: str = "", declared: str | None = None) -> bool:
    """Return whether a text is free of NUL characters and can be encoded as UTF-8; note it if not.

    Args:
        text: A text, such as a field of a row.
        place: Location of the text.
        problems: Notes what is wrong with it.
        encoding: An encoding that its file may have instead, for advice; "" if it is from no file of text.
        declared: Encoding with which its file was decoded; None for UTF-8.
    """
    if "\0" in text:
        problems.note("binary", place, f"NUL byte at character {text.index(chr(0))}", len(text))
        return False
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            detail = f"{_undecoded(text[error.start], encoding, declared)} at character {error.start}"
            problems.note(invalid_in(declared), place, detail, len(text), encoding)
            return False
    return True


def _undecoded(character: str, encoding: str, declared: str | None) -> str:
    """Return what a surrogate stands for; its file, of which `encoding` and `declared` are as in :func:`is_readable`."""
    if not encoding or is_wide(declared) or not "\udc80" <= character <= "\udcff":
        return "unpaired surrogate"
    # Which byte a codec for several bytes rejects is unknown; see decode_line.
    return "undecodable byte" if declared else f"byte 0x{ord(character) - 0xDC00:02x}"


def read_text(path: Path, problems: Problems, encoding: str | None = None) -> str | None:
    r"""Return the text of a file without BOM and with \n line ends; None (noted) if unreadable.

    Args:
        path: The file.
        problems: Notes what is wrong with it.
        encoding: Its encoding; None for UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.note("unreadable", str(path), error.strerror or type(error).__name__)
        return None
    try:
        text = data.decode(encoding or "utf-8").removeprefix("\ufeff")
    except UnicodeError as error:
        found = "" if encoding else foreign_encoding(data) or ("" if b"\0" in data else "cp1252")
        if b"\0" in data and not found:
            problems.note("binary", str(path), f"NUL byte at offset {data.index(0)}", len(data))
        else:
            problems.note(invalid_in(encoding), str(path), _where(data, error, encoding), len(data), found or "cp1252")
        return None
    if "\0" in text:
        found = "" if encoding else foreign_encoding(data) or ""
        problems.note("binary", str(path), f"NUL byte at offset {data.index(0)}", len(data), found)
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def invalid_in(encoding: str | None) -> str:
    """Return the reason for which text that is not in an encoding (None: UTF-8) is dropped."""
    return f"invalid {(encoding or 'utf-8').upper()}"


def _where(data: bytes, error: UnicodeError, encoding: str | None = None) -> str:
    if isinstance(error, UnicodeDecodeError) and not (encoding is None and foreign_encoding(data)):
        return f"byte 0x{data[error.start]:02x} at {error.start}"
    return undecodable(data, error, encoding)


def foreign_start(file: Path, encoding: str | None) -> str | None:
    """Return the encoding of a file that is UTF-16 or UTF-32 although no encoding was named; None for any other file."""
    try:
        if encoding is not None:
            return None
        if file.suffix.lower() in (".gz", ".zst"):
            return foreign_encoding(next(lines_of(file), b""))
        with open(file, "rb") as stream:
            return foreign_encoding(stream.read(64))
    except (EOFError, OSError, zlib.error):  # noted where the file is read
        return None


def jsonl_rows(file: Path, problems: Problems, text: TextFormat = UTF8) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) for each non-empty line of a JSONL file, decompressed if it ends in .gz or .zst.

    Args:
        file: The file.
        problems: Notes each line that is not valid, which includes an object with the same key twice.
        text: How the file is written.
    """
    number, foreign = 0, foreign_start(file, text.encoding)
    encoding = foreign or text.encoding
    try:
        for number, line in enumerate(raw_lines(file, encoding), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            place = f"{file}:{number}"
            if foreign:
                detail = f"it is {foreign.upper()} text"
                problems.note(invalid_in(None), place, detail, len(line), foreign)
                continue
            try:
                # A wide encoding has been decoded, with invalid parts as surrogates.
                value = parse_json(line.decode("utf-8" if is_wide(encoding) else encoding or "utf-8"), unique=True)
            except UnicodeError as error:
                problems.note(invalid_in(encoding), place, _where(line, error, encoding), len(line), "cp1252")
            except ValueError as error:
                problems.note("corrupt line", place, f"not JSON: {error}", len(line))
            else:
                yield place, value
    except UnicodeError as error:
        problems.note(invalid_in(encoding), f"{file}:{number + 1}", f"{error}; unreadable from here on")
    except (EOFError, OSError, zlib.error) as error:
        problems.note_file(file, error, f"line {number}")


def is_wide(encoding: str | None) -> bool:
    """Return whether characters of an encoding have several bytes each, so that its lines cannot be split as bytes."""
    return encoding is not None and encoding.startswith(WIDE)


def raw_lines(file: Path, encoding: str | None) -> Iterator[bytes]:
    """Yield the lines of a file as bytes in its encoding, or in UTF-8 if that is wide.

    Raises:
        EOFError, OSError, zlib.error: As :func:`lines_of`.
        UnicodeError: A wide encoding is invalid.
    """
    if not is_wide(encoding):
        yield from lines_of(file)
        return
    with io.TextIOWrapper(
        io.BufferedReader(_LineStream(lines_of(file))), encoding, "surrogatepass", newline="\n"
    ) as stream:
        for line in stream:
            yield line.encode("utf-8", "surrogatepass")


def text_lines(file: Path, encoding: str | None = None) -> Iterator[str]:
    r"""Yield the lines of a text file with their line ends, the last one with \n too, without a byte order mark.

    Bytes that are invalid in the encoding become unpaired surrogates, so that only the row is dropped that they are in.

    Raises:
        EOFError, OSError, zlib.error: As :func:`lines_of`.
        UnicodeError: A wide encoding is invalid.
    """
    for number, line in enumerate(raw_lines(file, encoding)):
        text = decode_line(line, "utf-8" if is_wide(encoding) else encoding or "utf-8")
        text = text if text.endswith("\n") else text + "\n"
        yield text.removeprefix("\ufeff") if number == 0 else text


def decode_line(line: bytes, encoding: str) -> str:
    """Return the text of a line; bytes that are invalid become unpaired surrogates."""
    try:
        return line.decode(encoding, "surrogateescape")
    except UnicodeError:  # multi-byte codecs give up
        return line.decode("ascii", "surrogateescape") + "\udcff"


class _LineStream(io.RawIOBase):
    """A binary stream of pieces of bytes."""

    def __init__(self, pieces: Iterable[bytes]):
        self._pieces, self._rest = iter(pieces), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def lines_of(file: Path) -> Iterator[bytes]:
    """Yield the raw lines of a file, decompressed if it ends in .gz or .zst.

    Raises:
        EOFError, OSError, zlib.error: If the file is missing, truncated or corrupt.
        MissingExtraError: If a .zst file needs zstandard and it is not installed.
    """
    ending = file.suffix.lower()
    if ending == ".zst":
        yield from _zstd_lines(file)
    else:
        with gzip.open(file) if ending == ".gz" else open(file, "rb") as stream:
            yield from stream


def _zstd_lines(file: Path) -> Iterator[bytes]:
    """Yield the lines of a zstd file of any number of frames.

    zstandard's own reader is not used because it accepts truncated files silently.
    """
    zstandard = _import("zstandard", file)
    rest = b""
    decompressor = None
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(1 << 16):
                while chunk:
                    if decompressor is None:
                        decompressor = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
                    *lines, rest = (rest + decompressor.decompress(chunk)).split(b"\n")
                    yield from (line + b"\n" for line in lines)
                    chunk = decompressor.unused_data if decompressor.eof else b""
                    decompressor = None if decompressor.eof else decompressor
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if decompressor is not None:
        raise EOFError("the compressed file ends before its end marker")
    if rest:
        yield rest


def check_columns(names: Iterable[str], file: Path) -> list[str]:
    """Return the names of a table's columns; raise InputError if one that is not empty is there twice."""
    names = list(names)
    if repeated := next((name for name in names if name and names.count(name) > 1), None):
        raise InputError(
            f"{file} has the column {repeated!r} {names.count(repeated)} times; rename or remove the others"
        )
    return names


def parquet_rows(
    file: Path, choose_columns: Callable[[list[str]], list[str]], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:row, {column: value}) for each row of a memory-mapped Parquet file.

    Args:
        file: Parquet file.
        choose_columns: Maps the names of all columns to those to read.
        problems: Notes corrupt files and rows.
    """
    pyarrow, parquet = _import("pyarrow", file), _import("pyarrow.parquet", file)
    number = rows = 0
    try:
        with parquet.ParquetFile(file, memory_map=True) as table:
            rows = table.metadata.num_rows
            columns = choose_columns(check_columns(table.schema_arrow.names, file))
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                yield from _batch_rows(batch, file, number, problems)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        for _ in range(max(1, rows - number)):  # every row that is lost counts
            problems.note_file(file, error, f"row {number}")


def arrow_rows(
    file: Path, choose_columns: Callable[[list[str]], list[str]], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:row, {column: value}) for each row of a memory-mapped Arrow file.

    Both IPC formats are read: streams, which `datasets` writes, and files.

    Args:
        file: Arrow file.
        choose_columns: Maps the names of all columns to those to read.
        problems: Notes corrupt files and rows.
    """
    pyarrow, ipc = _import("pyarrow", file), _import("pyarrow.ipc", file)
    number = 0
    try:
        with pyarrow.memory_map(str(file)) as source:
            if source.read(6) == b"ARROW1":
                reader = ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                batches = reader = ipc.open_stream(source)
            columns = choose_columns(check_columns(reader.schema.names, file))
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                    piece = batch.select(columns).slice(start, ROWS_PER_BATCH)
                    yield from _batch_rows(piece, file, number, problems)
                    number += piece.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        problems.note_file(file, error, f"row {number}")


def _batch_rows(batch: Any, file: Path, rows_before: int, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (file:row, row) for each row of a `pyarrow.RecordBatch` after `rows_before` rows of the file.

    Invalid UTF-8 drops only the row that contains it.
    """
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = (batch.slice(i, 1) for i in range(batch.num_rows))
    for number, row in enumerate(rows, rows_before + 1):
        place = f"{file}:{number}"
        try:
            yield place, row if isinstance(row, dict) else row.to_pylist()[0]
        except UnicodeDecodeError as error:
            problems.note("invalid UTF-8", place, _where(error.object, error), len(error.object))


def _import(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise MissingExtraError(
            f'reading {str(file)!r} requires {package}; install it with pip install "duonlp[data]"'
        ) from error
