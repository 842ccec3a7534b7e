"""Files that documents come in with their summaries: folders of splits, news stories, JSON lists and CSV tables."""

import csv
import hashlib
import json
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from duonlp.data.reading import document_files
from duonlp.errors import InputError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "test": "test",
    "validation": "validation", "val": "validation", "valid": "validation", "dev": "validation",
}  # fmt: skip
"""What splits are called, and what they are called here."""

ALL = "all"
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv"} | {
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIONS = (".gz", ".zst")  # of all but the last two
STORY = ".story"
MOST_IN_A_FIELD = 2**27
"""Characters of a CSV field at most; Python's own limit, 131,072, is less than a long document."""

_SPLIT = re.compile(rf"(?:^|[._-])({'|'.join(SPLIT_NAMES)})(?=[._-])", re.IGNORECASE)
_ENDS = (".", "!", "?", "'", "`", '"', "\u2019", "\u201d", ")")


def kind_of(path: Path) -> str:
    """Says what a file or folder holds: one of `summaries.KINDS`; raises InputError when nothing tells."""
    if path.is_file():
        found = ending_kind(path)
        if found is None:
            endings = ", ".join(ENDINGS)
            raise InputError(
                f"{str(path)!r} ends in none of {endings} (or such with {' or '.join(COMPRESSIONS)})",
                remedy="pass kind", argument="kind",
            )  # fmt: skip
        return found
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return "saved"
    if StoryFolder.folders_in(path):
        return "stories"
    kinds = {ending_kind(file) for file in _files(path)} - {None}
    if not kinds:
        raise InputError(
            f"{str(path)!r} has neither stories (cnn/stories, dailymail/stories) nor files that end in "
            f"{', '.join(ENDINGS)} with a split in their names; give a folder or a file that has"
        )
    if len(kinds) > 1:
        raise InputError(
            f"{str(path)!r} has files of several kinds ({', '.join(sorted(kinds))})",
            remedy="pass kind",
            argument="kind",
        )
    return kinds.pop()


def ending_kind(file: Path) -> str | None:
    """What a file's name says it is; None when it says nothing."""
    name = file.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    kind = ENDINGS.get(Path(name).suffix)
    return None if kind in ("parquet", "arrow") and name != file.name.lower() else kind


def split_of(name: str) -> str | None:
    """The split that a file's name says, as one of SPLITS: `dialogsum.dev.jsonl.gz` -> "validation"."""
    found = _SPLIT.findall(name)
    return SPLIT_NAMES[found[-1].lower()] if found else None


def split_files(path: Path, split: str | None, kind: str) -> list[Path]:
    """Returns a split's files in a folder (or the one folder in it that has them), or the file that `path` is.

    Raises:
        InputError: there is none of the split, or several splits are there and none was named.
    """
    wanted = SPLIT_NAMES.get(split, split)
    if path.is_file():
        if wanted not in (None, ALL, split_of(path.name)):
            has = split_of(path.name)
            what = f"its name says {has!r}" if has else "its name says none"
            raise InputError(f"split is {split!r} of the file {str(path)!r}, and {what}; leave the split out")
        return [path]
    found: dict[str, list[Path]] = {}
    for file in _files(path):
        if ending_kind(file) == kind:
            found.setdefault(split_of(file.name) or "", []).append(file)
    if not found:
        raise InputError(f"no {kind} file in {str(path)!r}")
    return [file for each in chosen_splits(split, found, str(path)) for file in found[each]]


def chosen_splits(split: str | None, found, source: str) -> list[str]:
    """Which of the splits that were found are meant: one, or all in the order of SPLITS; see `split_files`."""
    there = [each for each in (*SPLITS, "") if each in found]
    named = ", ".join(map(repr, filter(None, there))) or "none"
    if split == ALL:
        return there
    if split is None:
        if len(there) > 1:
            raise InputError(f"{source!r} has the splits {named}; name one, or {ALL!r}")
        return there
    wanted = SPLIT_NAMES.get(split)
    if wanted not in there:
        raise InputError(f"{source!r} has no split {split!r}; it has {named}")
    return [wanted]


