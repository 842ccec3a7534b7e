"""read_pairs: every source format, split name and error."""

import csv
import gzip
import hashlib
import json

import pytest

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.pairs.summaries import Pair, read_pairs
from duonlp.errors import InputError

DIALOGUE = "Ann: Are you coming?\r\nBob: No.\r\nAnn: Why?"
TEXT = DIALOGUE.replace("\r\n", "\n")
URLS = [
    "http://web.archive.org/web/2008id_/http://www.cnn.com/a",
    "http://web.archive.org/web/2008id_/http://www.dailymail.co.uk/b",
    "http://web.archive.org/web/2009id_/http://www.cnn.com/c",
]
STORY = """A caption

(CNN) -- The U.S. Senate voted.\r

It was late.”

@highlight

Senate votes

@highlight

It was late
"""
ARTICLE = "A caption . (CNN) -- The U.S. Senate voted. It was late.”"
HIGHLIGHTS = "Senate votes .\nIt was late ."


def sha1(url):
    return hashlib.sha1(url.encode()).hexdigest()


def write_lines(path, rows):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.name.endswith(".gz"):
        data = gzip.compress(data)
    elif path.name.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdCompressor().compress(data)
    path.write_bytes(data)
    return path


def write_csv(path, rows):
    with open(path, "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def stories(tmp_path):
    for url in URLS:
        folder = tmp_path / ("cnn" if "cnn" in url else "dailymail") / "stories"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{sha1(url)}.story").write_text(STORY, newline="")
    (tmp_path / "url_lists").mkdir()
    (tmp_path / "url_lists" / "all_train.txt").write_text("\n".join(URLS[1::-1]) + "\n")
    (tmp_path / "url_lists" / "all_test.txt").write_text(URLS[2])
    return tmp_path


def test_stories_become_what_the_hub_has(stories):
    train = list(read_pairs(stories, "train"))
    assert train == [Pair(ARTICLE, (HIGHLIGHTS,), sha1(url)) for url in URLS[:2]], (
        "CNN's first, regardless of the list's order"
    )
    assert [pair.id for pair in read_pairs(stories, "test")] == [sha1(URLS[2])]
    assert [pair.id for pair in read_pairs(stories, "all")] == [sha1(url) for url in URLS]
    with pytest.raises(InputError, match=r"has the splits 'train', 'test'; name one, or 'all'"):
        read_pairs(stories)
    with pytest.raises(InputError, match=r"no split 'val'; it has 'train', 'test'"):
        read_pairs(stories, "val")


def test_missing_stories(stories):
    (stories / "cnn" / "stories" / f"{sha1(URLS[0])}.story").unlink()
    pairs = read_pairs(stories, "train")
    assert next(pairs).id == sha1(URLS[1])
    with pytest.raises(InputError, match=rf"all_train\.txt:2: missing story: {sha1(URLS[0])}\.story does not exist"):
        next(pairs)
    report = CleaningReport()
    assert len(list(read_pairs(stories, "train", report=report))) == 1
    assert report.dropped["missing story"].documents == 1
    # Without a publisher's folder its stories do not count as missing.
    (stories / "cnn" / "stories" / f"{sha1(URLS[2])}.story").unlink()
    assert [pair.id for pair in read_pairs(stories, "train")] == [sha1(URLS[1])]


def test_stories_without_lists_are_all_read(stories):
    for file in (stories / "url_lists").iterdir():
        file.unlink()
    assert len(list(read_pairs(stories))) == 3
    assert len(list(read_pairs(stories / "cnn" / "stories"))) == 2
    with pytest.raises(InputError, match=r"nor its url_lists has all_train\.txt"):
        read_pairs(stories, "train")


def test_samsum_in_its_original_files(tmp_path):
    for name, ids in {"train": "123", "val": "45", "test": "6"}.items():
        rows = [{"id": i, "summary": f"Bob stays. {i}", "dialogue": DIALOGUE} for i in ids]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, indent=1))
    assert list(read_pairs(tmp_path, "train", limit=1)) == [Pair(TEXT, ("Bob stays. 1",), "1")]
    for split in ("validation", "val", "dev", "valid"):
        assert [pair.id for pair in read_pairs(tmp_path, split)] == ["4", "5"]
    assert [pair.id for pair in read_pairs(tmp_path, "all")] == list("123456")
    assert [pair.id for pair in read_pairs(tmp_path / "val.json")] == ["4", "5"]
    with pytest.raises(InputError, match="its name says 'validation'; leave the split out"):
        read_pairs(tmp_path / "val.json", "test")


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_dialogsum_in_its_original_files(tmp_path, ending):
    row = {"fname": "dev_1", "dialogue": DIALOGUE, "summary": "Bob stays.", "topic": "travel"}
    write_lines(tmp_path / f"dialogsum.dev.{ending}", [row, row | {"fname": "dev_2"}])
    several = {"fname": "test_0", "dialogue": DIALOGUE} | {f"summary{i}": f"Bob stays {i}." for i in (1, 2, 3)}
    write_lines(tmp_path / f"dialogsum.test.{ending}", [several])
    assert [pair.id for pair in read_pairs(tmp_path, "validation")] == ["dev_1", "dev_2"], "equal texts stay two pairs"
    assert list(read_pairs(tmp_path, "test")) == [
        Pair(TEXT, ("Bob stays 1.", "Bob stays 2.", "Bob stays 3."), "test_0")
    ]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "arrow", "saved", "rows", "dataset dict"])
