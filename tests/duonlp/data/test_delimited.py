"""Files of rows as people have them: byte order marks, quotes or none, encodings, repeated columns; no row is lost in silence."""

import csv
import gzip
import io
import json

import pytest

from duonlp.data import read_documents, read_labelled_texts, read_pairs
from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled.files import is_one_table
from duonlp.errors import InputError
from duonlp.metrics import read_predictions

BOM = b"\xef\xbb\xbf"
ROWS = [("a, b", "x"), ('he said "hi"', "y"), ("caf\u00e9", "x")]


def table(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, columns=("text", "label")):
    stream = io.StringIO()
    csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator="\n").writerows([columns, *rows])
    return stream.getvalue()


def packed(name, data):
    import zstandard

    return {"gz": gzip.compress, "st": zstandard.compress}.get(name[-2:], bytes)(data)


def read(file, data, **options):
    data = data if isinstance(data, bytes) else data.encode()
    file.write_bytes(packed(file.name, data))
    texts = read_labelled_texts(file, **options)
    return [(text, texts.label_names[label]) for text, label in zip(texts.texts, texts.labels, strict=True)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "csv.gz", "tsv.zst", "jsonl", "jsonl.gz", "json", "jsonl.zst"])
def test_a_byte_order_mark_is_no_text(tmp_path, ending):
    if "json" in ending:
        rows = [{"text": text, "label": label} for text, label in ROWS]
        data = json.dumps(rows) if ending == "json" else "".join(json.dumps(row) + "\n" for row in rows)
    else:
        data = table(ROWS, "\t" if "tsv" in ending else ",", csv.QUOTE_ALL)  # the header is quoted, too
    assert read(tmp_path / f"a.{ending}", BOM + data.encode()) == ROWS


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["csv", "tsv.gz", "jsonl.zst", "json"])
def test_encodings(tmp_path, ending, encoding):
    records = [
        {"text": text, "label": label, "summary": "B", "id": f"\u00e9{i}"} for i, (text, label) in enumerate(ROWS)
    ]
    if "json" in ending:
        data = "\n".join(json.dumps(row, ensure_ascii=False) for row in records)
    else:
        data = table([row.values() for row in records], "\t" if "tsv" in ending else ",", columns=records[0])
    file = tmp_path / f"a.{ending}"
    assert read(file, data.encode(encoding), encoding=encoding) == ROWS
    assert [pair.document for pair in read_pairs(file, encoding=encoding)] == [text for text, _ in ROWS]
    if encoding == "utf-8-sig":
        return
    splits = tmp_path / "splits.json"
    splits.write_bytes(json.dumps({"train": records, "test": records}, ensure_ascii=False).encode(encoding))
    assert len(read_labelled_texts(splits, "test", encoding=encoding)) == 3
    assert not is_one_table(splits, encoding)
    for reader in (read_labelled_texts, lambda file: list(read_pairs(file))):
        with pytest.raises(InputError, match=r"(UTF-8|UTF-16|UTF-32).*encoding=") as caught:
            reader(file)
        str(caught.value).encode()  # it can be printed
    report = CleaningReport()
    kept = list(read_pairs(file, report=report))
    assert len(kept) + sum(entry.documents for entry in report.dropped.values()) >= 3


@pytest.mark.parametrize("column", ["text", "label", "id", "note"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "json"])
def test_every_column_is_checked(tmp_path, ending, column):
    good = {"text": "hello", "label": "a", "id": "1", "note": "n"}
    rows = [good, good | {column: "caf\u00e9"}, good]
    if "json" in ending:
        data = json.dumps(rows, ensure_ascii=False)
        data = data if ending == "json" else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        data = table([row.values() for row in rows], "\t" if ending == "tsv" else ",", columns=good)
    with pytest.raises(InputError, match=r"invalid UTF-8: .*encoding='cp1252'"):
        read(tmp_path / f"a.{ending}", data.encode("latin-1"))
    report = CleaningReport()
    assert read(tmp_path / f"a.{ending}", data.encode("latin-1"), report=report) == [("hello", "a")] * 2
    assert report.dropped["invalid UTF-8"].documents == 1