def _files(folder: Path) -> list[Path]:
    """Files with a split in their names, in a folder or in the one folder in it that has some; else all that are known."""
    here = sorted(file for file in folder.iterdir() if file.is_file() and ending_kind(file))
    if split := [file for file in here if split_of(file.name)]:
        return split
    below = {}
    for each in sorted(each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")):
        files = sorted(file for file in each.iterdir() if file.is_file() and ending_kind(file) and split_of(file.name))
        if files:
            below[each.name] = files
    if len(below) > 1:
        raise InputError(f"{str(folder)!r} has splits in several folders, {', '.join(below)}; give one of them")
    return next(iter(below.values()), here)


class StoryFolder:
    """The files of CNN and Daily Mail stories, and the lists of addresses that split them.

    Raises:
        InputError: there are no stories.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.folders = self.folders_in(folder)
        if not self.folders:
            raise InputError(f"{str(folder)!r} has no {STORY} file, nor has cnn/stories or dailymail/stories in it")

    @staticmethod
    def folders_in(folder: Path) -> list[Path]:
        """Those of a folder, cnn/stories and dailymail/stories in it that have stories."""
        if not folder.is_dir():
            return []
        places = (folder / "cnn" / "stories", folder / "dailymail" / "stories", folder, folder / "stories")
        return [place for place in places if place.is_dir() and next(place.glob(f"*{STORY}"), None)]

    def lists(self) -> dict[str, Path]:
        """Split -> its list of addresses: all_train.txt and so on, beside the stories or in url_lists."""
        found = {}
        for folder in (self.folder, self.folder / "url_lists", *self.folder.parents[:2]):
            for file in sorted(folder.glob("all_*.txt")) if folder.is_dir() else ():
                name = SPLIT_NAMES.get(file.stem.removeprefix("all_"))
                if name:
                    found.setdefault(name, file)
        return found

    def files(self, split: str | None, problems) -> Iterator[Path]:
        """Yields the stories of a split, CNN's first, each by name; a listed one that is not there is noted.

        Raises:
            InputError: there is no such list, or there are lists and no split was named.
        """
        lists = self.lists()
        stories = {file.stem: file for folder in self.folders for file in sorted(folder.glob(f"*{STORY}"))}
        if not lists and split in (None, ALL):
            return iter(stories.values())
        if not lists:
            raise InputError(
                f"split is {split!r}, and {str(self.folder)!r} has no list of addresses all_train.txt, all_val.txt, "
                "all_test.txt, nor has url_lists in it; put them there, or leave the split out to read every story"
            )
        return self._listed([lists[each] for each in chosen_splits(split, lists, str(self.folder))], stories, problems)

    def _listed(self, lists: list[Path], stories: dict[str, Path], problems) -> Iterator[Path]:
        # The lists are of both publishers. Where one's folder is there and the other's is not, that one alone is meant.
        publishers = {folder.parent.name for folder in self.folders} & {"cnn", "dailymail"}
        absent = {"cnn", "dailymail"} - publishers if publishers else set()
        for file in lists:
            text = document_files.read_text(file, problems) or ""
            lines = ((number, line.strip()) for number, line in enumerate(text.split("\n"), 1))
            wanted = {_sha1(url): (number, url) for number, url in lines if url}
            yield from (story for name, story in stories.items() if name in wanted)
            for name, (number, url) in wanted.items():
                if name not in stories and not any(publisher in url for publisher in absent):
                    problems.note("missing story", f"{file}:{number}", f"there is no {name}{STORY}")


def _sha1(url: str) -> str:
    return hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()


def read_story(text: str) -> tuple[str, str]:
    """Article and highlights of a story: paragraphs up to "@highlight", then a highlight behind each of those.

    As See et al. (2017) made the dataset of them, in its cased version 3.0.0: a paragraph or highlight that ends without a
    full stop (captions do) gets " .", the article is one line, and each highlight is one.
    """
    article: list[str] = []
    highlights: list[str] = []
    into = article
    for line in map(str.strip, text.split("\n")):
        if line.startswith("@highlight"):
            into = highlights
        elif line:
            into.append(line if line.endswith(_ENDS) or "@highlight" in line else f"{line} .")
    return " ".join(article), "\n".join(highlights)


def file_rows(file: Path, kind: str, wanted: Callable[[list[str]], list[str]], problems) -> Iterator[tuple[str, Any]]:
    """Yields (place, row) of a file of one of the kinds in ENDINGS.

    Args:
        wanted: names of the columns that there are -> those to read, for files that keep each column by itself.
        problems: where rows that cannot be read are noted.
    """
    if kind in ("parquet", "arrow"):
        return (document_files.parquet_rows if kind == "parquet" else document_files.arrow_rows)(file, wanted, problems)
    return {"jsonl": document_files.jsonl_rows, "json": json_rows, "csv": csv_rows}[kind](file, problems)


def json_rows(file: Path, problems) -> Iterator[tuple[str, Any]]:
    """Yields (file:entry, value) of a JSON file: the entries of its list, read at once, or one a line as in JSONL."""
    data = b""
    try:
        lines = document_files.lines_of(file)
        first = next((line for line in lines if line.strip(b" \t\r\n\xef\xbb\xbf")), b"")
        if first.lstrip(b" \t\xef\xbb\xbf")[:1] == b"[":
            data = b"\n".join([first, *lines])
    except (EOFError, OSError, zlib.error) as error:
        problems.note("corrupt archive", str(file), str(error) or type(error).__name__)
        return
    if not data:
        yield from document_files.jsonl_rows(file, problems)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        problems.note("invalid UTF-8", str(file), f"byte 0x{data[error.start]:02x} at {error.start}", len(data))
        return
    try:
        entries = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        problems.note("corrupt file", str(file), f"not JSON: {error}", len(data))
        return
    yield from ((f"{file}:{number}", entry) for number, entry in enumerate(entries, 1))


def csv_rows(file: Path, problems) -> Iterator[tuple[str, dict[str, str]]]:
    """Yields (file:line, columns) of a CSV file with a header, tabs for commas in a .tsv; the line is where a row begins."""
    csv.field_size_limit(max(csv.field_size_limit(), MOST_IN_A_FIELD))
    # What is no UTF-8 becomes half of a surrogate pair, so that the row that it is in is the only one it costs.
    lines = (
        line.decode("utf-8", "surrogateescape") + "\n" * (not line.endswith(b"\n"))
        for line in document_files.lines_of(file)
    )
    tabs = ".tsv" in file.name.lower()
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=True)
    header: list[str] | None = None
    number = 1
    try:
        for row in reader:
            place, number = f"{file}:{number}", reader.line_num + 1
            if header is None:
                header = [name.removeprefix("\ufeff").strip() for name in row]
            elif row and len(row) != len(header):
                what = f"it has {len(row)} fields, and the header {len(header)}: {', '.join(header)}"
                problems.note("corrupt row", place, what)
            elif row:
                yield place, dict(zip(header, row))
    except csv.Error as error:
        problems.note("corrupt row", f"{file}:{number}", f"{error}; nothing can be read after it")
    except (EOFError, OSError, zlib.error) as error:
        what = f"{error or type(error).__name__}; nothing can be read after line {number - 1}"
        problems.note("corrupt archive", str(file), what)
