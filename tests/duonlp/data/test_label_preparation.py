"""Labeled data prepared: templates, label maps, unlabeled rows, duplicates, counts and files."""

import json

import numpy as np
import pytest
from rich.console import Console

from duonlp.data import (
    CleaningReport,
    LabelledTexts,
    TextTemplate,
    label_counts,
    prepare_labels,
    read_labelled_texts,
    read_unlabelled_texts,
    write_labelled_texts,
    write_unlabelled_texts,
)
from duonlp.data.labelled.writing import write_label_folder
from duonlp.errors import InputError
from tests.duonlp.data.test_labelled_texts import named, write, write_csv

ISSUES = [
    {"title": "Crash", "body": "It hangs.", "labels": [{"name": "bug report"}, {"name": "arrow"}]},
    {"title": "Docs", "body": None, "labels": [{"name": "docs"}]},
    {"title": "Faster", "body": "", "labels": []},
    {"title": "Crash", "body": "It hangs.", "labels": [{"name": "docs"}]},
    {"title": "Hello", "body": "x", "labels": [{"name": "arrow"}]},
    {"title": "Faster", "body": None, "labels": []},
    {"title": "Wrong", "body": "y", "labels": [{"name": "bug"}, {"name": "bug report"}]},
]
TEMPLATE = "{title}\n\n{body}"
MAP = {"bug report": "bug", "arrow": None}


def test_issues():
    issues = prepare_labels(ISSUES, text_template=TEMPLATE, label_map=MAP)
    assert named(issues.labelled) == [("Crash\n\nIt hangs.", ["bug"]), ("Docs", ["docs"]), ("Wrong\n\ny", ["bug"])]
    assert issues.unlabelled == ["Faster", "Hello\n\nx"] and issues.unlabelled_ids == ["rows:2", "rows:4"]
    assert issues.labelled.ids == ["rows:0", "rows:1", "rows:6"]
    report = issues.report
    assert (report.rows, report.labelled, report.unlabelled, report.labels_dropped) == (7, 3, 2, 1)
    assert (report.duplicates, report.conflicts) == (2, 1) and report.dropped_labels == {"arrow": 2}
    assert report.conflict_examples == ("rows:3: docs, but bug at rows:0",)
    assert json.loads(json.dumps(report.to_dict()))["cardinality"] == 1.0
    console = Console(record=True, width=100)
    console.print(report)
    text = console.export_text()
    assert "1 lost all their labels" in text and "dropped, 1 with other labels" in text and "arrow (2)" in text
    kept = prepare_labels(ISSUES, text_template=TEMPLATE, label_map=MAP, duplicates="keep")
    assert (len(kept.labelled), len(kept.unlabelled), kept.report.duplicates) == (4, 3, 2)


def test_what_rows_without_a_label_mean():
    options = {"text_template": TEMPLATE, "label_map": MAP}
    negative = prepare_labels(ISSUES, unlabelled="negative", **options)
    assert negative.unlabelled == [] and negative.labelled.labels.tolist() == [[1, 0], [0, 1], [0, 0], [0, 0], [1, 0]]
    with pytest.raises(InputError, match=r"rows:2: no label: it has no label; fix it"):
        prepare_labels(ISSUES, unlabelled="error", **options)
    report = CleaningReport()
    assert len(prepare_labels(ISSUES, unlabelled="error", report=report, **options).labelled) == 3
    assert (
        report.dropped["no label"].documents == 3
        and "labels arrow are dropped" in report.dropped["no label"].examples[1]
    )
    with pytest.raises(
        InputError, match=r"unlabelled 'negatives' is not one of separate, negative, error; did you mean"
    ):
        prepare_labels(ISSUES, unlabelled="negatives", **options)
    with pytest.warns(UserWarning, match=r"3 of 7 texts have no label .*unlabelled='negative'"):
        assert len(read_labelled_texts(ISSUES, **options)) == 7
    assert len(read_labelled_texts(ISSUES, unlabelled="separate", **options)) == 4
    with pytest.raises(
        InputError, match=r"none of the 1 texts of the list of rows has a label; check its label column"
    ):
        prepare_labels(ISSUES[2:3], text_template=TEMPLATE)


def test_a_0_or_1_for_each_class_is_always_labelled():
    rows = [{"text": "a", "label": [0, 1, 1]}, {"text": "b", "label": [0, 0, 0]}, {"text": "c", "label": None}]
    read = prepare_labels(rows, class_names=["x", "y", "z"])
    assert read.labelled.labels.tolist() == [[0, 1, 1], [0, 0, 0]] and read.unlabelled == ["c"]
    mapped = prepare_labels(rows, class_names=["x", "y", "z"], label_map={"y": "z"}).labelled
    assert mapped.label_names == ("x", "z") and mapped.labels.tolist() == [[0, 1], [0, 0]]


