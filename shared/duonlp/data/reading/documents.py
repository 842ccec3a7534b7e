"""Documents read from where corpora are kept, one at a time: JSONL, Parquet, Arrow, trees of source files, the Hub."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading import document_files
from duonlp.data.reading import tables as summary_files
from duonlp.data.reading.corpus import text_files
from duonlp.errors import InputError, MissingExtraError

KINDS = ("jsonl", "parquet", "arrow", "tree", "hub", "dataset")
_ENDINGS = {
    ".jsonl": "jsonl", ".jsonl.gz": "jsonl", ".jsonl.zst": "jsonl", ".json.gz": "jsonl", ".json.zst": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
HUB_PREFIX = "hub://"


@dataclass(frozen=True)
class Document:
    """A text and where it is from.

    text: all of it.
    path: in its repository or below the folder that was read; `file:row` for rows that name none.
    repository: such as "owner/name", when the corpus says it.
    licence: an SPDX expression such as "MIT", when the corpus says it.
    """

    text: str
    path: str
    repository: str | None = None
    licence: str | None = None

    @property
    def name(self) -> str:
        """The path, with the repository before it: what tells documents apart, and what a split hashes."""
        return f"{self.repository}:{self.path}" if self.repository else self.path


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a row. One that is None is looked for under the names that public corpora of code use."""

    text: str | None = None
    path: str | None = None
    repository: str | None = None
    licence: str | None = None

    def of(self, names: Iterable[str], source: str) -> dict[str, str]:
        """Returns {"text": column, ...} for the columns there are.

        Raises:
            InputError: a column that was named is not there, or no column of text is.
        """
        names = list(names)
        found = {}
        for part, usual in USUAL_COLUMNS.items():
            given = getattr(self, part)
            if given is not None and given not in names:
                raise InputError(
                    f"{source} has no column {given!r} (given as {part}_field); it has {', '.join(names) or 'none'}"
                )
            column = given or next((name for name in usual if name in names), None)
            if column:
                found[part] = column
        if "text" not in found:
            raise InputError(
                f"{source} has no column {' or '.join(map(repr, USUAL_COLUMNS['text']))}; "
                f"give text_field, one of {', '.join(names) or '(it has no columns)'}"
            )
        return found


USUAL_COLUMNS = {
    "text": ("content", "text", "code"),
    "path": ("path", "file_path", "max_stars_repo_path"),
    "repository": ("repository", "repo_name", "repo", "repository_name", "max_stars_repo_name"),
    "licence": ("licence", "license", "licenses", "max_stars_repo_licenses"),
}


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
    report: CleaningReport | None = None,
) -> Iterator[Document]:
    """Yields the documents of a corpus, in its own order, without ever holding more than a few of them.

    Args:
        source: a file (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .arrow), a folder (of such files, saved by `datasets`, or a
            tree of source files), "hub://owner/name" with "@revision" and "#configuration" after it where needed, a
            `datasets` object or any other iterable of rows, or a list of sources.
        kind: what the source is, one of KINDS, where its name does not say: "jsonl" for a file with another ending, "hub" for a
            name without "hub://", "tree" for a folder of source files that has JSONL files in it.
        text_field: the column of the text; by default the first of "content", "text" and "code" that is there.
        path_field: the column of the path; likewise looked for by default, and `file:row` when there is none.
        repository_field: the column of the repository.
        licence_field: the column of the licence; a list of licences holds all together.
        pattern: of a tree: a glob for file names.
        skip: of a tree: names of folders to leave out.
        split: of a dataset on the Hub.
        streaming: of a dataset on the Hub: read over the network; False downloads it and maps it into memory.
        report: where what cannot be read is counted and named: invalid UTF-8, binary files, corrupt lines and archives.
            Without one, the first of them is an error; nothing is left out in silence.

    Raises:
        InputError: the source is not there or of no known kind, a column is not there (the message lists those that are),
            or, without a report, something cannot be read.
        MissingExtraError: a library that the source needs is not installed.
    """
    columns = Columns(text_field, path_field, repository_field, licence_field)
    problems = document_files.Problems(report)
    if isinstance(source, (list, tuple)) and not (source and isinstance(source[0], Mapping)):
        if not source:
            raise InputError("the list of sources is empty; give at least one file or folder")
        sources = list(source)
    else:
        sources = [source]
    kinds = [_kind(each, kind, pattern) for each in sources]
    return _documents(sources, kinds, columns, problems, pattern, skip, split, streaming)


def _documents(sources, kinds, columns, problems, pattern, skip, split, streaming) -> Iterator[Document]:
    for source, kind in zip(sources, kinds):
        if kind == "tree":
            for path in text_files(source, pattern, skip):
                text = document_files.read_text(path, problems)
                if text is not None:
                    yield Document(text, path.relative_to(source).as_posix())
        elif kind in ("hub", "dataset"):
            rows, name = dataset_rows(source, kind, split, streaming)
            yield from _from_rows(((f"{name}:{i}", row) for i, row in enumerate(rows)), name, columns, problems)
        else:
            for file in _shards(Path(source), kind):
                yield from _from_rows(_file_rows(file, kind, columns, problems), str(file), columns, problems)