@pytest.mark.parametrize("column", ["label", "id"])
def test_escaped_surrogates_are_no_text(column):
    row = {"text": "a", "label": "x", "id": "1", "summary": "s"} | {column: "caf\udce9"}
    with pytest.raises(InputError, match="invalid UTF-8"):
        read_labelled_texts([row])
    if column == "id":
        with pytest.raises(InputError, match="invalid UTF-8"):
            list(read_pairs([row]))
    with pytest.raises(InputError, match="invalid UTF-8"):
        list(read_documents([{"text": "a", "path": "caf\udce9"}]))


def test_a_header_in_another_encoding(tmp_path):
    with pytest.raises(InputError, match=r"a\.csv:1: the header is not text .*encoding='cp1252'") as caught:
        read(tmp_path / "a.csv", "cat\u00e9gorie,text\na,hello\n".encode("latin-1"), report=CleaningReport())
    str(caught.value).encode()


def test_endings_in_capitals_and_archives_without_one(tmp_path):
    data = gzip.compress(table(ROWS).encode())
    (tmp_path / "A.CSV.GZ").write_bytes(data)
    assert read_labelled_texts(tmp_path / "A.CSV.GZ").texts == [text for text, _ in ROWS]
    with pytest.raises(InputError, match=r"the header is not text \(binary: .*; give a text file, compressed only"):
        read(tmp_path / "a.csv", data)