def test_single_labels(tmp_path):
    rows = [{"text": "a", "label": "yes"}, {"text": "b", "label": ""}, {"text": "c"}, {"text": "d", "label": "No"}]
    file = write(tmp_path / "a.jsonl", rows, lines=True)
    read = prepare_labels(file, label_map={"No": "no"})
    assert named(read.labelled) == [("a", "yes"), ("d", "no")] and read.unlabelled == ["b", "c"]
    with pytest.raises(InputError, match=r"a\.jsonl:2: no label: its label is ''"):
        prepare_labels(file, unlabelled=None)
    with pytest.raises(InputError, match=r"a\.jsonl:2: no label"):
        prepare_labels(file, unlabelled="negative")
    with pytest.raises(InputError, match=r"a\.jsonl:2: no label"):
        read_labelled_texts(file)
    dropped = read_labelled_texts(rows[::3], label_map={"No": None})
    assert named(dropped) == [("a", "yes")], "the user dropped it"
    for missing in ("label", "kind"):
        with pytest.raises(InputError, match=rf"has no column '{missing}'"):
            prepare_labels([{"text": "a", "x": 1}], label_column=None if missing == "label" else missing)


@pytest.mark.parametrize("kind", ["json", "toml", "dict"])
def test_label_maps(tmp_path, kind):
    given = {"1": "one", "2": "one", "3": "", "*": "other"}
    file = tmp_path / f"map.{kind}"
    if kind == "json":
        file.write_text(json.dumps(given | {"3": None}))
    elif kind == "toml":
        file.write_text("".join(f"{json.dumps(old)} = {json.dumps(new)}\n" for old, new in given.items()))
    rows = [{"text": f"{i}", "label": label} for i, label in enumerate([[1, 2], [2.0], ["3"], [4, 5, 1], [3, 4]])]
    read = prepare_labels(rows, label_map=given if kind == "dict" else file)
    assert named(read.labelled) == [("0", ["one"]), ("1", ["one"]), ("3", ["one", "other"]), ("4", ["other"])]
    assert read.unlabelled == ["2"] and read.report.dropped_labels == {"3": 2}
    unused = prepare_labels(rows, label_map={"7": "seven"}).report.unused
    assert unused == ("7",)


@pytest.mark.parametrize(
    "content, message",
    [
        ("[1]", r"label_map is \[1\]; give"),
        ("{", r"label map '.*map\.json' is invalid"),
        ('{"a": "b", "a": "c"}', "is invalid"),
        ('{"a": 3}', "maps 'a' to 3; give the new name as a text"),
        ("{}", "is empty"),
        ('{" ": "b"}', "has the key ' '"),
        ('{"1": "a", "1.0": "b"}', "maps '1' and '1.0', which are the same label, to different names"),
        ('{"a": "\\ud800"}', "unpaired surrogate"),
    ],
)
def test_invalid_label_maps(tmp_path, content, message):
    file = tmp_path / "map.json"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        prepare_labels(ISSUES, text_template=TEMPLATE, label_map=file)
    for source, text in (
        (tmp_path / "no.json", "cannot read the label map"),
        (tmp_path / "map.txt", "give a .json or"),
    ):
        with pytest.raises(InputError, match=text):
            prepare_labels(ISSUES, text_template=TEMPLATE, label_map=source)


def test_the_most_frequent_labels(tmp_path):
    train = [
        {"text": f"{i}", "labels": labels} for i, labels in enumerate([["c", "a"], ["a"], ["b", "c"], ["b"], ["d"]])
    ]
    for split, rows in (
        ("train", train),
        ("test", [{"text": "x", "labels": ["d", "b", "new"]}, {"text": "y", "labels": ["d"]}]),
    ):
        write(tmp_path / f"{split}.jsonl", rows, lines=True)
    read = prepare_labels(tmp_path, "train", most_frequent=2)
    assert read.labelled.label_names == ("a", "b") and read.unlabelled == ["4"], "of equally frequent ones, the first"
    assert read.report.dropped_labels == {"c": 2, "d": 1}
    for options in ({}, {"label_names": ["a", "b"]}):
        test = prepare_labels(tmp_path, "test", most_frequent=2, **options)
        assert named(test.labelled) == [("x", ["b"])] and test.labelled.label_names == ("a", "b")
        assert test.unlabelled == ["y"]
    assert len(prepare_labels(tmp_path, "train", most_frequent=99).labelled.label_names) == 4
    with pytest.raises(InputError, match="most_frequent is 0"):
        prepare_labels(tmp_path, "train", most_frequent=0)


