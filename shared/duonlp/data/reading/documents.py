"""Stream documents from data files, trees of source files, saved datasets and the Hugging Face Hub."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading import document_files, tables
from duonlp.data.reading.corpus import text_files
from duonlp.errors import InputError, MissingExtraError
from duonlp.util.files import may_read, unreadable

KINDS = ("jsonl", "parquet", "arrow", "tree", "hub", "dataset")
_ENDINGS = {
    ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".json.gz": "jsonl", ".json.zst": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
HUB_PREFIX = "hub://"


@dataclass(frozen=True)
class Document:
    """A text and its origin.

    Attributes:
        text: The whole text.
        path: Path in its repository or below the folder that was read; `file:row` for rows without a path.
        repository: Repository such as "owner/name", if the corpus states it.
        licence: SPDX expression such as "MIT", if the corpus states it.
    """

    text: str
    path: str
    repository: str | None = None
    licence: str | None = None

    @property
    def name(self) -> str:
        """Path prefixed with the repository: identifies the document, and is what a split hashes."""
        return f"{self.repository}:{self.path}" if self.repository else self.path


USUAL_COLUMNS = {
    "text": ("content", "text", "code"),
    "path": ("path", "file_path", "max_stars_repo_path"),
    "repository": ("repository", "repo_name", "repo", "repository_name", "max_stars_repo_name"),
    "licence": ("licence", "license", "licenses", "max_stars_repo_licenses"),
}
"""Column names that public code corpora use, in order of preference."""

Matched = TypeVar("Matched", covariant=True)


class ColumnMatcher(Protocol[Matched]):
    """Finds the wanted columns among the column names of a row."""

    def of(self, names: Iterable[str], source: str) -> Matched:
        """Return the matched columns; raise InputError, naming `source`, if a required one is missing."""
        ...


@dataclass(frozen=True)
class Columns:
    """Column names of a document's parts; None selects the first of `USUAL_COLUMNS` that is present."""

    text: str | None = None
    path: str | None = None
    repository: str | None = None
    licence: str | None = None

    def of(self, names: Iterable[str], source: str) -> dict[str, str]:
        """Return {"text": column, ...} for the parts that have a column.

        Args:
            names: Column names of a row.
            source: Where the row comes from, for error messages.

        Raises:
            InputError: If a column named explicitly or the text column is missing.
        """
        names = list(names)
        columns = {}
        for part, usual in USUAL_COLUMNS.items():
            requested = getattr(self, part)
            if requested is not None and requested not in names:
                raise InputError(
                    f"{source} has no column {requested!r} (given as {part}_field); its columns are "
                    f"{', '.join(names) or 'none'}"
                )
            column = requested or next((name for name in usual if name in names), None)
            if column:
                columns[part] = column
        if "text" not in columns:
            raise InputError(
                f"{source} has no column {' or '.join(map(repr, USUAL_COLUMNS['text']))}; "
                f"set text_field to one of its columns: {', '.join(names) or 'none'}"
            )
        return columns


def read_documents(
    source: Any,
    *,
    kind: str | None = None,
    text_field: str | None = None,
    path_field: str | None = None,
    repository_field: str | None = None,
    licence_field: str | None = None,
    pattern: str = "*.py",
    skip: frozenset[str] = frozenset(),
    split: str = "train",
    streaming: bool = True,
    encoding: str | None = None,
    report: CleaningReport | None = None,
) -> Iterator[Document]:
    """Yield the documents of a corpus in their original order, holding only a few in memory at a time.

    Args:
        source: A file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrow); a folder of such files, saved
            by `datasets`, or a tree of source files; "hub://owner/name", optionally followed by
            "@revision" and "#configuration"; a `datasets` object or any other iterable of rows; or a
            list of these.
        kind: One of `KINDS`, needed where the name does not tell: "jsonl" for a file with another
            ending, "hub" for a name without "hub://", "tree" for a folder of source files that also
            holds JSONL files.
        text_field: Text column (default: the first of "content", "text" and "code" that is present).
        path_field: Path column (default: the first usual name that is present; without one, the path is
            `file:row`).
        repository_field: Repository column (default: the first usual name that is present).
        licence_field: License column (default: the first usual name that is present). Licenses in a
            list all apply.
        pattern: Glob for file names in a tree.
        skip: Names of folders in a tree to leave out.
        split: Split of a dataset on the Hub.
        streaming: Stream a dataset from the Hub; False downloads and memory-maps it.
        encoding: Encoding of text files and JSONL files, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        report: Counts unreadable input with examples: invalid UTF-8, binary files, corrupt lines and
            archives. Without a report the first such problem raises; nothing is dropped silently.

    Raises:
        InputError: If the source does not exist or is of unknown kind, a column is missing (the message
            lists the available ones), or, without a report, something is unreadable.
        MissingExtraError: If a library that the source needs is not installed.
    """
    columns = Columns(text_field, path_field, repository_field, licence_field)
    problems = document_files.Problems(report)
    if isinstance(source, (list, tuple)) and not (source and isinstance(source[0], Mapping)):
        if not source:
            raise InputError("the list of sources is empty; give at least one file or folder")
        sources = list(source)
    else:
        sources = [source]
    kinds = [_detect_kind(source, kind, pattern) for source in sources]
    text = document_files.TextFormat(encoding)
    for source, source_kind in zip(sources, kinds):
        text.check(source_kind, source)
    return _documents(sources, kinds, columns, problems, text, pattern, skip, split, streaming)


