"""Find the splits of datasets kept as files, and read JSON lists and CNN/Daily Mail stories."""

import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from duonlp.data.reading import document_files
from duonlp.data.reading.delimited import csv_rows
from duonlp.data.reading.document_files import UTF8, TextFormat
from duonlp.errors import InputError
from duonlp.util.files import may_read
from duonlp.util.reading import is_unicode, parse_json

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
}  # fmt: skip
"""Split names found in the wild, mapped to `SPLITS`."""

ALL = "all"
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"} | {
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS = (".gz", ".zst")  # not for .parquet and .arrow
STORY = ".story"

_SPLIT = re.compile(rf"(?:^|[._-])({'|'.join(SPLIT_NAMES)})(?=[._-])", re.IGNORECASE)
_SENTENCE_ENDS = (".", "!", "?", "'", "`", '"', "\u2019", "\u201d", ")")


def kind_of(path: Path) -> str:
    """Return the kind of a file or folder, one of `duonlp.data.pairs.summaries.KINDS`.

    Raises:
        InputError: If the kind cannot be determined or a folder holds several kinds.
    """
    if path.is_file():
        kind = ending_kind(path)
        if kind is None:
            raise InputError(
                f"{str(path)!r} has an unsupported ending; expected {', '.join(ENDINGS)} (optionally followed by "
                f"{' or '.join(COMPRESSIONS)})",
                remedy="or pass kind",
                argument="kind",
            )
        return kind
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "saved"
    if StoryFolder.folders_in(path):
        return "stories"
    kinds = sorted({kind for file in _data_files(path) if (kind := ending_kind(file)) is not None})
    if not kinds:
        raise InputError(
            f"{str(path)!r} has neither stories (cnn/stories, dailymail/stories) nor files that end in {', '.join(ENDINGS)} "
            "with a split in their names; give another file or folder"
        )
    if len(kinds) > 1:
        raise InputError(
            f"{str(path)!r} contains several kinds of files ({', '.join(kinds)})",
            remedy="pass kind to select one",
            argument="kind",
        )
    return kinds[0]


def ending_kind(file: Path) -> str | None:
    """Return the kind that a file's ending stands for, or None if it is unknown."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    kind = ENDINGS.get(Path(name).suffix)
    return None if kind in ("parquet", "arrow") and name != file.name.lower() else kind


def split_of(name: str) -> str | None:
    """Return the split in a file's name, one of `SPLITS`: `dialogsum.dev.jsonl.gz` -> "validation"."""
    names = _SPLIT.findall(name)
    return SPLIT_NAMES[names[-1].lower()] if names else None


def split_files(path: Path, split: str | None, kind: str) -> list[Path]:
    """Return the files of a split.

    Args:
        path: A file, which is returned by itself, or a folder that holds the files directly or in one subfolder.
        split: Split by any of `SPLIT_NAMES`, `ALL`, or None where there is only one.
        kind: One of the kinds in `ENDINGS`.

    Raises:
        InputError: If the split does not exist, or there are several and `split` is None.
    """
    wanted = canonical_split(split)
    if path.is_file():
        file_split = split_of(path.name)
        if wanted not in (None, ALL, file_split):
            detail = f"its name says {file_split!r}" if file_split else "its name says none"
            raise InputError(f"split is {split!r} for the file {str(path)!r}, but {detail}; leave the split out")
        return [path]
    files: dict[str, list[Path]] = {}
    for file in _data_files(path):
        if ending_kind(file) == kind:
            files.setdefault(split_of(file.name) or "", []).append(file)
    if not files:
        raise InputError(f"no {kind} file in {str(path)!r}; give another folder or another kind")
    return [file for name in chosen_splits(split, files, str(path)) for file in files[name]]


def canonical_split(split: str | None) -> str | None:
    """Return the name in `SPLITS` of a split ("dev" -> "validation"), or the split itself if it has none."""
    return split if split is None else SPLIT_NAMES.get(split, split)


