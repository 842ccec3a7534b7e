"""Documents and their summaries, read from where they are kept: CNN/DailyMail, SAMSum, DialogSum and whatever is like them."""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading import document_files, documents
from duonlp.data.reading import tables as summary_files
from duonlp.errors import InputError

KINDS = ("stories", "json", "jsonl", "csv", "parquet", "arrow", "saved", "hub", "rows")
HUB_CONFIGURATIONS = {
    "abisee/cnn_dailymail": "3.0.0", "ccdv/cnn_dailymail": "3.0.0", "cnn_dailymail": "3.0.0",
    "Samsung/samsum": None, "knkarthick/samsum": None, "samsum": None, "knkarthick/dialogsum": None,
}  # fmt: skip
"""Datasets of the Hub that need no "hub://" before them, each with the configuration that is read unless one is named."""

DOCUMENT_COLUMNS = ("article", "dialogue", "document", "text", "source")
SUMMARY_COLUMNS = (("highlights",), ("summary",), ("summary1", "summary2", "summary3"), ("summaries",), ("target",))
ID_COLUMNS = ("id", "fname")


@dataclass(frozen=True)
class Pair:
    """A document and what it is in short.

    document: all of the text; line ends as \\n, and none at its ends.
    summaries: one or, where several people wrote one, several; the highlights of a news story are one, a sentence a line.
    id: what the dataset calls it; `file:row` where it does not.
    """

    document: str
    summaries: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns of a row; one that is None is looked for under the names that public datasets use."""

    document: str | None = None
    summary: str | Sequence[str] | None = None
    id: str | None = None

    def of(self, names: Iterable[str], source: str) -> tuple[str, tuple[str, ...], str | None]:
        """Returns the columns of document, summaries and id (None where there is none).

        Raises:
            InputError: a column that was named is not there, or none of a document or of a summary is.
        """
        names = list(names)
        has = f"it has {', '.join(map(str, names)) or 'no columns'}"
        summary = (self.summary,) if isinstance(self.summary, str) else self.summary and tuple(self.summary)
        given = {"document_field": [self.document], "summary_field": summary or [], "id_field": [self.id]}
        for part, wanted in given.items():
            for name in wanted:
                if name is not None and name not in names:
                    raise InputError(
                        f"{source} has no column {name!r}; {has}",
                        remedy=f"name an existing column with {part}",
                        argument=part,
                    )
        document = self.document or next((name for name in DOCUMENT_COLUMNS if name in names), None)
        if document is None:
            usual = " or ".join(map(repr, DOCUMENT_COLUMNS))
            raise InputError(
                f"{source} has no column {usual}; {has}",
                remedy="name the document column with document_field", argument="document_field",
            )  # fmt: skip
        if not summary:
            summary = next((group for group in SUMMARY_COLUMNS if group[0] in names and group[0] != document), None)
            if summary is None:
                usual = " or ".join(repr(group[0]) for group in SUMMARY_COLUMNS)
                raise InputError(
                    f"{source} has no column {usual}; {has}",
                    remedy="name the summary column with summary_field", argument="summary_field",
                )  # fmt: skip
            summary = tuple(name for name in summary if name in names)
        return document, summary, self.id or next((name for name in ID_COLUMNS if name in names), None)


def read_pairs(
    source: Any,
    split: str | None = None,
    *,
    kind: str | None = None,
    document_field: str | None = None,
    summary_field: str | Sequence[str] | None = None,
    id_field: str | None = None,
    limit: int | None = None,
    revision: str | None = None,
    streaming: bool = True,
    report: CleaningReport | None = None,
) -> Iterator[Pair]:
    """Yields documents with their summaries, in the dataset's own order, without holding more than a few of them.

    Layouts that are known by themselves:

    - CNN/DailyMail (Hermann et al. 2015, arXiv:1506.03340; See et al. 2017, arXiv:1704.04368): "abisee/cnn_dailymail" on the
      Hub (configuration "3.0.0"); its table as train.csv, validation.csv, test.csv; or the original folder with cnn/stories
      and dailymail/stories, split by the lists of addresses all_train.txt, all_val.txt, all_test.txt in it or in its
      url_lists, whose SHA-1 names the files. Stories become what the Hub has: one line of article, highlights one a line,
      and " ." behind a line that ends without a full stop.
    - SAMSum (Gliwa et al. 2019, arXiv:1911.12237): train.json, val.json, test.json; "knkarthick/samsum" on the Hub.
    - DialogSum (Chen et al. 2021, arXiv:2105.06762): dialogsum.train.jsonl, dialogsum.dev.jsonl, dialogsum.test.jsonl, the
      last with three summaries each; "knkarthick/dialogsum", whose rows test_0_1, test_0_2 and test_0_3 become one pair.
    - Any .jsonl, .json (a list, or an object a line), .csv, .tsv (each also .gz or .zst), .parquet or .arrow file with
      columns of a document and of a summary (a list in it: several), and folders of them with the split in the files' names.

    Args:
        source: a file, a folder, a dataset's name on the Hub ("hub://owner/name", with "@revision" and "#configuration"
            after it where needed; datasets named above need no "hub://"), or rows: dicts, a `datasets`
            object, or a dict of them by split.
        split: "train", "validation" ("val", "valid" and "dev" are the same) or "test". A file or rows without a split in
            their name need none. "all" reads a folder's splits one after the other.
        kind: what the source is, one of KINDS, where its name does not say.
        document_field: the column of the document; by default the first of DOCUMENT_COLUMNS that is there.
        summary_field: the column of the summary, or several; by default the first of SUMMARY_COLUMNS that is there.
        id_field: the column of the id; by default "id" or "fname", and `file:row` when neither is there.
        limit: so many pairs at most.
        revision: of a dataset on the Hub: a branch, a tag or a commit.
        streaming: of a dataset on the Hub: read over the network; False downloads it first.
        report: where what cannot be used is counted and named: empty documents and summaries, corrupt lines, invalid UTF-8,
            stories that a list names and no file is there for. Without one, the first of them is an error; nothing is left
            out in silence.

    Raises:
        InputError: the source is not there or of no known kind, the split is not there or none was named where there are
            several, a column is not there (the message lists those that are), or, without a report, a record is of no use.
        MissingExtraError: a library that the source needs is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a whole number from 1 on, or None")
    columns = PairColumns(document_field, summary_field, id_field)
    kind = _kind(source, kind)
    if revision is not None and kind != "hub":
        raise InputError(f"revision is {revision!r}, and {str(source)!r} is not on the Hub; leave it out")
    problems = document_files.Problems(report)
    if kind == "stories":
        folder = summary_files.StoryFolder(Path(source))
        pairs = _story_pairs(folder.files(split, problems), problems)
    elif kind in ("hub", "saved", "rows"):
        rows, name = _dataset_rows(source, kind, split, revision, streaming)
        pairs = _pairs(((f"{name}:{i}", row) for i, row in enumerate(rows)), name, columns, problems)
    else:
        files = summary_files.split_files(Path(source), split, kind)
        pairs = itertools.chain.from_iterable(_file_pairs(file, kind, columns, problems) for file in files)
    return itertools.islice(_together(pairs), limit)


