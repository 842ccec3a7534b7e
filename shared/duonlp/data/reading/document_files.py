"""Rows of the files that corpora come in, and what to do about those that cannot be read."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.errors import InputError, MissingExtraError

ROWS_AT_A_TIME = 1024


class Problems:
    """What cannot be read: counted in the report under its reason, or raised where there is no report to say it in."""

    def __init__(self, report: CleaningReport | None):
        self.report = report

    def note(self, reason: str, place: str, what: str, number_of_bytes: int = 0) -> None:
        """Counts one, or raises InputError."""
        if self.report is None:
            remedy = "fix it, or pass report=CleaningReport() to count and drop such records"
            raise InputError(f"{place}: {reason}: {what}", remedy=remedy, argument="report")
        self.report.drop(reason, f"{place}: {what}", number_of_bytes)


def is_readable(text: str, place: str, problems: Problems) -> bool:
    """Whether a text can be written as UTF-8 and is none of a binary file; notes it when not."""
    if "\0" in text:
        problems.note("binary", place, f"a zero byte at character {text.index(chr(0))}", len(text))
        return False
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            problems.note("invalid UTF-8", place, f"half of a surrogate pair at character {error.start}", len(text))
            return False
    return True


def read_text(path: Path, problems: Problems) -> str | None:
    """Returns a file's text, line ends as \\n and without a byte order mark; None (noted) when it is none."""
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.note("unreadable", str(path), error.strerror or type(error).__name__)
        return None
    if b"\0" in data:
        problems.note("binary", str(path), f"a zero byte at {data.index(0)}", len(data))
        return None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.note("invalid UTF-8", str(path), f"byte 0x{data[error.start]:02x} at {error.start}", len(data))
        return None
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def jsonl_rows(file: Path, problems: Problems) -> Iterator[tuple[str, Any]]:
    """Yields (file:line, value) of each line of a JSONL file, compressed (.gz, .zst) or not; empty lines are none."""
    number = 0
    try:
        for number, line in enumerate(lines_of(file), 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                problems.note("invalid UTF-8", place, f"byte 0x{line[error.start]:02x} at {error.start}", len(line))
            except (json.JSONDecodeError, RecursionError) as error:
                problems.note("corrupt line", place, f"not JSON: {error}", len(line))
            else:
                yield place, value
    except (EOFError, OSError, zlib.error) as error:
        what = f"{error or type(error).__name__}; nothing can be read after line {number}"
        problems.note("corrupt archive", str(file), what)


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file as they are, unpacked where its name ends in .gz or .zst."""
    if file.name.endswith(".zst"):
        yield from _zstd_lines(file)
    else:
        with gzip.open(file) if file.name.endswith(".gz") else open(file, "rb") as stream:
            yield from stream


def _zstd_lines(file: Path) -> Iterator[bytes]:
    """Lines of a zstd file of any number of frames. zstandard's own reader takes a truncated file for a whole one."""
    zstandard = _imported("zstandard", file)
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
    file: Path, wanted: Callable[[list[str]], list[str]], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file:row, columns) of a Parquet file, mapped into memory; `wanted` picks the columns from their names."""
    pyarrow, parquet = _imported("pyarrow", file), _imported("pyarrow.parquet", file)
    number = 0
    try:
        with parquet.ParquetFile(file, memory_map=True) as table:
            columns = wanted(table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns):
                yield from _batch_rows(batch, file, number, problems)
                number += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        problems.note("corrupt archive", str(file), f"{error}; nothing can be read after row {number}")


def arrow_rows(
    file: Path, wanted: Callable[[list[str]], list[str]], problems: Problems
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields (file:row, columns) of an Arrow file (a stream, as `datasets` writes, or a file), mapped into memory."""
    pyarrow, ipc = _imported("pyarrow", file), _imported("pyarrow.ipc", file)
    number = 0
    try:
        with pyarrow.memory_map(str(file)) as source:
            if source.read(6) == b"ARROW1":
                reader = ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            else:
                source.seek(0)
                batches = reader = ipc.open_stream(source)
            columns = wanted(reader.schema.names)
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    piece = batch.select(columns).slice(start, ROWS_AT_A_TIME)
                    yield from _batch_rows(piece, file, number, problems)
                    number += piece.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        problems.note("corrupt archive", str(file), f"{error}; nothing can be read after row {number}")


def _batch_rows(batch, file: Path, before: int, problems: Problems) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:row, row) of a record batch that follows `before` rows; a row with invalid UTF-8 costs no other."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = (batch.slice(i, 1) for i in range(batch.num_rows))
    for number, row in enumerate(rows, before + 1):
        place = f"{file}:{number}"
        try:
            yield place, row if isinstance(row, dict) else row.to_pylist()[0]
        except UnicodeDecodeError as error:
            what = f"byte 0x{error.object[error.start]:02x} at {error.start}"
            problems.note("invalid UTF-8", place, what, len(error.object))


def _imported(name: str, file: Path):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f'{str(file)!r} is read with {name.split(".")[0]}, which is missing; pip install "duonlp[data]"'
        ) from error
