"""Read documents with summaries: CNN/DailyMail, SAMSum, DialogSum and similar tables."""

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
from duonlp.util.files import may_read

KINDS = ("stories", "json", "jsonl", "csv", "parquet", "arrow", "saved", "hub", "rows")
HUB_CONFIGURATIONS = {
    "abisee/cnn_dailymail": "3.0.0", "ccdv/cnn_dailymail": "3.0.0", "cnn_dailymail": "3.0.0",
    "Samsung/samsum": None, "knkarthick/samsum": None, "samsum": None, "knkarthick/dialogsum": None,
}  # fmt: skip
"""Hub datasets that need no "hub://" prefix, with their default configurations."""

DOCUMENT_COLUMNS = ("article", "dialogue", "document", "text", "source")
SUMMARY_COLUMNS = (("highlights",), ("summary",), ("summary1", "summary2", "summary3"), ("summaries",), ("target",))
ID_COLUMNS = ("id", "fname")


@dataclass(frozen=True)
class Pair:
    """A document and its summaries.

    Attributes:
        document: The text, with \\n line ends and stripped.
        summaries: One summary, or one per author. The highlights of a news story are one summary, one sentence per line.
        id: Name in the dataset, `file:row` if it has none.
    """

    document: str
    summaries: tuple[str, ...]
    id: str