def test_numbers_of_classes_in_a_table_without_a_header(tmp_path):
    file = tmp_path / "emotions.tsv"
    file.write_text('so sad\t2,0\tid1\nso "good"\t1\tid2\nhm\t\tid3\n')
    (tmp_path / "names.txt").write_text("anger\njoy\nsadness\n")
    options = {"label_separator": ",", "column_names": "text,labels,id", "unlabelled": "separate"}
    read = read_labelled_texts(file, class_names=tmp_path / "names.txt", **options)
    assert named(read) == [("so sad", ["anger", "sadness"]), ('so "good"', ["joy"])] and read.ids == ["id1", "id2"]
    same = read_labelled_texts(file, label_names=["anger", "joy", "sadness"], **options)
    assert named(same) == named(read), "numbers are classes of label_names, too"
    mapped = read_labelled_texts(file, class_names=tmp_path / "names.txt", label_map={"anger": "sadness"}, **options)
    assert mapped.label_names == ("sadness", "joy") and mapped.labels.tolist() == [[1, 0], [0, 1]]
    again = read_labelled_texts(
        file,
        class_names=tmp_path / "names.txt",
        label_map={"anger": "sadness"},
        label_names=mapped.label_names,
        **options,
    )
    np.testing.assert_array_equal(again.labels, mapped.labels)
    for change, message in [
        ({"column_names": "text,labels"}, "row has 3 fields, but column_names has 2"),
        ({"column_names": "text,,id"}, "column_names is 'text,,id'; give the name of each column"),
        ({"column_names": ["a", "a", "b"]}, "has the column 'a' 2 times"),
        ({"class_names": tmp_path / "no.txt"}, "cannot read the label names"),
        ({"class_names": ["anger", "joy"]}, "unknown label: its label '2' is not one of anger, joy"),
    ]:
        with pytest.raises(InputError, match=message):
            read_labelled_texts(file, **options | {"class_names": tmp_path / "names.txt"} | change)
    (tmp_path / "names.txt").write_text("anger\n\njoy\n")
    with pytest.raises(InputError, match="has an empty line 2"):
        read_labelled_texts(file, class_names=tmp_path / "names.txt", **options)
    with pytest.raises(InputError, match="column_names is 'text', but the source is neither CSV nor TSV"):
        read_labelled_texts(ISSUES, column_names="text")


def test_templates():
    template = TextTemplate("{a}: {{{b.c}}} {a}")
    assert template.columns == ("a", "b.c")
    assert (
        template.render({"a": 1, "b.c": None}) == "1: {} 1" and template.render({"a": " ", "b.c": float("nan")}) == ""
    )
    for bad, message in [
        ("no columns", "names no column"),
        ("{}", "more or less than the name of a column"),
        ("{a!r}", "more or less"),
        ("{a:>9}", "more or less"),
        ("{a", "is invalid"),
        ("a}", "is invalid"),
        (7, "must be a text"),
    ]:
        with pytest.raises(InputError, match=message):
            TextTemplate(bad)
    row = {"a": "x", "label": "y"}
    for wrong in ("{a.__class__}", "{a[0]}", "{aa}"):
        with pytest.raises(InputError, match=r"has no column '.*'; it has a, label"):
            read_labelled_texts([row], text_template=wrong)
    with pytest.raises(InputError, match=r"text_column is 'a' and text_template is '\{a\}'; give one of the two"):
        read_labelled_texts([row], text_column="a", text_template="{a}")
    with pytest.raises(InputError, match=r"rows:0: empty text: its text is ''"):
        read_labelled_texts([{"a": None, "label": "y"}], text_template="t: {a}")
    with pytest.raises(InputError, match=r"rows:0: corrupt row: column 'a' has type list"):
        read_labelled_texts([{"a": ["x"], "label": "y"}], text_template="{a}")


def test_unlabelled_texts(tmp_path):
    rows = [{"title": "a", "body": None}, {"title": "b", "body": "c"}, {"title": "a", "body": ""}]
    file = write(tmp_path / "unlabeled.jsonl", rows, lines=True)
    assert read_unlabelled_texts(file, text_template=TEMPLATE) == ["a", "b\n\nc"]
    assert read_unlabelled_texts(file, text_column="title", duplicates="keep") == ["a", "b", "a"]
    assert read_unlabelled_texts(file, text_column="title", duplicates="keep", limit=2) == ["a", "a"]
    assert read_unlabelled_texts(ISSUES, text_column="title", limit=1) == ["Crash"], "their labels do not matter"
    with pytest.raises(InputError, match=r"no file or folder '.*missing\.jsonl'"):
        read_unlabelled_texts(tmp_path / "missing.jsonl")
    with pytest.raises(InputError, match="rows has no text"):
        read_unlabelled_texts([])


