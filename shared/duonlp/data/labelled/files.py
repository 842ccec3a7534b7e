"""Where texts and labels are kept: files, folders, JSON of several splits, saved datasets and the Hub, all as rows."""

import itertools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from duonlp.data.reading import document_files, documents
from duonlp.data.reading import tables as summary_files
from duonlp.data.reading.tables import ALL, SPLIT_NAMES
from duonlp.errors import InputError
from duonlp.util.suggestions import nearest

HUB_NAMES = {"clinc_oos": "clinc/clinc_oos", "clinc/clinc_oos": "clinc/clinc_oos"}
"""Datasets of the Hub that need no "hub://" before them."""
HUB_CONFIGURATIONS = {"clinc/clinc_oos": "plus"}
"""The configuration that is read unless one is named."""

OUT_OF_SCOPE = "oos_"
"""What the names of CLINC150's splits of queries that are out of scope begin with."""
PAIR = ("text", "intent")
"""The columns of rows that are a list of two, as the Hub calls CLINC150's."""


@dataclass(frozen=True)
class Table:
    """The rows of a split.

    rows: (place, row), read once.
    name: what to call it in messages.
    features: column -> what the dataset says of it: a feature of `datasets`, or that as JSON.
    """

    rows: Iterable[tuple[str, Any]]
    name: str
    features: Mapping[str, Any] = field(default_factory=dict)


Open = Callable[[str | None, Any, document_files.Problems], Table]
"""(split, columns, problems) -> its table; InputError when there is no such split. `columns` has ``of(names, source)``."""


def open_source(source: Any, config: str | None = None) -> Open:
    """Says what a source is, and returns what opens its splits; see `labelled_texts.read_labelled_texts`.

    Raises:
        InputError: it is not there, or of no known kind.
    """
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable) or isinstance(source, bytes):
            raise InputError(
                f"the source is a {type(source).__name__}; give a file, a folder, hub://owner/name, or a list of rows"
            )
        _no_config(config, "rows")
        if isinstance(source, Mapping):
            return _by_split(source, "the rows")
        return _plain(source)
    path = _path(source)
    name = str(source).removeprefix(documents.HUB_PREFIX)
    known = name.partition("@")[0].partition("#")[0] in HUB_NAMES or config is not None
    if str(source).startswith(documents.HUB_PREFIX) or (known and not path.exists()):
        return _hub(name, config)
    if not path.exists():
        raise InputError(
            f"no file or folder {str(source)!r}; a dataset on the Hub is written {documents.HUB_PREFIX}owner/name"
        )
    _no_config(config, repr(str(source)))
    if _is_saved(path):
        return _saved(path)
    if path.is_file() and summary_files.ending_kind(path) == "json":
        splits = json_splits(path)
        if splits is not None:
            return _by_split(splits, str(path))
    return _files(path)


def _path(source: str | Path) -> Path:
    return Path(os.path.expanduser(source))


def _no_config(config: str | None, source: str) -> None:
    if config is not None:
        raise InputError(f"config is {config!r}, and {source} is no dataset on the Hub; leave it out")


def _plain(source: Iterable, called: str | None = None) -> Open:
    def table(split, columns, problems) -> Table:
        if split not in (None, ALL):
            have = "rows have" if called is None else f"{called!r} has"
            raise InputError(f"split is {split!r}, and {have} none; leave it out, or choose the rows yourself")
        name = called or str(getattr(source, "builder_name", None) or "rows")
        return Table(_numbered(source, name), name, _features(source))

    return table


def is_one_table(source: str | Path) -> bool:
    """Whether files, a folder or a saved dataset have no splits to choose from: one file, or files whose names say none.

    Raises:
        InputError: a folder has files of several kinds, or none.
    """
    path = _path(source)
    if not path.exists():  # the Hub's
        return False
    if path.is_file():
        return summary_files.ending_kind(path) != "json" or json_splits(path) is None
    if _is_saved(path):
        return not (path / "dataset_dict.json").is_file()
    found = summary_files.split_files(path, ALL, summary_files.kind_of(path))
    return not any(summary_files.split_of(file.name) for file in found)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _by_split(splits: Mapping[str, Iterable], source: str) -> Open:
    def table(split, columns, problems) -> Table:
        chosen = chosen_splits(split, list(splits), source)
        rows = itertools.chain.from_iterable(_numbered(splits[name], f"{source}:{name}") for name in chosen)
        return Table(rows, f"{source}:{chosen[0]}", _features(splits[chosen[0]]))

    return table


def _numbered(rows: Iterable, name: str) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(rows):
        if isinstance(row, (list, tuple)) and len(row) == len(PAIR):
            row = dict(zip(PAIR, row))
        yield f"{name}:{number}", row


def chosen_splits(split: str | None, found: list[str], source: str) -> list[str]:
    """Which of the splits there are is meant, its queries that are out of scope last.

    Raises:
        InputError: there is none, or none was named and there are several.
    """
    named = ", ".join(map(repr, found)) or "none"
    if split == ALL:
        return found
    if split is None:
        if len(found) != 1:
            raise InputError(f"{source!r} has the splits {named}; name one, or {ALL!r}")
        return found
    if split in found and split.startswith(OUT_OF_SCOPE):
        return [split]
    whole = SPLIT_NAMES.get(split)
    alike = [name for name in found if whole and SPLIT_NAMES.get(name.removeprefix(OUT_OF_SCOPE)) == whole]
    within = [split] if split in found else [name for name in alike if not name.startswith(OUT_OF_SCOPE)][:1]
    chosen = within + [name for name in alike if name.startswith(OUT_OF_SCOPE)]
    if not chosen:
        raise InputError(f"{source!r} has no split {split!r}; it has {named}{nearest(split, found)}")
    return chosen