GLUE = [
    ("plain", "5\" disk\t1\nb\t0\n", [('5" disk', "1"), ("b", "0")]),
    ("never closed", 'fine\t1\n"start only\t0\nnext\t1\n', [("fine", "1"), ('"start only', "0"), ("next", "1")]),
    ("pair over a line", '"good\t1\nbad"\t0\nend\t1\n', [('"good', "1"), ('bad"', "0"), ("end", "1")]),
    ("a whole quotation", '"good"\t1\nbad\t0\n', [('"good"', "1"), ("bad", "0")]),
    ("closed too early", '"good" he said\t1\nbad\t0\n', [('"good" he said', "1"), ("bad", "0")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "expected"), GLUE, ids=[case[0] for case in GLUE])
def test_a_tsv_file_is_not_quoted(tmp_path, name, body, expected):
    assert read(tmp_path / "a.tsv", "sentence\tlabel\n" + body) == expected
    assert read(tmp_path / "a.tsv.gz", "sentence\tlabel\r\n" + body.replace("\n", "\r\n"), quoting=False) == expected


def test_two_texts_with_a_quotation_over_both(tmp_path):
    file = tmp_path / "a.tsv"
    file.write_text('premise\thypothesis\tlabel\n"It rains,\the said."\tyes\n"Well"\tno\tno\n')
    read = read_labelled_texts(file, text_column=("premise", "hypothesis"))
    assert read.texts == [('"It rains,', 'he said."'), ('"Well"', "no")]


@pytest.mark.parametrize("text", ['he said "hi"', "a\tb", "line one\nline two"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_a_tsv_file_that_a_program_quoted(tmp_path, text, quoting):
    rows = [("plain", "x"), (text, "y"), ("end", "x")]
    assert read(tmp_path / "a.tsv", table(rows, "\t", quoting)) == rows


def test_signs_of_quoting_and_of_none(tmp_path):
    data = table([('he said "hi"', "x")], "\t") + 'plain\tx\n"lone\ty\nmore\tx\n'
    with pytest.raises(InputError, match="quoting=True if its fields are quoted, or quoting=False if"):
        read(tmp_path / "a.tsv", data)
    assert len(read(tmp_path / "a.tsv", data, quoting=False)) == 4
    report = CleaningReport()
    assert len(read(tmp_path / "a.tsv", data, quoting=True, report=report)) == 2
    assert report.dropped["corrupt row"].documents == 2


@pytest.mark.parametrize("ending", ["csv", "csv.gz", "tsv"])
def test_every_row_behind_an_unclosed_quote_counts(tmp_path, ending):
    delimiter = "\t" if ending == "tsv" else ","
    rows = [
        *(f"t{i}{delimiter}x" for i in range(4)),
        f'"start{delimiter}y',
        *(f"u{i}{delimiter}x" for i in range(7)),
        "",
        "",
    ]
    file, report = tmp_path / f"a.{ending}", CleaningReport()
    kept = read(file, "\n".join([f"text{delimiter}label", *rows]), report=report, quoting=True)
    assert len(kept) == 4 and report.dropped["corrupt row"].documents == 8
    pairs = CleaningReport()
    assert len(list(read_pairs(file, summary_field="label", report=pairs, quoting=True))) == 4
    assert pairs.dropped["corrupt row"].documents == 8
    with pytest.raises(InputError, match=r":6: corrupt row: unexpected end of data"):
        read_labelled_texts(file, quoting=True)


def test_a_file_of_an_old_mac(tmp_path):
    assert read(tmp_path / "a.csv", 'text,label\r"a, b",x\rc,y\r') == [("a, b", "x"), ("c", "y")]


def test_every_line_of_an_old_mac_behind_a_wrong_quote_counts(tmp_path):
    report = CleaningReport()
    with pytest.raises(InputError, match="is empty"):
        read(tmp_path / "a.csv", 'text,label\r"a"x,b\rc,d\re,f\r', report=report)
    assert report.dropped["corrupt row"].documents == 3


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_rows_before_the_end_of_a_truncated_archive_are_read(tmp_path, ending):
    rows = [(f"text {i * 7919 % 104729}", str(i % 2)) for i in range(20_000)]
    file = tmp_path / f"a.{ending}.gz"
    file.write_bytes(gzip.compress(table(rows, "\t" if ending == "tsv" else ",").encode())[:-10_000])
    report = CleaningReport()
    assert 5_000 < len(read_labelled_texts(file, report=report)) < 20_000
    assert report.dropped["corrupt archive"].documents == 1


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
@pytest.mark.parametrize(("encoding", "invalid"), [("cp1252", b"\x81"), ("utf-16-le", b"\x00\xdc")])
def test_what_is_invalid_in_the_declared_encoding(tmp_path, ending, encoding, invalid):
    text = "text,label\ncaf?,a\n" if ending == "csv" else '{"text": "caf?", "label": "a"}'
    text = f"[{text}]" if ending == "json" else text
    data = text.encode(encoding).replace("?".encode(encoding), invalid)
    with pytest.raises(InputError, match=f"invalid {encoding.upper()}"):
        read(tmp_path / f"a.{ending}", data, encoding=encoding)


def test_a_repeated_column(tmp_path):
    import pyarrow
    from pyarrow import ipc, parquet

    for name, data in [
        ("a.csv", "text,label,label\na,1,2\n"), ("a.tsv", "text\tlabel\t label \na\t1\t2\n"),
        ("a.jsonl", '{"text": "a", "label": 1, "label": 2}\n'), ("a.json", '[{"text": "a", "label": 1, "label": 2}]'),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=r"'label' (2 times|twice)"):
            read(tmp_path / name, data)
    assert read(tmp_path / "b.csv", "text,label,,\na,1,,\n") == [("a", "1")], "trailing delimiters are no columns"
    columns = pyarrow.table([["a"], ["x"], ["y"]], names=["text", "label", "label"])
    parquet.write_table(columns, tmp_path / "a.parquet")
    with ipc.new_stream(tmp_path / "a.arrow", columns.schema) as writer:
        writer.write_table(columns)
    for name in ("a.parquet", "a.arrow"):
        with pytest.raises(InputError, match="'label' 2 times"):
            read_labelled_texts(tmp_path / name)
    predictions = tmp_path / "p.jsonl"
    predictions.write_text('{"text": "a", "text": "b"}\n')
    with pytest.raises(InputError, match="'text' twice"):
        read_predictions(predictions, ["1"])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1.0", "0.0", "1"], ("0", "1")),
        (["1.0", "0.0"], ("0", "1")),
        (["1", "1.0", "none"], ("1", "none")),
        (["1.0", "1.5"], ("1.0", "1.5")),
        (["True", "false", "true"], ("false", "true")),
        (["True", "False"], ("False", "True")),
        ([1, 1.0, "1", "0"], ("0", "1")),
        ([True, "True", False], ("false", "true")),
        ([[1, "2.0"], ["2"]], ("1", "2")),
    ],
)
def test_spellings_of_one_value_are_one_class(labels, names):
    rows = [{"text": "a", "label": label} for label in labels]
    read = read_labelled_texts(rows)
    assert read.label_names == names
    again = read_labelled_texts(rows, label_names=names)
    assert (again.labels == read.labels).all(), "whichever spelling the names have"


@pytest.mark.parametrize("labels", [["01", "1"], ["1.5", "1.50"], ["true", "1"], [True, 0]])
def test_labels_that_may_mean_the_same(labels):
    rows = [{"text": "a", "label": label} for label in labels]
    with pytest.raises(InputError, match=r"the same number|mix truth values with numbers"):
        read_labelled_texts(rows)


def test_options_that_do_nothing_are_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": "x", "summary": "b"}\n')
    row = {"text": "a", "label": "x", "summary": "b"}
    for source, options, message in [
        ([row], {"encoding": "cp1252"}, "the source is not a file of text; drop encoding"),
        (tmp_path / "a.jsonl", {"quoting": True}, "neither CSV nor TSV; drop quoting"),
        (tmp_path / "a.jsonl", {"encoding": "utf-9"}, "encoding is 'utf-9', .* give a name such as 'utf-8'"),
        (tmp_path / "a.jsonl", {"encoding": "rot13"}, "is not an encoding of text"),
        (tmp_path / "a.jsonl", {"quoting": 3}, "must be True, False or None"),
    ]:
        for reader in (read_labelled_texts, lambda source, **options: list(read_pairs(source, **options))):
            with pytest.raises(InputError, match=message):
                reader(source, **options)


def test_documents_and_predictions_in_another_encoding(tmp_path):
    (tmp_path / "a.py").write_bytes("x = '\u00e9'\n".encode("utf-16"))
    with pytest.raises(InputError, match=r"it is not UTF-8 text, but UTF-16 text.*encoding='utf-16'"):
        list(read_documents(tmp_path))
    assert next(read_documents(tmp_path, encoding="utf-16")).text == "x = '\u00e9'\n"
    (tmp_path / "p.txt").write_bytes("caf\u00e9\r\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"not UTF-8 text .*encoding='cp1252'"):
        read_predictions(tmp_path / "p.txt", ["1"])
    assert read_predictions(tmp_path / "p.txt", ["1"], encoding="cp1252") == ["caf\u00e9"]


def test_every_row_of_a_damaged_parquet_file_counts(tmp_path):
    import pyarrow
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    rows = pyarrow.table({"text": [f"text {i}" for i in range(40)], "label": ["x"] * 40})
    parquet.write_table(rows, file, row_group_size=10, compression="gzip", use_dictionary=False)
    data = bytearray(file.read_bytes())
    start = parquet.ParquetFile(file).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    file.write_bytes(data)
    report = CleaningReport()
    kept = list(read_documents(file, report=report))
    assert len(kept) < 40 and len(kept) + sum(entry.documents for entry in report.dropped.values()) == 40