def chosen_splits(split: str | None, available: Mapping[str, Any], source: str) -> list[str]:
    """Return the keys of `available` that `split` selects, in the order of `SPLITS`.

    Args:
        split: As in `split_files`.
        available: Keyed by split; "" holds what has no split in its name.
        source: Where the splits come from, for error messages.

    Raises:
        InputError: If the split is not available, or there are several and `split` is None.
    """
    splits = [name for name in (*SPLITS, "") if name in available]
    listed = ", ".join(map(repr, filter(None, splits))) or "none"
    if split == ALL:
        return splits
    if split is None:
        if len(splits) > 1:
            raise InputError(f"{source!r} has the splits {listed}; name one, or {ALL!r}")
        return splits
    wanted = SPLIT_NAMES.get(split)
    if wanted is None or wanted not in splits:
        raise InputError(f"{source!r} has no split {split!r}; it has {listed}")
    return [wanted]


def _data_files(folder: Path) -> list[Path]:
    """Return the data files with a split in their names, or else all data files of the folder.

    They are looked for in the folder, then in the one subfolder that has some.
    """
    files = sorted(file for file in folder.iterdir() if file.is_file() and ending_kind(file))
    if split := [file for file in files if split_of(file.name)]:
        return split
    nested, problem = {}, None
    for subfolder in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            may_read(subfolder)
        except InputError as error:
            problem = error
            continue
        split = sorted(
            file for file in subfolder.iterdir() if file.is_file() and ending_kind(file) and split_of(file.name)
        )
        if split:
            nested[subfolder.name] = split
    if problem is not None and not (nested or files):
        raise problem
    if len(nested) > 1:
        raise InputError(f"{str(folder)!r} has splits in several folders ({', '.join(nested)}); give one of them")
    return next(iter(nested.values()), files)


class StoryFolder:
    """Story files of CNN and Daily Mail, with the URL lists that split them.

    Attributes:
        folder: The folder that was given.
        folders: Folders in it that hold .story files.
    """

    def __init__(self, folder: Path):
        """Find the stories.

        Args:
            folder: Folder that holds .story files, `stories`, `cnn/stories` or `dailymail/stories`.

        Raises:
            InputError: If it holds no stories.
        """
        self.folder = folder
        self.folders = self.folders_in(folder)
        if not self.folders:
            raise InputError(
                f"{str(folder)!r} has no {STORY} files, neither directly nor in cnn/stories or dailymail/stories; "
                "give another folder"
            )

    @staticmethod
    def folders_in(folder: Path) -> list[Path]:
        """Return those of cnn/stories, dailymail/stories, the folder itself and stories that hold stories."""
        if not may_read(folder) or not folder.is_dir():
            return []
        candidates = (folder / "cnn" / "stories", folder / "dailymail" / "stories", folder, folder / "stories")
        return [path for path in candidates if may_read(path) and path.is_dir() and next(path.glob(f"*{STORY}"), None)]

    def lists(self) -> dict[str, Path]:
        """Return {split: URL list} from all_train.txt etc., in the folder, its `url_lists` or its parents."""
        lists = {}
        for folder in (self.folder, self.folder / "url_lists", *self.folder.parents[:2]):
            for file in sorted(folder.glob("all_*.txt")) if folder.is_dir() else ():
                name = SPLIT_NAMES.get(file.stem.removeprefix("all_"))
                if name:
                    lists.setdefault(name, file)
        return lists

    def files(
        self, split: str | None, problems: document_files.Problems, encoding: str | None = None
    ) -> Iterator[Path]:
        """Return an iterator over the stories of a split, CNN's first, each publisher's by name.

        Args:
            split: As in `split_files`.
            problems: Notes listed stories that are missing.
            encoding: Encoding of the URL lists; None for UTF-8.

        Raises:
            InputError: If the split has no list, or there are lists and `split` is None.
        """
        lists = self.lists()
        stories = {file.stem: file for folder in self.folders for file in sorted(folder.glob(f"*{STORY}"))}
        if not lists and split in (None, ALL):
            return iter(stories.values())
        if not lists:
            raise InputError(
                f"split is {split!r}, but neither {str(self.folder)!r} nor its url_lists has all_train.txt, all_val.txt or "
                "all_test.txt; add these URL lists, or leave split out to read every story"
            )
        names = chosen_splits(split, lists, str(self.folder))
        return self._listed_stories([lists[name] for name in names], stories, problems, encoding)

    def _listed_stories(
        self, lists: list[Path], stories: dict[str, Path], problems: document_files.Problems, encoding: str | None
    ) -> Iterator[Path]:
        # The lists cover both publishers. Where only one publisher's folder exists, only its stories are expected.
        publishers = {folder.parent.name for folder in self.folders} & {"cnn", "dailymail"}
        absent = {"cnn", "dailymail"} - publishers if publishers else set()
        for file in lists:
            text = document_files.read_text(file, problems, encoding) or ""
            lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
            listed = {_sha1(url): (number, url) for number, url in lines if url}
            yield from (story for name, story in stories.items() if name in listed)
            for name, (number, url) in listed.items():
                if name not in stories and not any(publisher in url for publisher in absent):
                    problems.note("missing story", f"{file}:{number}", f"{name}{STORY} does not exist")