def test_tables(tmp_path, ending):
    rows = [
        {"id": f"test_{i}_{j}", "dialogue": f"{DIALOGUE} {i}", "summary": f'Bob "stays", {j}.', "topic": "x"}
        for i, j in [(0, 1), (0, 2), (0, 3), (1, 1), (2, 2)]
    ]
    source, split = tmp_path, "test"
    if ending in ("csv", "tsv"):
        write_csv(tmp_path / f"test.{ending}", rows)
    else:
        import datasets

        table = datasets.Dataset.from_list(rows)
        if ending == "parquet":
            (tmp_path / "data").mkdir()
            table.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
        elif ending == "arrow":
            table.save_to_disk(tmp_path / "saved")
            source, split = next((tmp_path / "saved").glob("*.arrow")), None
        elif ending == "saved":
            datasets.DatasetDict(test=table, train=table).save_to_disk(tmp_path)
        else:
            source, split = (rows, None) if ending == "rows" else (datasets.DatasetDict(test=table), "test")
    three = tuple(f'Bob "stays", {i}.' for i in (1, 2, 3))
    assert list(read_pairs(source, split)) == [
        Pair(f"{TEXT} 0", three, "test_0"), Pair(f"{TEXT} 1", three[:1], "test_1_1"), Pair(f"{TEXT} 2", three[1:2], "test_2_2")
    ]  # fmt: skip