def json_splits(file: Path) -> dict[str, list] | None:
    """The splits of a JSON file {split: rows}, read at once; None when it is none.

    What is beside splits with usual names, such as a version or a description, is left out.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = document_files.lines_of(file)
        first = next((line for line in lines if line.strip(b" \t\r\n\xef\xbb\xbf")), b"")
        if first.lstrip(b" \t\xef\xbb\xbf")[:1] != b"{":
            return None
        # The rest of a file of an object a line is not looked at.
        if first.rstrip().endswith(b"}") and _splits_in(_parsed(first)) is None and next(lines, None) is not None:
            return None
        value = _parsed(b"".join([first, *document_files.lines_of(file)][1:]))
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{str(file)!r} cannot be read: {error or type(error).__name__}") from error
    return _splits_in(value)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None


def _splits_in(value: Any) -> dict[str, list] | None:
    """What of it is {split: [rows]}, each row a list or an object; None of a row of its own."""
    lists = {name: each for name, each in value.items() if isinstance(each, list)} if isinstance(value, dict) else {}
    splits = {name: rows for name, rows in lists.items() if all(isinstance(row, (list, dict)) for row in rows)}
    if not splits or len(splits) == len(value):
        return splits or None
    # A row may have a list of objects too, such as its labels, but none that is called "train".
    usual = {name for name in lists if name.removeprefix(OUT_OF_SCOPE) in SPLIT_NAMES}
    if usual.isdisjoint(splits):
        return None
    return {name: rows for name, rows in lists.items() if name in splits or name in usual}


def _hub(name: str, config: str | None) -> Open:
    name, _, configuration = name.partition("#")
    name, _, revision = name.partition("@")
    if config is not None and configuration not in ("", config):
        raise InputError(f"config is {config!r}, and the name of the dataset says {configuration!r}; give one of them")
    name = HUB_NAMES.get(name, name)
    configuration = config or configuration or HUB_CONFIGURATIONS.get(name, "")
    return _datasets(f"{documents.HUB_PREFIX}{name}@{revision}#{configuration}", "hub", name)


def _saved(path: Path) -> Open:
    return _datasets(path, "dataset", str(path))


def _datasets(source: Any, kind: str, called: str) -> Open:
    def table(split, columns, problems) -> Table:
        if split is None and kind == "hub":
            raise InputError(f'{called!r} has several splits; name one, such as "train", "validation" or "test"')
        part = split if kind == "hub" and any(sign in split for sign in "[+") else None  # "train[:10%]", "train+test"
        try:
            # All splits are downloaded whichever is named, and mapped: what they are called is known for nothing.
            rows, name = documents.dataset_rows(source, kind, part, streaming=False)
        except RuntimeError as error:  # a dataset that is a program, which no version of `datasets` from 4 on runs
            raise InputError(f"the dataset {called!r} cannot be read: {error}; give one that is files alone") from error
        if part is not None:
            return _plain(rows, name)(None, columns, problems)
        return (_by_split if isinstance(rows, Mapping) else _plain)(rows, called)(split, columns, problems)

    return table


def _files(path: Path) -> Open:
    endings = f"{', '.join(summary_files.ENDINGS)} (or such with {' or '.join(summary_files.COMPRESSIONS)})"
    if path.is_file():
        kind = summary_files.ending_kind(path)
        if kind is None:
            raise InputError(f"{str(path)!r} ends in none of {endings}; rename it, or give its rows")
    else:
        inside = [file for file in (*path.iterdir(), *path.glob("*/*")) if file.is_file()]
        if not any(map(summary_files.ending_kind, inside)):
            raise InputError(f"{str(path)!r} has no file that ends in {endings}; give a folder or a file that has")
        kind = summary_files.kind_of(path)

    def table(split, columns, problems) -> Table:
        files = summary_files.split_files(path, split, kind)
        rows = itertools.chain.from_iterable(_file_rows(file, kind, columns, problems) for file in files)
        return Table(rows, str(files[0]), _file_features(files[0], kind))

    return table


def _file_rows(file: Path, kind: str, columns, problems) -> Iterator[tuple[str, Any]]:
    def wanted(names: list[str]) -> list[str]:
        texts, label = columns.of(names, str(file))
        return list(dict.fromkeys([*texts, label, *(["id"] if "id" in names else [])]))

    return summary_files.file_rows(file, kind, wanted, problems)


def _features(rows: Any) -> Mapping[str, Any]:
    return getattr(rows, "features", None) or {}


def _file_features(file: Path, kind: str) -> Mapping[str, Any]:
    """The features that `datasets` writes into the schema of its files."""
    if kind not in ("parquet", "arrow"):
        return {}
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        return {}  # reading the rows says so
    try:
        if kind == "parquet":
            schema = parquet.read_schema(file)
        else:
            with pyarrow.memory_map(str(file)) as source:
                is_file = source.read(6) == b"ARROW1"
                source.seek(0)
                schema = (ipc.open_file if is_file else ipc.open_stream)(source).schema
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        return described.get("info", {}).get("features") or {}
    except (pyarrow.ArrowException, OSError, ValueError):
        return {}


def class_names(feature: Any) -> tuple[str, ...] | None:
    """The names of a column's classes: of a ClassLabel, or of a list of them; None of any other feature."""
    if isinstance(feature, list):
        return class_names(feature[0]) if feature else None
    get = feature.get if isinstance(feature, Mapping) else lambda name: getattr(feature, name, None)
    inner = get("feature")
    if inner is not None:
        return class_names(inner)
    names = get("names")
    return tuple(names) if names else None
