"""Documents from every kind of source, and reports of unreadable ones."""

import gzip
import json
import re
import sys

import pytest

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.reading.documents import Document, read_documents
from duonlp.errors import InputError, MissingExtraError

ROWS = [
    {"content": "x = 1\n", "path": "a.py", "repo_name": "o/r", "license": "mit"},
    {"content": "é = '\u2028'\n", "path": "b.py", "repo_name": None, "license": None},
]
EXPECTED = [Document("x = 1\n", "a.py", "o/r", "mit"), Document("é = '\u2028'\n", "b.py")]


def lines(rows=ROWS):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def write_jsonl(path, data):
    import zstandard

    if path.name.endswith(".gz"):
        data = gzip.compress(data[:20]) + gzip.compress(data[20:])  # two members, as in concatenated archives
    elif path.name.endswith(".zst"):
        data = b"".join(zstandard.ZstdCompressor().compress(piece) for piece in (data[:20], data[20:]))
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz", "a.jsonl.zst"])
def test_jsonl_in_every_compression(tmp_path, name):
    file = write_jsonl(tmp_path / name, lines())
    assert list(read_documents(file)) == EXPECTED
    assert list(read_documents(tmp_path)) == EXPECTED, "a folder of shards"
    # A byte order mark, empty lines and a missing final newline are accepted.
    write_jsonl(file, b"\xef\xbb\xbf" + lines().replace(b"\n", b"\n\n").rstrip())
    assert list(read_documents(str(file))) == EXPECTED