def _documents(
    sources: list[Any],
    kinds: list[str],
    columns: Columns,
    problems: document_files.Problems,
    text_format: document_files.TextFormat,
    pattern: str,
    skip: frozenset[str],
    split: str,
    streaming: bool,
) -> Iterator[Document]:
    for source, kind in zip(sources, kinds):
        if kind == "tree":
            for path in text_files(source, pattern, skip, lambda error: problems.note_file(error.filename, error)):
                text = document_files.read_text(path, problems, text_format.encoding)
                if text is not None:
                    yield Document(text, path.relative_to(source).as_posix())
        elif kind in ("hub", "dataset"):
            rows, name = dataset_rows(source, kind, split, streaming)
            numbered_rows = ((f"{name}:{i}", row) for i, row in enumerate(rows))
            yield from _documents_from_rows(numbered_rows, name, columns, problems)
        else:
            for file in _shard_files(Path(source), kind):
                rows = _file_rows(file, kind, columns, problems, text_format)
                yield from _documents_from_rows(rows, str(file), columns, problems)


def _detect_kind(source: Any, kind: str | None, pattern: str) -> str:
    """Return the kind of a source, one of `KINDS`; raise InputError if it does not exist or is ambiguous."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise InputError(
                f"source has type {type(source).__name__}; give a path, {HUB_PREFIX}owner/name or an iterable of rows"
            )
        return "dataset"
    if kind == "hub" or str(source).startswith(HUB_PREFIX):
        return "hub"
    path = Path(source)
    if not may_read(path):
        raise InputError(
            f"source {str(source)!r} does not exist; give a file, a folder, or {HUB_PREFIX}owner/name for a dataset on the Hub"
        )
    if kind is not None:
        return kind
    if path.is_file():
        file_kind = _kind_from_ending(path)
        if file_kind is None:
            raise InputError(
                f"{str(path)!r} has an unsupported ending; expected {', '.join(_ENDINGS)}, or pass kind, or give the "
                "folder of a source tree"
            )
        return file_kind
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return "dataset"
    detected = {_kind_from_ending(file) for file in path.iterdir() if file.is_file()}
    kinds = sorted(file_kind for file_kind in detected if file_kind is not None)
    if not kinds:
        return "tree"
    if len(kinds) > 1 or any(path.glob(pattern)):
        kinds += [pattern] * any(path.glob(pattern))
        raise InputError(f"{str(path)!r} contains several kinds of files ({', '.join(kinds)}); pass kind to select one")
    return kinds[0]


def _kind_from_ending(path: Path) -> str | None:
    return next((kind for ending, kind in _ENDINGS.items() if path.name.lower().endswith(ending)), None)


def _shard_files(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.iterdir() if file.is_file() and _kind_from_ending(file) == kind)
    if not files:
        raise InputError(f"no {kind} file in {str(path)!r}; give another folder or another kind")
    return files


def _file_rows(
    file: Path,
    kind: str,
    columns: Columns,
    problems: document_files.Problems,
    text: document_files.TextFormat,
) -> Iterator[tuple[str, dict[str, Any]]]:
    def choose_columns(names: list[str]) -> list[str]:
        return list(columns.of(names, str(file)).values())

    return tables.file_rows(file, kind, choose_columns, problems, text)


def _documents_from_rows(
    rows: Iterable[tuple[str, Any]], source: str, columns: Columns, problems: document_files.Problems
) -> Iterator[Document]:
    for place, row, names in with_columns(rows, source, columns, problems):
        text = row[names["text"]]
        if not isinstance(text, str):
            detail = f"column {names['text']!r} has type {type(text).__name__}; expected str"
            problems.note("corrupt row", place, detail)
            continue
        if document_files.is_readable(text, place, problems):
            path, repository, licence = (row.get(names.get(part, "")) for part in ("path", "repository", "licence"))
            repository, licence = str(repository) if repository else None, _join_licences(licence)
            origin = (str(path or ""), repository or "", licence or "")
            if all(document_files.is_readable(part, place, problems) for part in origin):
                yield Document(text, str(path or place), repository, licence)


def with_columns(
    rows: Iterable[tuple[str, Any]],
    source: str,
    columns: ColumnMatcher[Matched],
    problems: document_files.Problems,
) -> Iterator[tuple[str, Mapping[str, Any], Matched]]:
    """Yield (place, row, matched columns) for each row that has the wanted columns; note the others.

    Missing columns in the first row are the caller's error and raise; in later rows they are bad data
    and are noted.

    Args:
        rows: Pairs of place, such as "file:3", and row.
        source: Where the rows come from, for error messages.
        columns: Finds the wanted columns among those of a row.
        problems: Notes rows without the wanted columns.

    Raises:
        InputError: If the first row lacks a wanted column.
    """
    matches: dict[tuple[str, ...], Matched] = {}
    for place, row in rows:
        if not isinstance(row, Mapping):
            problems.note("corrupt row", place, f"row has type {type(row).__name__}; expected an object with columns")
            continue
        names = tuple(row)
        if names not in matches:
            try:
                matches[names] = columns.of(names, source)
            except InputError as error:
                if not matches:
                    raise
                problems.note("corrupt row", place, error.message)
                continue
        yield place, row, matches[names]


def _join_licences(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return " AND ".join(f"({licence})" for licence in value) or None
    return str(value) if value else None


def dataset_rows(source: Any, kind: str, split: str | None, streaming: bool) -> tuple[Any, str]:
    """Return the rows of a dataset and its name.

    Args:
        source: Rows in memory, the folder of a saved dataset, or
            "hub://owner/name@revision#configuration".
        kind: "dataset" for rows in memory and saved datasets, "hub" for the Hub.
        split: Split to read. None returns a mapping {split: rows} where the dataset has splits.
        streaming: Stream a dataset from the Hub instead of downloading it.

    Raises:
        MissingExtraError: If `datasets` is not installed.
        InputError: If the dataset or the split does not exist, or cannot be read.
    """
    if kind == "dataset" and not isinstance(source, (str, Path)):
        return source, str(getattr(source, "builder_name", None) or "rows")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f'reading {str(source)!r} requires datasets; install it with pip install "duonlp[data]"'
        ) from error
    loaded: Any
    if kind == "dataset":
        may_read(source)
        try:
            loaded = datasets.load_from_disk(str(source))
        except OSError as error:
            if error.errno is None:
                raise InputError(
                    f"{str(source)!r} cannot be read as a saved dataset: {error}; save it again"
                ) from error
            raise unreadable(error.filename or source, error) from error
        if isinstance(loaded, datasets.DatasetDict) and split is not None:
            if split not in loaded:
                raise InputError(f"{str(source)!r} has no split {split!r}; it has {', '.join(map(str, loaded))}")
            loaded = loaded[split]
        return loaded, Path(source).name
    name, _, configuration = str(source).removeprefix(HUB_PREFIX).partition("#")
    name, _, revision = name.partition("@")
    try:
        loaded = datasets.load_dataset(
            name, configuration or None, split=split, revision=revision or None, streaming=streaming
        )
    except (OSError, ValueError) as error:
        which = f" (split {split!r})" if split is not None else ""
        raise InputError(f"cannot load dataset {name!r}{which} from the Hub: {error}") from error
    return loaded, f"{name}/{split}" if split is not None else name