def _sha1(url: str) -> str:
    return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()


def read_story(text: str) -> tuple[str, str]:
    """Return the article and the highlights of a story: paragraphs, then one highlight after each "@highlight".

    Follows the cased version 3.0.0 of the dataset of See et al. (2017): a paragraph or highlight
    without final punctuation, such as a caption, gets " .", the article is one line, and each highlight
    is one line.
    """
    article: list[str] = []
    highlights: list[str] = []
    target = article
    for line in map(str.strip, text.split("\n")):
        if line.startswith("@highlight"):
            target = highlights
        elif line:
            target.append(line if line.endswith(_SENTENCE_ENDS) or "@highlight" in line else f"{line} .")
    return " ".join(article), "\n".join(highlights)


def file_rows(
    file: Path,
    kind: str,
    choose_columns: Callable[[list[str]], list[str]],
    problems: document_files.Problems,
    text: TextFormat = UTF8,
) -> Iterator[tuple[str, Any]]:
    """Return an iterator over (place, row) of a file.

    Args:
        file: File to read.
        kind: One of the kinds in `ENDINGS`.
        choose_columns: Maps the names of all columns to those to read, for the columnar kinds "parquet"
            and "arrow".
        problems: Notes rows that cannot be read.
        text: How the file is written.

    Raises:
        InputError: If an option of `text` has no effect on files of this kind.
    """
    text.check(kind, file)
    if kind == "parquet":
        return document_files.parquet_rows(file, choose_columns, problems)
    if kind == "arrow":
        return document_files.arrow_rows(file, choose_columns, problems)
    return {"jsonl": document_files.jsonl_rows, "json": json_rows, "csv": csv_rows}[kind](file, problems, text)


def json_rows(file: Path, problems: document_files.Problems, text: TextFormat = UTF8) -> Iterator[tuple[str, Any]]:
    """Yield (file:entry, value) for each entry of a JSON list, which is loaded whole.

    A file that does not begin with a list is read as JSONL.

    Args:
        file: The file.
        problems: Notes entries that cannot be read, or the file.
        text: How the file is written.
    """
    foreign = document_files.foreign_start(file, text.encoding)
    content = ""
    try:
        lines = document_files.text_lines(file, foreign or text.encoding)
        first = next((line for line in lines if line.strip()), "")
        if first.lstrip()[:1] == "[":
            content = "".join([first, *lines])
    except UnicodeError as error:
        problems.note(document_files.invalid_in(text.encoding), str(file), str(error))
        return
    except (EOFError, OSError, zlib.error) as error:
        problems.note_file(file, error)
        return
    if not content:
        yield from document_files.jsonl_rows(file, problems, text)
        return
    try:
        entries = parse_json(content, unique=True)
    except ValueError as error:
        problems.note("corrupt file", str(file), f"not JSON: {error}", len(content))
        return
    suspicious = foreign or (not content.isascii() and not is_unicode(content))
    for number, entry in enumerate(entries, 1):
        place = f"{file}:{number}"
        if foreign:
            problems.note("invalid UTF-8", place, f"it is {foreign.upper()} text", encoding=foreign)
        elif not suspicious or document_files.is_readable(
            "".join(strings_in(entry)), place, problems, "cp1252", text.encoding
        ):
            yield place, entry


def strings_in(value: Any) -> Iterator[str]:
    """Yield the texts in a value of JSON, the keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, (dict, list)):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from strings_in(item)