def test_reading_is_lazy(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl.zst", lines() + b"broken\n")
    documents = read_documents(file)
    assert [next(documents), next(documents)] == EXPECTED
    with pytest.raises(InputError, match=r"a\.jsonl\.zst:3.*corrupt line"):
        next(documents)


@pytest.mark.parametrize("kind", ["parquet", "arrow", "arrow file", "saved", "dataset", "rows", "generator"])
def test_tables(tmp_path, kind):
    import datasets
    import pyarrow
    from pyarrow import ipc, parquet

    table = pyarrow.Table.from_pylist(ROWS)
    if kind == "parquet":
        source = tmp_path / "a.parquet"
        parquet.write_table(table, source, row_group_size=1)
    elif kind.startswith("arrow"):
        source = tmp_path / "a.arrow"
        with (ipc.new_file if kind == "arrow file" else ipc.new_stream)(source, table.schema) as writer:
            writer.write_table(table)
    elif kind == "saved":
        source = tmp_path / "saved"
        datasets.Dataset(table).save_to_disk(source)
    else:
        # A dataset streamed by `datasets` is also an iterable of rows.
        source = {"rows": ROWS, "dataset": datasets.Dataset(table), "generator": (row for row in ROWS)}[kind]
    assert list(read_documents(source)) == EXPECTED


def test_the_hub_is_read_through_datasets(monkeypatch):
    import datasets

    calls = []

    def load_dataset(*names, **options):
        calls.append((names, options))
        if names[0] == "gone/gone":
            raise FileNotFoundError("no such dataset")
        return datasets.Dataset.from_list([{"code": "y = 2\n"}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(read_documents("hub://o/name@v1#python")) == [Document("y = 2\n", "o/name/train:0")]
    assert calls[-1] == (("o/name", "python"), {"split": "train", "revision": "v1", "streaming": True})
    list(read_documents("o/name", kind="hub", split="validation", streaming=False))
    assert calls[-1] == (("o/name", None), {"split": "validation", "revision": None, "streaming": False})
    with pytest.raises(InputError, match=r"gone/gone.*no such dataset"):
        list(read_documents("hub://gone/gone"))


def test_a_tree_of_source_files(tmp_path):
    (tmp_path / "pkg" / "tests").mkdir(parents=True)
    (tmp_path / "pkg" / "m.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    (tmp_path / "pkg" / "tests" / "t.py").write_text("assert x\n")
    (tmp_path / "a.rs").write_text("fn main() {}\n")
    assert list(read_documents(tmp_path, skip=frozenset({"tests"}))) == [Document("x = 1\n", "pkg/m.py")]
    both = read_documents([tmp_path / "pkg", tmp_path], pattern="*.[pr][ys]")
    assert [d.path for d in both] == ["m.py", "tests/t.py", "a.rs", "pkg/m.py", "pkg/tests/t.py"]


def test_columns_are_selectable_and_errors_list_them(tmp_path):
    file = write_jsonl(tmp_path / "a.jsonl", lines([{"body": "x = 1", "where": "w", "by": ["MIT", "ISC"]}]))
    documents = read_documents(file, text_field="body", path_field="where", licence_field="by")
    assert list(documents) == [Document("x = 1", "w", None, "(MIT) AND (ISC)")]
    assert next(read_documents(file, text_field="body")).path == f"{file}:1"
    # Columns may differ from row to row.
    write_jsonl(file, lines([{"text": "x"}, {"text": "y", "repo": "o/r"}, {"code": "z"}]))
    assert [(d.text, d.repository) for d in read_documents(file)] == [("x", None), ("y", "o/r"), ("z", None)]
    write_jsonl(file, lines([{"body": "x = 1", "where": "w", "by": ["MIT", "ISC"]}]))
    report = CleaningReport()  # a wrong column name is an error even with a report
    with pytest.raises(InputError, match=r"'code'.*body, where, by"):
        list(read_documents(file, report=report))
    with pytest.raises(InputError, match=r"no column 'Path' \(given as path_field\).*body, where, by"):
        list(read_documents(file, text_field="body", path_field="Path"))


BAD_LINES = [
    (b'{"content": "caf\xe9"}', "invalid UTF-8", "byte 0xe9 at 16"),
    (b'{"content": "x', "corrupt line", "not JSON"),
    (b'["x"]', "corrupt row", "type list; expected an object with columns"),
    (b'{"content": null}', "corrupt row", "type NoneType; expected str"),
    (b'{"path": "a.py"}', "corrupt row", "no column 'content'.*path"),
    (b'{"content": 7}', "corrupt row", "type int; expected str"),
    (rb'{"content": "\ud800"}', "invalid UTF-8", "surrogate"),
    (rb'{"content": "\u0000"}', "binary", "NUL byte"),
]


@pytest.mark.parametrize(("bad", "reason", "detail"), BAD_LINES, ids=[f"{b[1]}: {b[2]}" for b in BAD_LINES])
def test_a_bad_line_raises_or_is_counted(tmp_path, bad, reason, detail):
    good = lines()
    file = write_jsonl(tmp_path / "a.jsonl.gz", good + bad + b"\n" + good)
    with pytest.raises(InputError, match=f"a.jsonl.gz:3: {reason}: .*{detail}"):
        list(read_documents(file))
    report = CleaningReport()
    assert list(read_documents(file, report=report)) == EXPECTED * 2
    entry = report.dropped[reason]
    assert entry.documents == 1 and len(report.dropped) == 1
    assert f"{file}:3" in entry.examples[0] and re.search(detail, entry.examples[0])


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
@pytest.mark.parametrize("harm", ["truncated", "garbage"])
def test_a_corrupt_archive_is_named(tmp_path, name, harm):
    import datasets
    import pyarrow
    from pyarrow import ipc

    file = tmp_path / name
    rows = [{"content": f"x = {i}\n" * 50, "path": f"{i}.py"} for i in range(2000)]
    if name.endswith(".parquet"):
        datasets.Dataset.from_list(rows).to_parquet(file)
    elif name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(rows)
        with ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    else:
        write_jsonl(file, lines(rows))
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * 2 // 3] if harm == "truncated" else b"garbage " * 100)
    with pytest.raises(InputError, match=f"{name}: corrupt archive"):
        list(read_documents(file))
    report = CleaningReport()
    read = list(read_documents(file, report=report))
    assert len(read) < 2000 and all(d.text.startswith("x = ") for d in read)
    assert (
        report.dropped["corrupt archive"].documents == 1 and str(file) in report.dropped["corrupt archive"].examples[0]
    )


def test_invalid_utf8_in_a_table_drops_one_row(tmp_path):
    import pyarrow
    from pyarrow import parquet

    texts = pyarrow.array([b"x = 1", b"caf\xe9", b"y = 2"], pyarrow.binary()).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    report = CleaningReport()
    assert [d.text for d in read_documents(tmp_path / "a.parquet", report=report)] == ["x = 1", "y = 2"]
    assert report.to_dict()["dropped"]["invalid UTF-8"]["examples"] == [f"{tmp_path / 'a.parquet'}:2: byte 0xe9 at 3"]


def test_files_that_are_not_text_are_reported(tmp_path):
    (tmp_path / "binary.py").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "latin.py").write_bytes(b"# caf\xe9\n")
    (tmp_path / "m.py").write_text("x = 1\n")
    report = CleaningReport()
    assert [d.path for d in read_documents(tmp_path, report=report)] == ["m.py"]
    assert {reason: entry.documents for reason, entry in report.dropped.items()} == {"binary": 1, "invalid UTF-8": 1}
    assert "latin.py: byte 0xe9 at 5" in report.dropped["invalid UTF-8"].examples[0] and report.bytes == 6 + 7
    with pytest.raises(InputError, match=r"binary\.py"):
        list(read_documents(tmp_path))


def test_invalid_sources_are_an_error(tmp_path):
    for bad, message in [
        (tmp_path / "nowhere", "hub://"),
        (tmp_path, "matches"),
        (7, "int"),
        ([], "empty"),
    ]:
        with pytest.raises(InputError, match=message):
            list(read_documents(bad))
    (tmp_path / "a.csv").write_text("text\nx\n")
    with pytest.raises(InputError, match=r"a\.csv.*unsupported ending; expected \.jsonl"):
        read_documents(tmp_path / "a.csv")
    with pytest.raises(InputError, match="kind is 'csv'; it must be one of jsonl"):
        read_documents(tmp_path / "a.csv", kind="csv")
    (tmp_path / "a.jsonl").write_bytes(lines())
    (tmp_path / "m.py").write_text("x = 1\n")
    with pytest.raises(InputError, match=r"several kinds of files \(jsonl, \*\.py\)"):
        read_documents(tmp_path)
    assert [d.path for d in read_documents(tmp_path, kind="tree")] == ["m.py"]
    assert list(read_documents(tmp_path, kind="jsonl")) == EXPECTED


def test_a_missing_library_is_an_error_naming_its_extra(tmp_path, monkeypatch):
    from duonlp.data.cleaning import masking
    from duonlp.data.cleaning.cleaner import CleaningConfig, clean
    from duonlp.data.cleaning.splits import write_split

    for name in ("a.jsonl.zst", "a.parquet", "a.arrow"):
        (tmp_path / name).write_bytes(b"")
    for module in ("datasets", "datasketch", "detect_secrets.core.plugins.util", "pyarrow", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    masking._load_patterns.cache_clear()
    missing = [
        *(lambda name=name: list(read_documents(tmp_path / name)) for name in ("a.jsonl.zst", "a.parquet", "a.arrow")),
        lambda: list(read_documents("hub://owner/name")),
        lambda: clean([], CleaningConfig(masking=None)),
        lambda: clean([], CleaningConfig(near_duplicates=None)),
        lambda: write_split(EXPECTED, tmp_path / "split", ending=".jsonl.zst"),
    ]
    for call in missing:
        with pytest.raises(MissingExtraError, match=r'requires .*; install it with pip install "duonlp\[data\]"'):
            call()
    assert len(list(clean(EXPECTED, CleaningConfig(filters=None, near_duplicates=None, masking=None)))) == 2