def test_written_texts_are_read_back(tmp_path):
    prepared = prepare_labels(ISSUES, text_template=TEMPLATE, label_map=MAP)
    for name in ("a.jsonl", "a.jsonl.gz"):
        write_labelled_texts(prepared.labelled, tmp_path / name)
        read = read_labelled_texts(tmp_path / name)
        assert named(read) == named(prepared.labelled) and read.ids == prepared.labelled.ids
    single = LabelledTexts([("a", "b"), ("c\u2028", "d")], np.array([1, 0], np.int32), ("no", "yes"))
    write_labelled_texts(single, tmp_path / "pairs.jsonl")
    assert named(read_labelled_texts(tmp_path / "pairs.jsonl", text_column="text,text_pair")) == named(single)
    write_unlabelled_texts(prepared.unlabelled, tmp_path / "u.jsonl", prepared.unlabelled_ids)
    assert read_unlabelled_texts(tmp_path / "u.jsonl") == prepared.unlabelled
    with pytest.raises(InputError, match=r"is not a \.jsonl or"):
        write_labelled_texts(single, tmp_path / "a.csv")
    with pytest.raises(InputError, match="1 ids for 2 texts"):
        write_unlabelled_texts(["a", "b"], tmp_path / "u.jsonl", ["1"])
    (tmp_path / "new").mkdir()
    files = write_label_folder(tmp_path / "new", {"train": prepared.labelled}, {"8": prepared.labelled}, ["x"])
    assert files == ["labels.txt", "slice-8/train.jsonl", "train.jsonl", "unlabeled.jsonl"]
    assert len(read_labelled_texts(tmp_path / "new", "train")) == 3
    with pytest.raises(InputError, match="is not empty; give a new one"):
        write_label_folder(tmp_path / "new", {"train": prepared.labelled})


def test_label_counts(tmp_path):
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0]], np.float32)
    texts = LabelledTexts(["a", "b", "c"], labels, ("[red]x", "$y$", "z"))
    counts = label_counts({"train": texts, "test": texts.take([0])})
    assert counts.to_dict() == {
        "train": {"texts": 3, "without_label": 1, "cardinality": 1.0, "counts": {"[red]x": 2, "$y$": 1, "z": 0}},
        "test": {"texts": 1, "without_label": 0, "cardinality": 1.0, "counts": {"[red]x": 1, "$y$": 0, "z": 0}},
    }
    assert counts.missing() == {"test": ["$y$"]}, "z is nowhere"
    console = Console(record=True, width=60)
    console.print(counts)
    text = console.export_text()
    assert "[red]x" in text and "no label applies" in text
    with pytest.raises(InputError, match="'test' has other label names"):
        label_counts({"train": texts, "test": LabelledTexts(["a"], np.zeros(1, np.int32), ("q",))})
    with pytest.raises(InputError, match="there are no parts"):
        label_counts({})
    pytest.importorskip("matplotlib")
    counts.plot(tmp_path / "a.svg", "issues")
    svg = (tmp_path / "a.svg").read_text()
    assert "[red]x" in svg and "$y$" in svg and "train: 3 texts" in svg
    label_counts(texts.take([2])).plot(tmp_path / "none.png")
    with pytest.raises(InputError, match=r"ends in '\.txt'"):
        counts.plot(tmp_path / "a.txt")


def test_tables_without_a_label_column(tmp_path):
    write_csv(tmp_path / "a.csv", [{"text": "x", "kind": "y"}])
    with pytest.raises(InputError, match=r"a\.csv has no column 'label' or .*; it has text, kind"):
        prepare_labels(tmp_path / "a.csv")


def test_lists_in_json_in_a_csv_file(tmp_path):
    rows = [{"text": "x", "labels": '["b", "a"]'}, {"text": "y", "labels": "[]"}, {"text": "z", "labels": ""}]
    read = prepare_labels(write_csv(tmp_path / "a.csv", rows), label_separator="json")
    assert named(read.labelled) == [("x", ["a", "b"])] and read.unlabelled == ["y", "z"]
    flags = [{"text": "x", "labels": "[0, 1, 1]"}, {"text": "y", "labels": "[0, 0, 0]"}]
    assert prepare_labels(flags, label_separator="json").labelled.labels.tolist() == [[0, 1, 1], [0, 0, 0]]
    for wrong in ("['a']", "a", '{"a": 1}'):
        with pytest.raises(InputError, match=r"no label: its label .* is not a list in JSON, such as \["):
            prepare_labels([{"text": "x", "labels": wrong}], label_separator="json")