@dataclass(frozen=True)
class PairColumns:
    """Names of the columns of a row. None selects the first of the usual names that exists."""

    document: str | None = None
    summary: str | Sequence[str] | None = None
    id: str | None = None

    def of(self, names: Iterable[str], source: str) -> tuple[str, tuple[str, ...], str | None]:
        """Return the columns of the document, the summaries and the id (None if there is none).

        Args:
            names: Names of all columns.
            source: Name of the table, for messages.

        Raises:
            InputError: A named column does not exist, or no document or summary column was recognized.
        """
        names = list(names)
        listed = f"it has {', '.join(map(str, names)) or 'no columns'}"
        summaries = (self.summary,) if isinstance(self.summary, str) else tuple(self.summary or ())
        requested = {"document_field": [self.document], "summary_field": summaries, "id_field": [self.id]}
        for argument, columns in requested.items():
            for name in columns:
                if name is not None and name not in names:
                    raise InputError(
                        f"{source} has no column {name!r}; {listed}",
                        remedy=f"name an existing column with {argument}",
                        argument=argument,
                    )
        document = self.document or next((name for name in DOCUMENT_COLUMNS if name in names), None)
        if document is None:
            usual = " or ".join(map(repr, DOCUMENT_COLUMNS))
            raise InputError(
                f"{source} has no column {usual}; {listed}",
                remedy="name the document column with document_field",
                argument="document_field",
            )
        if not summaries:
            group = next((group for group in SUMMARY_COLUMNS if group[0] in names and group[0] != document), None)
            if group is None:
                usual = " or ".join(repr(group[0]) for group in SUMMARY_COLUMNS)
                raise InputError(
                    f"{source} has no column {usual}; {listed}",
                    remedy="name the summary column with summary_field",
                    argument="summary_field",
                )
            summaries = tuple(name for name in group if name in names)
        return document, summaries, self.id or next((name for name in ID_COLUMNS if name in names), None)


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
    encoding: str | None = None,
    quoting: bool | None = None,
    report: CleaningReport | None = None,
) -> Iterator[Pair]:
    """Yield documents with their summaries, in the dataset's order, holding only a few in memory.

    Recognized sources:

    - CNN/DailyMail (Hermann et al. 2015, arXiv:1506.03340; See et al. 2017, arXiv:1704.04368): "abisee/cnn_dailymail" on the
      Hub (configuration "3.0.0"); its table as train.csv, validation.csv, test.csv; or the original folder with cnn/stories
      and dailymail/stories, split by the URL lists all_train.txt, all_val.txt and all_test.txt in the folder or in
      url_lists (a story's file name is the SHA-1 of its URL). Stories are converted to the Hub's form: the article on one
      line, one highlight per line, and " ." appended to lines without final punctuation.
    - SAMSum (Gliwa et al. 2019, arXiv:1911.12237): train.json, val.json, test.json; "knkarthick/samsum" on the Hub.
    - DialogSum (Chen et al. 2021, arXiv:2105.06762): dialogsum.train.jsonl, dialogsum.dev.jsonl, dialogsum.test.jsonl, the
      last with three summaries each; "knkarthick/dialogsum", whose rows test_0_1, test_0_2 and test_0_3 become one pair.
    - Any .jsonl, .json (a list, or one object per line), .csv or .tsv file (optionally .gz or .zst), .parquet or .arrow file
      with a document and a summary column (a list is several summaries), and folders of them with the split in the file
      names.

    Args:
        source: A file, a folder, a dataset on the Hub ("hub://owner/name", optionally followed by "@revision" and
            "#configuration"; the datasets named above need no "hub://"), or rows: dicts, a `datasets` object, or a dict of
            them by split.
        split: "train", "validation" (or "val", "valid", "dev") or "test"; None for a file or rows without splits. "all"
            reads the splits of a folder one after the other.
        kind: Kind of the source, one of KINDS, if its name does not tell.
        document_field: Column of the document. Defaults to the first of DOCUMENT_COLUMNS that exists.
        summary_field: Column of the summary, or several. Defaults to the first of SUMMARY_COLUMNS that exists.
        id_field: Column of the id. Defaults to "id" or "fname", or else `file:row`.
        limit: Maximum number of pairs.
        revision: Branch, tag or commit of a dataset on the Hub.
        streaming: Whether to stream a dataset from the Hub; if False, it is downloaded first.
        encoding: Encoding of text files, such as "cp1252"; None for UTF-8, with or without a byte order mark.
        quoting: Whether fields of CSV and TSV files may be quoted. None: CSV files quote; TSV files do not, unless they can only
            be read as quoted.
        report: Collects what is dropped: empty documents and summaries, corrupt lines, invalid UTF-8, and stories that are
            listed but missing. Without a report, the first of them raises InputError; nothing is dropped silently.

    Raises:
        InputError: The source does not exist or its kind is unknown, the split does not exist or must be named, a column
            does not exist (the message lists the ones that do), or, without a report, a record is unusable.
        MissingExtraError: A library that the source needs is not installed.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise InputError(f"limit is {limit!r}; it must be a positive integer or None")
    columns = PairColumns(document_field, summary_field, id_field)
    kind = _kind(source, kind)
    if revision is not None and kind != "hub":
        raise InputError(f"revision is {revision!r}, but {str(source)!r} is not on the Hub; drop revision")
    problems, text = document_files.Problems(report), document_files.TextFormat(encoding, quoting)
    text.check(kind, source)
    if kind == "stories":
        folder = summary_files.StoryFolder(Path(source))
        pairs = _story_pairs(folder.files(split, problems, text.encoding), problems, text.encoding)
    elif kind in ("hub", "saved", "rows"):
        rows, name = _dataset_rows(source, kind, split, revision, streaming)
        pairs = _pairs(((f"{name}:{i}", row) for i, row in enumerate(rows)), name, columns, problems)
    else:
        files = summary_files.split_files(Path(source), split, kind)
        pairs = itertools.chain.from_iterable(_file_pairs(file, kind, columns, problems, text) for file in files)
    return itertools.islice(_merge_numbered(pairs), limit)


def _kind(source: Any, kind: str | None) -> str:
    """Return the kind of a source, one of KINDS; raise InputError if it does not exist."""
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
    if not may_read(path):
        if re.split("[@#]", name)[0] in HUB_CONFIGURATIONS:
            return "hub"
        raise InputError(
            f"no file or folder {str(source)!r}; for a dataset on the Hub, write {documents.HUB_PREFIX}owner/name"
        )
    return kind or summary_files.kind_of(path)


def _dataset_rows(
    source: Any, kind: str, split: str | None, revision: str | None, streaming: bool
) -> tuple[Iterable[Any], str]:
    """Return the rows of a split that are in memory ("rows"), saved by `datasets` ("saved") or on the Hub, and their name."""
    if kind == "rows":
        if isinstance(source, Mapping):
            name = split if split is None or split in source else summary_files.SPLIT_NAMES.get(split, split)
            listed = ", ".join(map(repr, source))
            if name is None:
                raise InputError(f"the rows are divided into splits; name one of {listed}")
            if name not in source:
                raise InputError(f"the rows have no split {name!r}; name one of {listed}")
            return source[name], name
        if split is not None:
            raise InputError(
                f"split is {split!r}, but the rows have no splits; drop split, or select the rows yourself"
            )
        return source, str(getattr(source, "builder_name", None) or "rows")
    if split is None:
        if kind == "saved" and not (Path(source) / "dataset_dict.json").is_file():
            split = "train"  # a single saved split has no name
        else:
            raise InputError(f'{str(source)!r} has several splits; name one, such as "train", "validation" or "test"')
    split = summary_files.SPLIT_NAMES.get(split, split)
    if kind == "hub":
        name, _, configuration = str(source).removeprefix(documents.HUB_PREFIX).partition("#")
        name, _, name_revision = name.partition("@")
        configuration = configuration or HUB_CONFIGURATIONS.get(name) or ""
        source = f"{documents.HUB_PREFIX}{name}@{revision or name_revision}#{configuration}"
    try:
        return documents.dataset_rows(source, "dataset" if kind == "saved" else "hub", split, streaming)
    except RuntimeError as error:  # a dataset script, which `datasets` no longer runs since version 4
        raise InputError(
            f"the dataset {str(source)!r} cannot be read: {error}; use a dataset that consists of data files"
        ) from error


def _file_pairs(
    file: Path,
    kind: str,
    columns: PairColumns,
    problems: document_files.Problems,
    text: document_files.TextFormat,
) -> Iterator[Pair]:
    def column_names(names: list[str]) -> list[str]:
        document, summaries, name = columns.of(names, str(file))
        return [document, *summaries, *([name] if name else [])]

    return _pairs(summary_files.file_rows(file, kind, column_names, problems, text), str(file), columns, problems)


def _pairs(
    rows: Iterable[tuple[str, Any]], source: str, columns: PairColumns, problems: document_files.Problems
) -> Iterator[Pair]:
    for place, row, (document, summaries, name) in documents.with_columns(rows, source, columns, problems):
        texts = [row[column] for column in summaries]
        if checked := pair(row[document], texts, row[name] if name else None, place, problems):
            yield checked


def pair(
    document: Any, summaries: Sequence[Any], name: Any, place: str, problems: document_files.Problems
) -> Pair | None:
    """Return the pair of a record, or None after noting in `problems` why the record is unusable.

    Args:
        document: The document as read.
        summaries: The summaries as read; a single list stands for its elements.
        name: Id of the record, or None.
        place: Location of the record, for messages.
        problems: Collects or raises what is wrong.
    """
    if len(summaries) == 1 and isinstance(summaries[0], (list, tuple)):
        summaries = summaries[0]
    name = str(name) if name not in (None, "") else place
    if name != place and not document_files.is_readable(name, place, problems):
        return None
    where = place if name == place else f"{place} (id {name!r})"
    if not summaries:
        problems.note("empty summary", where, "the list of summaries is empty")
        return None
    texts = []
    for part, text in [("document", document), *(("summary", summary) for summary in summaries)]:
        if text is not None and not isinstance(text, str):
            problems.note("corrupt row", where, f"its {part} is of type {type(text).__name__}, not str")
            return None
        text = text or ""
        if not document_files.is_readable(text, where, problems):
            return None
        text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
        if not has_text(text):
            problems.note(f"empty {part}", where, f"its {part} has no text")
            return None
        texts.append(text)
    return Pair(texts[0], tuple(texts[1:]), name)


def has_text(text: str) -> bool:
    """Return whether a text has a visible character: not white space, a control or a zero-width character."""
    return any(character.isprintable() and not character.isspace() for character in text)


def _story_pairs(files: Iterable[Path], problems: document_files.Problems, encoding: str | None) -> Iterator[Pair]:
    for file in files:
        text = document_files.read_text(file, problems, encoding)
        if text is not None:
            article, highlights = summary_files.read_story(text)
            if checked := pair(article, [highlights], file.stem, str(file), problems):
                yield checked


_NUMBERED = re.compile(r"(.*\d)_([123])")


def _merge_numbered(pairs: Iterable[Pair]) -> Iterator[Pair]:
    """Merge consecutive rows `test_0_1`, `test_0_2`, `test_0_3` of one document into one pair with all their summaries."""
    merged: Pair | None = None  # a row numbered 1, to which the next ones may belong
    name = ""
    for row in pairs:
        number = _NUMBERED.fullmatch(row.id)
        if merged and number and number[1] == name and row.document == merged.document:
            merged = Pair(merged.document, merged.summaries + row.summaries, name)
            continue
        if merged:
            yield merged
            merged = None
        if number and number[2] == "1":
            merged, name = row, number[1]
        else:
            yield row
    if merged:
        yield merged
