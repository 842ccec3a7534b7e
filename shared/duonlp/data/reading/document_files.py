"""Read rows from JSONL, Parquet and Arrow files, and count or raise what cannot be read."""

import gzip
import importlib
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.errors import InputError, MissingExtraError
from duonlp.util.reading import parse_json

ROWS_PER_BATCH = 1024


class Problems:
    """Handle unreadable input: count it in a report, or raise where there is no report.

    Attributes:
        report: Counts unreadable input by reason; None makes `note` raise.
    """

    def __init__(self, report: CleaningReport | None):
        self.report = report

    def note(self, reason: str, place: str, detail: str, byte_count: int = 0) -> None:
        """Count one unreadable file or row.

        Args:
            reason: Key in `report.dropped`, such as "corrupt line".
            place: File, or file and row, as in "corpus.jsonl:3".
            detail: What is wrong there.
            byte_count: Size of what is dropped.

        Raises:
            InputError: If there is no report.
        """
        if self.report is None:
            remedy = "fix it, or pass report=CleaningReport() to count and drop such records"
            raise InputError(f"{place}: {reason}: {detail}", remedy=remedy, argument="report")
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


def is_readable(text: str, place: str, problems: Problems) -> bool:
    """Return whether a text is free of NUL characters and can be encoded as UTF-8; note it if not."""
    if "\0" in text:
        problems.note("binary", place, f"NUL byte at character {text.index(chr(0))}", len(text))
        return False
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            problems.note("invalid UTF-8", place, f"unpaired surrogate at character {error.start}", len(text))
            return False
    return True


def read_text(path: Path, problems: Problems) -> str | None:
    r"""Return the text of a UTF-8 file without BOM and with \n line ends; None (noted) if unreadable."""
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.note("unreadable", str(path), error.strerror or type(error).__name__)
        return None
    if b"\0" in data:
        problems.note("binary", str(path), f"NUL byte at offset {data.index(0)}", len(data))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.note("invalid UTF-8", str(path), _undecodable(data, error), len(data))
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def jsonl_rows(file: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Yield (file:line, value) for each non-empty line of a JSONL file, decompressed if it ends in .gz or .zst."""
    number = 0
    try:
        for number, line in enumerate(lines_of(file), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                value = parse_json(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                problems.note("invalid UTF-8", place, _undecodable(line, error), len(line))
            except ValueError as error:
                problems.note("corrupt line", place, f"not JSON: {error}", len(line))
            else:
                yield place, value
    except (EOFError, OSError, zlib.error) as error:
        problems.note_file(file, error, f"line {number}")


def lines_of(file: Path) -> Iterator[bytes]:
    """Yield the raw lines of a file, decompressed if it ends in .gz or .zst.

    Raises:
        EOFError, OSError, zlib.error: If the file is missing, truncated or corrupt.
        MissingExtraError: If a .zst file needs zstandard and it is not installed.
    """
    if file.name.endswith(".zst"):
        yield from _zstd_lines(file)
    else:
        with gzip.open(file) if file.name.endswith(".gz") else open(file, "rb") as stream:
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
                    yield from lines
                    chunk = decompressor.unused_data if decompressor.eof else b""
                    decompressor = None if decompressor.eof else decompressor
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from error
    if decompressor is not None:
        raise EOFError("the compressed file ends before its end marker")
    if rest:
        yield rest


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
    number = 0
    try:
        with parquet.ParquetFile(file, memory_map=True) as table:
            columns = choose_columns(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=ROWS_PER_BATCH, columns=columns):
                yield from _batch_rows(batch, file, number, problems)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
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
            columns = choose_columns(reader.schema.names)
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
            problems.note("invalid UTF-8", place, _undecodable(error.object, error), len(error.object))


def _undecodable(data: bytes, error: UnicodeDecodeError) -> str:
    return f"byte 0x{data[error.start]:02x} at {error.start}"


def _import(name: str, file: Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise MissingExtraError(
            f'reading {str(file)!r} requires {package}; install it with pip install "duonlp[data]"'
        ) from error