def _kind(source: Any, kind: str | None) -> str:
    """Says what a source is, and raises InputError at once when it is not there."""
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind is {kind!r}; it must be one of {', '.join(KINDS)}")
    if not isinstance(source, (str, Path)):
        if not isinstance(source, Iterable) or isinstance(source, bytes):
            raise InputError(
                f"the source is a {type(source).__name__}; give a file, a folder, hub://owner/name, or a list of rows"
            )
        return "rows"
    path = Path(source)
    name = str(source).removeprefix(documents.HUB_PREFIX)
    if kind == "hub" or str(source).startswith(documents.HUB_PREFIX):
        return "hub"
    if not path.exists():
        if re.split("[@#]", name)[0] in HUB_CONFIGURATIONS:
            return "hub"
        raise InputError(
            f"no file or folder {str(source)!r}; a dataset on the Hub is written {documents.HUB_PREFIX}owner/name"
        )
    return kind or summary_files.kind_of(path)


def _dataset_rows(source: Any, kind: str, split: str | None, revision: str | None, streaming: bool):
    if kind == "rows":
        if isinstance(source, Mapping):
            split = split if split in source else summary_files.SPLIT_NAMES.get(split, split)
            if split not in source:
                raise InputError(f"the rows have no split {split!r}; name one of {', '.join(map(repr, source))}")
            return source[split], split
        if split is not None:
            raise InputError(f"split is {split!r}, and rows have none; leave it out, or choose the rows yourself")
        return source, str(getattr(source, "builder_name", None) or "rows")
    if split is None:
        if kind == "saved" and not (Path(source) / "dataset_dict.json").is_file():
            split = "train"  # a single split, saved: it has no name
        else:
            raise InputError(f'{str(source)!r} has several splits; name one, such as "train", "validation" or "test"')
    split = summary_files.SPLIT_NAMES.get(split, split)
    if kind == "hub":
        name, _, configuration = str(source).removeprefix(documents.HUB_PREFIX).partition("#")
        name, _, at = name.partition("@")
        configuration = configuration or HUB_CONFIGURATIONS.get(name) or ""
        source = f"{documents.HUB_PREFIX}{name}@{revision or at}#{configuration}"
    try:
        return documents.dataset_rows(source, "dataset" if kind == "saved" else "hub", split, streaming)
    except RuntimeError as error:  # a dataset that is a program, which no version of `datasets` from 4 on runs
        raise InputError(
            f"the dataset {str(source)!r} cannot be read: {error}; give one that is files alone"
        ) from error


