"""Open the sources of labeled texts (files, folders, JSON with splits, saved datasets, the Hub) as tables of rows."""

import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from duonlp.data.reading import document_files, documents
from duonlp.data.reading import tables as summary_files
from duonlp.data.reading.document_files import UTF8, TextFormat
from duonlp.data.reading.tables import ALL, SPLIT_NAMES
from duonlp.errors import InputError
from duonlp.util.files import may_read
from duonlp.util.reading import check_encoding, is_unicode, parse_json
from duonlp.util.suggestions import nearest

HUB_NAMES = {
    "clinc_oos": "clinc/clinc_oos", "clinc/clinc_oos": "clinc/clinc_oos",
    "squad": "rajpurkar/squad", "rajpurkar/squad": "rajpurkar/squad",
    "squad_v2": "rajpurkar/squad_v2", "rajpurkar/squad_v2": "rajpurkar/squad_v2",
}  # fmt: skip
"""Hub datasets that need no "hub://" prefix, with their full names."""

HUB_CONFIGURATIONS = {"clinc/clinc_oos": "plus"}
"""Default configurations of Hub datasets."""

OUT_OF_SCOPE = "oos_"
"""Prefix of CLINC150's splits of out-of-scope queries."""

PAIR = ("text", "intent")
"""Column names for rows that are lists of two values, named as in the Hub's version of CLINC150."""


@dataclass(frozen=True)
class Table:
    """The rows of a split.

    Attributes:
        rows: (location, row) pairs, which can be iterated over once.
        name: Name of the table in messages.
        features: Column name -> feature of the `datasets` library, or its JSON form, where the dataset declares one.
    """

    rows: Iterable[tuple[str, Any]]
    name: str
    features: Mapping[str, Any] = field(default_factory=dict)


class ColumnFinder(Protocol):
    """Finds the columns of the text and the label, such as `LabelledColumns`."""

    def of(self, names: Iterable[str], source: str) -> tuple[tuple[str, ...], str]:
        """Return the text columns and the label column among these names; raise InputError if one is missing."""
        ...


SplitOpener = Callable[[str | None, ColumnFinder, document_files.Problems], Table]
"""(split, columns, problems) -> table of the split. Raises InputError if the split does not exist."""


def open_source(source: Any, config: str | None = None, text: TextFormat = UTF8) -> SplitOpener:
    """Return a function that opens the splits of a source.

    Args:
        source: File, folder, name on the Hub or rows, see :func:`duonlp.data.labelled.texts.read_labelled_texts`.
        config: Configuration of a dataset on the Hub.
        text: How files of text are written.

    Raises:
        InputError: The source does not exist or its kind is unknown, or an option of `text` has no effect on it.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable) or isinstance(source, bytes):
            raise InputError(
                f"the source is a {type(source).__name__}; give a file, a folder, hub://owner/name, or a list of rows"
            )
        _check_no_config(config, "the source")
        text.check("rows", source)
        if isinstance(source, Mapping):
            return _open_splits(source, "the rows")
        return _open_rows(source)
    path = _expand(source)
    name = str(source).removeprefix(documents.HUB_PREFIX)
    on_hub = name.partition("@")[0].partition("#")[0] in HUB_NAMES or config is not None
    if str(source).startswith(documents.HUB_PREFIX) or (on_hub and not may_read(path)):
        text.check("hub", source)
        return _open_hub(name, config)
    if not may_read(path):
        raise InputError(
            f"no file or folder {str(source)!r}; for a dataset on the Hub, write {documents.HUB_PREFIX}owner/name"
        )
    _check_no_config(config, repr(str(source)))
    if _is_saved_dataset(path):
        text.check("saved", source)
        return _open_dataset(path, "dataset", str(path))
    if path.is_file() and summary_files.ending_kind(path) == "json":
        splits = read_json_splits(path, text.encoding)
        if splits is not None:
            text.check("json", source)
            return _open_splits(splits, str(path))
    return _open_files(path, text)


def _expand(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))


def _check_no_config(config: str | None, source: str) -> None:
    if config is not None:
        raise InputError(f"config is {config!r}, but {source} is not a dataset on the Hub; drop config")


def _open_rows(source: Iterable, source_name: str | None = None) -> SplitOpener:
    """Open rows without splits."""

    def open_split(split: str | None, columns: ColumnFinder, problems: document_files.Problems) -> Table:
        if split not in (None, ALL):
            subject = "the rows have" if source_name is None else f"{source_name!r} has"
            raise InputError(f"split is {split!r}, but {subject} no splits; drop split, or select the rows yourself")
        name = source_name or str(getattr(source, "builder_name", None) or "rows")
        return Table(_number_rows(source, name), name, _features(source))

    return open_split


def is_one_table(source: str | Path, encoding: str | None = None) -> bool:
    """Return whether a source on disk has no splits: a single file, or files whose names name no split.

    Args:
        source: File, folder, or name on the Hub.
        encoding: Encoding of files of text; None for UTF-8.

    Raises:
        InputError: A folder has files of several kinds, or no readable file.
    """
    path, encoding = _expand(source), check_encoding(encoding)
    if not may_read(path):  # on the Hub
        return False
    if path.is_file():
        return summary_files.ending_kind(path) != "json" or read_json_splits(path, encoding) is None
    if _is_saved_dataset(path):
        return not (path / "dataset_dict.json").is_file()
    files = summary_files.split_files(path, ALL, summary_files.kind_of(path))
    return not any(summary_files.split_of(file.name) for file in files)


def _is_saved_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _open_splits(splits: Mapping[str, Iterable], source: str) -> SplitOpener:
    """Open {split: rows}."""

    def open_split(split: str | None, columns: ColumnFinder, problems: document_files.Problems) -> Table:
        selected = select_splits(split, list(splits), source)
        rows = itertools.chain.from_iterable(_number_rows(splits[name], f"{source}:{name}") for name in selected)
        return Table(rows, f"{source}:{selected[0]}", _features(splits[selected[0]]))

    return open_split


def _number_rows(rows: Iterable, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (name:number, row); lists of two values become dicts with the columns of PAIR."""
    for number, row in enumerate(rows):
        if isinstance(row, (list, tuple)) and len(row) == len(PAIR):
            row = dict(zip(PAIR, row))
        yield f"{name}:{number}", row