def _kind(source: Any, kind: str | None, pattern: str) -> str:
    """Says what a source is, and raises InputError at once when it is not there."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable):
            raise InputError(f"the source is a {type(source).__name__}; give a path, hub://owner/name, or rows")
        return "dataset"
    if kind == "hub" or str(source).startswith(HUB_PREFIX):
        return "hub"
    path = Path(source)
    if not path.exists():
        raise InputError(f"no file or folder {str(source)!r}; a dataset on the Hub is written {HUB_PREFIX}owner/name")
    if kind is not None:
        return kind
    if path.is_file():
        found = _ending_kind(path)
        if found is None:
            raise InputError(
                f"{str(path)!r} ends in none of {', '.join(_ENDINGS)}; say what it is with kind, or give the folder of a tree"
            )
        return found
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return "dataset"
    kinds = {_ending_kind(each) for each in path.iterdir() if each.is_file()} - {None}
    if not kinds:
        return "tree"
    if len(kinds) > 1 or any(path.glob(pattern)):
        others = [pattern] * any(path.glob(pattern))
        raise InputError(
            f"{str(path)!r} has files of several kinds ({', '.join([*sorted(kinds), *others])}); choose one with kind"
        )
    return kinds.pop()


def _ending_kind(path: Path) -> str | None:
    return next((kind for ending, kind in _ENDINGS.items() if path.name.lower().endswith(ending)), None)


def _shards(path: Path, kind: str) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(each for each in path.iterdir() if each.is_file() and _ending_kind(each) == kind)
    if not found:
        raise InputError(f"no {kind} file in {str(path)!r}")
    return found


def _file_rows(file: Path, kind: str, columns: Columns, problems) -> Iterator[tuple[str, dict]]:
    def wanted(names: list[str]) -> list[str]:
        return list(columns.of(names, str(file)).values())

    return summary_files.file_rows(file, kind, wanted, problems)


def _from_rows(rows: Iterable[tuple[str, Any]], source: str, columns: Columns, problems) -> Iterator[Document]:
    for place, row, found in with_columns(rows, source, columns, problems):
        text = row[found["text"]]
        if not isinstance(text, str):
            what = f"column {found['text']!r} is a {type(text).__name__}, not a text"
            problems.note("corrupt row", place, what)
            continue
        if document_files.is_readable(text, place, problems):
            path, repository, licence = (row.get(found.get(part, "")) for part in ("path", "repository", "licence"))
            yield Document(text, str(path or place), str(repository) if repository else None, _licence(licence))


def with_columns(rows: Iterable[tuple[str, Any]], source: str, columns, problems) -> Iterator[tuple[str, Mapping, Any]]:
    """(place, row, its columns) of those of (place, row) that have them; the others are noted.

    A first row without the columns is a mistake of the caller's, a later one the data's.

    Args:
        columns: has ``of(names, source)``, which finds what is wanted among the names of a row's columns.

    Raises:
        InputError: the first row has not the columns.
    """
    known: dict[tuple[str, ...], Any] = {}
    for place, row in rows:
        if not isinstance(row, Mapping):
            problems.note("corrupt row", place, f"it is a {type(row).__name__}, not an object with columns")
            continue
        names = tuple(row)
        if names not in known:
            try:
                known[names] = columns.of(names, source)
            except InputError as error:
                if not known:
                    raise
                problems.note("corrupt row", place, error.message)
                continue
        yield place, row, known[names]


def _licence(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        return " AND ".join(f"({each})" for each in value) or None
    return str(value) if value else None


def dataset_rows(source: Any, kind: str, split: str | None, streaming: bool) -> tuple[Iterable, str]:
    """The rows of a dataset that is in memory, was saved ("dataset"), or is on the Hub ("hub"), and what to call it.

    Of split None, {split: rows} of a dataset that has splits.

    Raises:
        MissingExtraError: the datasets library is not here.
        InputError: there is no such dataset, or no such split.
    """
    if kind == "dataset" and not isinstance(source, (str, Path)):
        return source, str(getattr(source, "builder_name", None) or "rows")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f'{str(source)!r} is read with datasets, which is missing; pip install "duonlp[data]"'
        ) from error
    if kind == "dataset":
        loaded = datasets.load_from_disk(str(source))
        if isinstance(loaded, datasets.DatasetDict) and split is not None:
            if split not in loaded:
                raise InputError(f"{str(source)!r} has no split {split!r}; it has {', '.join(loaded)}")
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
        raise InputError(f"the dataset {name!r}{which} cannot be read from the Hub: {error}") from error
    return loaded, f"{name}/{split}" if split is not None else name