def _file_pairs(file: Path, kind: str, columns: PairColumns, problems) -> Iterator[Pair]:
    def wanted(names: list[str]) -> list[str]:
        document, summaries, name = columns.of(names, str(file))
        return [document, *summaries, *([name] if name else [])]

    return _pairs(summary_files.file_rows(file, kind, wanted, problems), str(file), columns, problems)


def _pairs(rows: Iterable[tuple[str, Any]], source: str, columns: PairColumns, problems) -> Iterator[Pair]:
    for place, row, (document, summaries, name) in documents.with_columns(rows, source, columns, problems):
        found = pair(row[document], [row[each] for each in summaries], row[name] if name else None, place, problems)
        if found:
            yield found


def pair(document: Any, summaries: Sequence[Any], name: Any, place: str, problems) -> Pair | None:
    """A pair of what a record has, checked; None (noted) where it is of no use."""
    if len(summaries) == 1 and isinstance(summaries[0], (list, tuple)):
        summaries = summaries[0]
    name = str(name) if name not in (None, "") else place
    where = place if name == place else f"{place} (id {name!r})"
    if not summaries:
        problems.note("empty summary", where, "the list of summaries is empty")
        return None
    texts = []
    for what, text in [("document", document), *(("summary", summary) for summary in summaries)]:
        if text is not None and not isinstance(text, str):
            problems.note("corrupt row", where, f"its {what} is a {type(text).__name__}, not a text")
            return None
        text = text or ""
        if not document_files.is_readable(text, where, problems):
            return None
        text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
        if not has_text(text):
            problems.note(f"empty {what}", where, f"its {what} has no text")
            return None
        texts.append(text)
    return Pair(texts[0], tuple(texts[1:]), name)


def has_text(text: str) -> bool:
    """Whether there is something to be seen in a text: more than white space, control and zero-width characters."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _story_pairs(files: Iterable[Path], problems) -> Iterator[Pair]:
    for file in files:
        text = document_files.read_text(file, problems)
        if text is not None:
            article, highlights = summary_files.read_story(text)
            found = pair(article, [highlights], file.stem, str(file), problems)
            if found:
                yield found


_NUMBERED = re.compile(r"(.*\d)_([123])")


def _together(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Rows `test_0_1`, `test_0_2`, `test_0_3` of one document after each other, as one pair with the summaries of all."""
    held: Pair | None = None  # a first row, whose others may follow
    name = ""
    for each in pairs:
        number = _NUMBERED.fullmatch(each.id)
        if held and number and number[1] == name and each.document == held.document:
            held = Pair(held.document, held.summaries + each.summaries, name)
            continue
        if held:
            yield held
            held = None
        if number and number[2] == "1":
            held, name = each, number[1]
        else:
            yield each
    if held:
        yield held