def select_splits(split: str | None, splits: list[str], source: str) -> list[str]:
    """Return the splits that a name refers to, those of out-of-scope queries last.

    An exact name wins over a synonym: "val" and "dev" also name "validation".

    Raises:
        InputError: The split does not exist, or none was named and there are several.
    """
    listed = ", ".join(map(repr, splits)) or "none"
    if split == ALL:
        return splits
    if split is None:
        if len(splits) != 1:
            raise InputError(f"{source!r} has the splits {listed}; name one, or {ALL!r}")
        return splits
    if split in splits and split.startswith(OUT_OF_SCOPE):
        return [split]
    standard = SPLIT_NAMES.get(split)
    synonyms = [name for name in splits if standard and SPLIT_NAMES.get(name.removeprefix(OUT_OF_SCOPE)) == standard]
    in_scope = [split] if split in splits else [name for name in synonyms if not name.startswith(OUT_OF_SCOPE)][:1]
    selected = in_scope + [name for name in synonyms if name.startswith(OUT_OF_SCOPE)]
    if not selected:
        raise InputError(f"{source!r} has no split {split!r}; it has {listed}{nearest(split, splits)}")
    return selected


def read_json_splits(file: Path, encoding: str | None = None) -> dict[str, list] | None:
    """Read a JSON file of the form {split: rows}; return None for any other content.

    Other entries next to splits with standard names, such as a version or a description, are ignored.

    Args:
        file: The file.
        encoding: Its encoding; None for UTF-8.

    Raises:
        InputError: The file cannot be read.
    """
    try:
        lines = document_files.text_lines(file, encoding)
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip()[:1] != "{":
            return None
        # JSON Lines: the first object has no splits and more lines follow, so the rest need not be read.
        if first.rstrip().endswith("}") and _find_splits(_parse(first)) is None and next(lines, None) is not None:
            return None
        content = "".join([first, *lines])
    except UnicodeError as error:
        raise InputError(
            f"{str(file)!r} is not {encoding} text ({error})",
            remedy="pass the file's encoding, such as encoding='cp1252'",
            argument="encoding",
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error or type(error).__name__
        raise InputError(f"{str(file)!r} cannot be read: {reason}; give a readable JSON file") from error
    splits = _find_splits(_parse(content))
    if splits is not None and not is_unicode(content):
        raise InputError(
            f"{str(file)!r} is not {(encoding or 'utf-8').upper()} text",
            remedy="pass the file's encoding, such as encoding='cp1252'",
            argument="encoding",
        )
    return splits


def _parse(text: str) -> Any:
    """Return the value of a JSON text; None if it is invalid."""
    try:
        return parse_json(text, unique=True)
    except ValueError:
        return None


def _find_splits(value: Any) -> dict[str, list] | None:
    """Return the entries of a JSON object that map splits to lists of rows; None if it is a row itself."""
    lists = {name: rows for name, rows in value.items() if isinstance(rows, list)} if isinstance(value, dict) else {}
    splits = {name: rows for name, rows in lists.items() if all(isinstance(row, (list, dict)) for row in rows)}
    if not splits or len(splits) == len(value):
        return splits or None
    # A row may hold a list of objects too, such as its labels, but not under a name such as "train".
    standard = {name for name in lists if name.removeprefix(OUT_OF_SCOPE) in SPLIT_NAMES}
    if standard.isdisjoint(splits):
        return None
    return {name: rows for name, rows in lists.items() if name in splits or name in standard}


def _open_hub(name: str, config: str | None) -> SplitOpener:
    name, _, configuration = name.partition("#")
    name, _, revision = name.partition("@")
    if config is not None and configuration not in ("", config):
        raise InputError(
            f"config is {config!r}, but the dataset's name specifies {configuration!r}; give only one of them"
        )
    name = HUB_NAMES.get(name, name)
    configuration = config or configuration or HUB_CONFIGURATIONS.get(name, "")
    return _open_dataset(f"{documents.HUB_PREFIX}{name}@{revision}#{configuration}", "hub", name)


def _open_dataset(source: Any, kind: str, source_name: str) -> SplitOpener:
    """Open a dataset that the `datasets` library reads, saved ("dataset") or on the Hub ("hub")."""

    def open_split(split: str | None, columns: ColumnFinder, problems: document_files.Problems) -> Table:
        if split is None and kind == "hub":
            raise InputError(f'{source_name!r} has several splits; name one, such as "train", "validation" or "test"')
        # Split expressions, "train[:10%]" or "train+test", are for `datasets` to evaluate.
        expression = split if kind == "hub" and split is not None and any(sign in split for sign in "[+") else None
        try:
            # All splits are downloaded and memory-mapped anyway, so reading their names costs nothing.
            rows, name = documents.dataset_rows(source, kind, expression, streaming=False)
        except RuntimeError as error:  # a dataset script, which `datasets` no longer runs since version 4
            raise InputError(
                f"the dataset {source_name!r} cannot be read: {error}; use a dataset that consists of data files"
            ) from error
        if expression is not None:
            return _open_rows(rows, name)(None, columns, problems)
        if isinstance(rows, Mapping):
            return _open_splits(rows, source_name)(split, columns, problems)
        return _open_rows(rows, source_name)(split, columns, problems)

    return open_split


def _open_files(path: Path, text: TextFormat) -> SplitOpener:
    endings = f"{', '.join(summary_files.ENDINGS)} (optionally with {' or '.join(summary_files.COMPRESSIONS)})"
    if path.is_file():
        kind = summary_files.ending_kind(path)
        if kind is None:
            raise InputError(f"{str(path)!r} ends in none of {endings}; rename it, or pass its rows")
    else:
        files = [file for file in (*path.iterdir(), *path.glob("*/*")) if file.is_file()]
        if not any(map(summary_files.ending_kind, files)):
            raise InputError(f"{str(path)!r} has no file that ends in {endings}; give a file or folder that does")
        kind = summary_files.kind_of(path)
    text.check(kind, path)

    def open_split(split: str | None, columns: ColumnFinder, problems: document_files.Problems) -> Table:
        files = summary_files.split_files(path, split, kind)
        rows = itertools.chain.from_iterable(_file_rows(file, kind, columns, problems, text) for file in files)
        return Table(rows, str(files[0]), _file_features(files[0], kind))

    return open_split


def _file_rows(
    file: Path, kind: str, columns: ColumnFinder, problems: document_files.Problems, text: TextFormat
) -> Iterator[tuple[str, Any]]:
    def column_names(names: list[str]) -> list[str]:
        texts, label = columns.of(names, str(file))
        return list(dict.fromkeys([*texts, *([label] if label else []), *(["id"] if "id" in names else [])]))

    return summary_files.file_rows(file, kind, column_names, problems, text)


def _features(rows: Any) -> Mapping[str, Any]:
    return getattr(rows, "features", None) or {}


def _file_features(file: Path, kind: str) -> Mapping[str, Any]:
    """Return the features that `datasets` stores in the schema of its Parquet and Arrow files."""
    if kind not in ("parquet", "arrow"):
        return {}
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        return {}  # reading the rows raises MissingExtraError
    try:
        if kind == "parquet":
            schema = parquet.read_schema(file)
        else:
            with pyarrow.memory_map(str(file)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                schema = (ipc.open_file if is_file else ipc.open_stream)(source).schema
        metadata = parse_json((schema.metadata or {}).get(b"huggingface", b"{}"))
        return metadata.get("info", {}).get("features") or {}
    except (pyarrow.ArrowException, OSError, ValueError, AttributeError):  # the last: not an object
        return {}


def class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a ClassLabel feature or a list of them; None for any other feature."""
    if isinstance(feature, list):
        return class_names(feature[0]) if feature else None
    get = feature.get if isinstance(feature, Mapping) else lambda name: getattr(feature, name, None)
    inner = get("feature")
    if inner is not None:
        return class_names(inner)
    names = get("names")
    return tuple(names) if names else None