def test_the_hub_is_read_through_datasets(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        if names[0] == "Samsung/samsum":
            raise RuntimeError("Dataset scripts are no longer supported, but found samsum.py")
        return datasets.Dataset.from_list([{"article": "A", "highlights": "B .\nC .", "id": "x"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_pairs("abisee/cnn_dailymail", "val", revision="v1")) == [Pair("A", ("B .\nC .",), "x")]
    expected = {"split": "validation", "revision": "v1", "streaming": True}
    assert asked[-1] == (("abisee/cnn_dailymail", "3.0.0"), expected)
    list(read_pairs("hub://some/news@main#de", "test[:5]", streaming=False))
    assert asked[-1] == (("some/news", "de"), {"split": "test[:5]", "revision": "main", "streaming": False})
    with pytest.raises(InputError, match=r"scripts are no longer supported.*consists of data files"):
        read_pairs("Samsung/samsum", "test")
    with pytest.raises(InputError, match=r"'knkarthick/samsum' has several splits; name one"):
        read_pairs("knkarthick/samsum")


def test_columns_are_recognized_or_named(tmp_path):
    file = write_lines(tmp_path / "a.jsonl", [{"body": "A b.", "short": "A.", "brief": ["B.", "C."], "n": 7}])
    named = {"document_field": "body", "summary_field": "short"}
    assert list(read_pairs(file, **named)) == [Pair("A b.", ("A.",), f"{file}:1")]
    named |= {"summary_field": "brief", "id_field": "n"}
    assert list(read_pairs(file, **named)) == [Pair("A b.", ("B.", "C."), "7")]
    with pytest.raises(
        InputError,
        match=r"no column 'article' or .*body, short, brief, n; name the document column with document_field",
    ):
        list(read_pairs(file))
    with pytest.raises(
        InputError,
        match=r"no column 'highlights' or .*body, short, brief, n; name the summary column with summary_field",
    ):
        list(read_pairs(file, document_field="body"))
    with pytest.raises(
        InputError, match=r"no column 'Short'; it has body, short, .*; name an existing column with summary_field"
    ):
        list(read_pairs(file, document_field="body", summary_field=["short", "Short"]))


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": " \r\n", "summary": "B"}, r"empty document: its document has no text"),
        ({"text": None, "summary": "B"}, r"empty document"),
        ({"text": "A", "summary": "\u200b"}, r"empty summary"),
        ({"text": "A", "summary": ""}, r"empty summary: its summary has no text"),
        ({"text": "A", "summary": []}, r"empty summary: the list of summaries is empty"),
        ({"text": "A", "summary": ["B", 5]}, r"corrupt row: its summary is of type int, not str"),
        ({"text": "A\ud800", "summary": "B"}, r"invalid UTF-8"),
        ({"text": "A"}, r"corrupt row: .*no column 'highlights'.*it has text"),
        (["A", "B"], r"corrupt row: row has type list"),
    ],
)
def test_unusable_records_raise_or_are_counted(tmp_path, row, reason):
    good = {"text": "A", "summary": "B", "id": "g"}
    if isinstance(row, dict) and "summary" in row:
        row["id"] = "bad"
    file = write_lines(tmp_path / "a.jsonl", [good, row, good])
    pairs = read_pairs(file)
    assert next(pairs) == Pair("A", ("B",), "g"), "earlier pairs are yielded first"
    where = rf"a\.jsonl:2( \(id 'bad'\))?: {reason}.*; fix it, or pass report=CleaningReport\(\)"
    with pytest.raises(InputError, match=where):
        next(pairs)
    report = CleaningReport()
    assert len(list(read_pairs(file, report=report))) == 2
    assert sum(entry.documents for entry in report.dropped.values()) == 1


def test_broken_files(tmp_path):
    file = tmp_path / "a.csv"
    file.write_bytes(b'text,summary\r\n"A\r\nb",B\r\nA\xe9,B\r\nA\r\nA,C\r\n')
    report = CleaningReport()
    assert [pair.document for pair in read_pairs(file, report=report)] == ["A\nb", "A"]
    assert {reason: entry.examples[0] for reason, entry in report.dropped.items()} == {
        "invalid UTF-8": f"{file}:4: byte 0xe9 at character 1",
        "corrupt row": f"{file}:5: row has 1 fields, but the header has 2: text, summary",
    }
    file.write_text('text,summary\nA,B\nA,"B\n')
    with pytest.raises(InputError, match=r"a\.csv:3: corrupt row: unexpected end of data"):
        list(read_pairs(file))
    long = tmp_path / "long.csv"
    long.write_text("text,summary\n" + "a" * 200_000 + ",B\n")
    assert len(next(read_pairs(long)).document) == 200_000
    file = tmp_path / "a.json"
    file.write_text('[{"text": "A", "summary": "B"},]')
    with pytest.raises(InputError, match=r"a\.json: corrupt file: not JSON: .*line 1 column 3"):
        list(read_pairs(file))
    file.write_text('\n{"text": "A", "summary": "B"}\n')
    assert list(read_pairs(file)) == [Pair("A", ("B",), f"{file}:2")], "one object per line"
    cut = tmp_path / "b.json.gz"
    cut.write_bytes(gzip.compress(b'[{"text": "A", "summary": "B"}]' * 100)[:-9])
    with pytest.raises(InputError, match=r"b\.json\.gz: corrupt archive"):
        list(read_pairs(cut))


def test_rows_by_split():
    rows = {"train": [], "validation": [{"text": "A", "summary": "B"}], "dev": []}
    assert [pair.document for pair in read_pairs(rows, "val")] == ["A"]
    assert list(read_pairs(rows, "dev")) == [], "an exact name first"


def test_unusable_sources(tmp_path):
    for source, options, message in [
        (tmp_path / "no", {}, r"no file or folder .*hub://owner/name"),
        (tmp_path, {}, r"has neither stories .* nor files"),
        (tmp_path, {"kind": "stories"}, r"no \.story files"),
        (tmp_path, {"kind": "xml"}, r"kind is 'xml'; it must be one of stories"),
        (7, {}, r"the source is a int"),
        ([], {"split": "test"}, r"the rows have no splits"),
        ({"train": []}, {}, r"the rows are divided into splits; name one of 'train'"),
        ([], {"limit": 0}, r"limit is 0"),
        ([], {"revision": "v1"}, r"is not on the Hub"),
    ]:
        with pytest.raises(InputError, match=message):
            read_pairs(source, **options)
    write_lines(tmp_path / "a.xml", [])
    with pytest.raises(InputError, match=r"unsupported ending; expected \.jsonl"):
        read_pairs(tmp_path / "a.xml")
    for name in ("train.jsonl", "val.csv"):
        write_lines(tmp_path / name, [])
    with pytest.raises(InputError, match=r"several kinds of files \(csv, jsonl\); pass kind"):
        read_pairs(tmp_path)
    assert list(read_pairs(tmp_path, "train", kind="jsonl")) == []
