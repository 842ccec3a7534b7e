"""read_labelled_texts: every source format, split name, label type and error."""

import csv
import gzip
import json

import numpy as np
import pytest

from duonlp.data.cleaning.report import CleaningReport
from duonlp.data.labelled.files import is_one_table
from duonlp.data.labelled.texts import LabelledTexts, read_labelled_texts
from duonlp.errors import InputError

CLINC = {
    "oos_val": [["what is love", "oos"]],
    "val": [["freeze my card", "freeze_account"], ["hi there", "greeting"]],
    "train": [["hello", "greeting"], ["block my account", "freeze_account"], ["what is my balance", "balance"]],
    "oos_train": [["how deep is the sea", "oos"]],
}
NAMES = ("balance", "freeze_account", "greeting", "oos")
ROWS = [{"text": "so good", "label": "joy"}, {"text": "so bad", "label": "anger"}, {"text": "boo", "label": "fear"}]


def write(path, value, lines=False):
    text = "".join(json.dumps(row) + "\n" for row in value) if lines else json.dumps(value, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def write_csv(path, rows):
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def named(read):
    """Return [(text, names of its labels), ...]."""
    if read.multi_label:
        return [
            (text, [read.label_names[i] for i in np.flatnonzero(row)])
            for text, row in zip(read.texts, read.labels, strict=True)
        ]
    return [(text, read.label_names[label]) for text, label in zip(read.texts, read.labels, strict=True)]


@pytest.mark.parametrize("name", ["data_full.json", "clinc.train_val.json.gz", "one line.json"])
def test_clinc_in_its_original_file(tmp_path, name):
    file = write(tmp_path / name, CLINC)
    if name == "one line.json":
        file.write_text(json.dumps(CLINC))
    train = read_labelled_texts(file, "train")
    assert named(train) == [tuple(row) for row in CLINC["train"] + CLINC["oos_train"]]
    assert train.label_names == NAMES and train.labels.dtype == np.int32 and len(train) == 4
    assert train.ids == [f"{file}:train:{i}" for i in range(3)] + [f"{file}:oos_train:0"]
    assert train.counts() == dict.fromkeys(NAMES, 1)
    for split in ("validation", "val", "dev"):
        found = read_labelled_texts(file, split, label_names=train.label_names)
        assert named(found) == [tuple(row) for row in CLINC["val"] + CLINC["oos_val"]]
    alone = read_labelled_texts(file, "oos_val")
    assert named(alone) == [("what is love", "oos")] and alone.label_names == NAMES, "those of the train split"
    assert len(read_labelled_texts(file, "all")) == 7
    some = read_labelled_texts(file, "train", limit=2)
    assert named(some) == [("hello", "greeting"), ("how deep is the sea", "oos")], (
        "spread over all: files are sorted by label"
    )
    assert some.label_names == NAMES and some.ids == [train.ids[0], train.ids[-1]]
    assert len(read_labelled_texts(file, "train", limit=9)) == 4 and named(train.take([3]))[0][1] == "oos"
    with pytest.raises(InputError, match=r"no split 'test'; it has 'oos_val', 'val', 'train', 'oos_train'"):
        read_labelled_texts(file, "test")
    with pytest.raises(InputError, match=r"no split 'trian'; .*did you mean 'train'"):
        read_labelled_texts(file, "trian")
    with pytest.raises(InputError, match=r"has the splits .*; name one, or 'all'"):
        read_labelled_texts(file)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "jsonl.gz", "json", "parquet", "saved", "rows", "dict"])
def test_tables(tmp_path, ending):
    from datasets import Dataset, DatasetDict

    splits = {"train": ROWS, "validation": ROWS[1:]}
    source = tmp_path
    if ending in ("rows", "dict"):
        source = splits if ending == "rows" else DatasetDict({name: Dataset.from_list(splits[name]) for name in splits})
    elif ending == "saved":
        DatasetDict({name: Dataset.from_list(splits[name]) for name in splits}).save_to_disk(tmp_path)
    else:
        for split, rows in splits.items():
            file = tmp_path / f"{split.replace('validation', 'dev')}.{ending}"
            if ending in ("csv", "tsv"):
                write_csv(file, rows)
            elif ending == "parquet":
                Dataset.from_list(rows).to_parquet(file)
            else:
                write(file, rows, lines=ending != "json")
    for split, rows in splits.items():
        read = read_labelled_texts(source, split)
        assert named(read) == [(row["text"], row["label"]) for row in rows]
        assert read.label_names == ("anger", "fear", "joy"), "from the train split, whichever split is read"


def test_the_names_of_a_datasets_classes_are_kept(tmp_path, monkeypatch):
    import datasets

    classes = datasets.ClassLabel(names=["oos", "greeting", "balance", "unseen"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": classes, "topics": datasets.List(classes)}
    )
    rows = [{"text": "hello", "intent": 1, "topics": [1, 0]}, {"text": "how deep", "intent": 0, "topics": []}]
    table = datasets.Dataset.from_list(rows, features=features)
    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options))
        return table if options["split"] else datasets.DatasetDict(train=table, validation=table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    table.to_parquet(tmp_path / "train.parquet")
    table.save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    for source, split in [("clinc_oos", "val"), (tmp_path / "train.parquet", None), (arrow, None), (table, None)]:
        read = read_labelled_texts(source, split)
        assert read.label_names == tuple(classes.names) and read.labels.tolist() == [1, 0]
        several = read_labelled_texts(source, split, label_column="topics")
        assert several.labels.dtype == np.float32
        assert several.labels.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]], "an empty list is no label, not an error"
    other = read_labelled_texts(table, label_names=["balance", "greeting", "oos"])
    assert named(other) == named(read), "by name, whatever the order"
    options = {"split": None, "revision": None, "streaming": False}
    assert asked[0] == (("clinc/clinc_oos", "plus"), options)
    read_labelled_texts("clinc/clinc_oos", "train", config="small")
    assert asked[-1] == (("clinc/clinc_oos", "small"), options)
    read_labelled_texts("clinc/clinc_oos", "train[:10%]")
    assert asked[-1] == (("clinc/clinc_oos", "plus"), options | {"split": "train[:10%]"})
    read_labelled_texts("some/intents", "train", config="de")
    read_labelled_texts("hub://some/intents@main#de", "train")
    assert [names for names, _ in asked[-2:]] == [("some/intents", "de")] * 2 and asked[-1][1]["revision"] == "main"
    with pytest.raises(InputError, match="config is 'de', but the dataset's name specifies 'fr'"):
        read_labelled_texts("hub://some/intents#fr", "train", config="de")
    with pytest.raises(InputError, match=r"name one, such as \"train\""):
        read_labelled_texts("clinc_oos")
    bad = table.add_item({"text": "x", "intent": -1, "topics": []})
    with pytest.raises(InputError, match=r"no label: its label is -1, but the dataset has the classes 0 to 3"):
        read_labelled_texts(bad)


@pytest.mark.parametrize("kind", ["saved", "hub", "dict"])
@pytest.mark.parametrize("name", ["val", "dev"])
def test_a_dataset_s_own_names_of_splits(tmp_path, monkeypatch, kind, name):
    import datasets

    splits = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(ROWS), name: datasets.Dataset.from_list(ROWS[1:])}
    )
    splits.save_to_disk(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split, **options: splits[split] if split else splits)
    source = {"saved": tmp_path, "hub": "hub://some/intents", "dict": splits}[kind]
    for split in (name, "validation", "valid"):
        assert read_labelled_texts(source, split).texts == ["so bad", "boo"]
    assert len(read_labelled_texts(source, "all")) == 5
    with pytest.raises(InputError, match=rf"no split 'test'; it has 'train', '{name}'"):
        read_labelled_texts(source, "test")
    splits["validation"] = datasets.Dataset.from_list(ROWS[:1])
    splits.save_to_disk(tmp_path / "more")
    source = tmp_path / "more" if kind == "saved" else source
    assert read_labelled_texts(source, name).texts == ["so bad", "boo"], "an exact name first"
    assert read_labelled_texts(source, "validation").texts == ["so good"]


def test_a_saved_table_has_no_splits(tmp_path):
    from datasets import Dataset

    Dataset.from_list(ROWS).save_to_disk(tmp_path)
    assert len(read_labelled_texts(tmp_path)) == len(read_labelled_texts(tmp_path, "all")) == 3
    for split in ("train", "validation", "foo"):
        with pytest.raises(InputError, match=rf"split is '{split}', but '{tmp_path}' has no splits; drop split"):
            read_labelled_texts(tmp_path, split)


def test_other_entries_of_a_json_file_are_ignored(tmp_path):
    extra = {"version": 2, "about": "x", "licence": None, "info": {"by": "us"}, "classes": ["anger", "joy"]}
    file = write(tmp_path / "a.json", {"train": ROWS, **extra, "dev": ROWS[1:], "test": ["so good"]})
    assert is_one_table(file) is False and len(read_labelled_texts(file, "validation")) == 2
    with pytest.raises(InputError, match=r"no split 'version'; it has 'train', 'dev', 'test'"):
        read_labelled_texts(file, "version")
    with pytest.raises(InputError, match=r"test:0: corrupt row: row has type str"):
        read_labelled_texts(file, "test")
    row = {"text": "so good", "version": 2, "labels": [{"name": "joy"}]}
    for rows in ([row], [row, row]):
        assert len(read_labelled_texts(write(tmp_path / "rows.json", rows, lines=True))) == len(rows), (
            "rows of their own"
        )


def test_a_source_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "train.jsonl", ROWS, lines=True)
    assert len(read_labelled_texts("~/train.jsonl")) == 3 and is_one_table("~/train.jsonl")
    with pytest.raises(InputError, match=r"no file or folder '~/no'"):
        read_labelled_texts("~/no")


@pytest.mark.parametrize(
    "labels, given, names, ids",
    [
        ([3, 10, 3], None, ("3", "10"), [0, 1, 0]),
        (["3", "10"], None, ("3", "10"), [0, 1]),
        ([10], ("3", "10"), ("3", "10"), [1]),
        ([1.0, 0.0], None, ("0", "1"), [1, 0]),
        ([1, "0"], ("ham", "spam"), ("ham", "spam"), [1, 0]),
        ([True, False], None, ("false", "true"), [1, 0]),
        (["Yes", "yes "], None, ("Yes", "yes"), [0, 1]),
        ([["b"], [], ["a", "b"]], None, ("a", "b"), [[0, 1], [0, 0], [1, 1]]),
        ([[{"name": "b", "id": 7}], [{"name": "a"}]], None, ("a", "b"), [[0, 1], [1, 0]]),
        ([[1], [0, 1]], ("ham", "spam"), ("ham", "spam"), [[0, 1], [1, 1]]),
    ],
)
def test_labels_of_every_kind(labels, given, names, ids):
    read = read_labelled_texts([{"text": "a", "label": label} for label in labels], label_names=given)
    assert read.label_names == names and read.labels.tolist() == ids


@pytest.mark.parametrize("kind", [int, float, bool, np.array])
def test_labels_with_a_0_or_1_for_each_class(kind):
    rows = [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    given = [kind(row) if kind is np.array else list(map(kind, row)) for row in rows]
    data = [{"text": "a", "label": row} for row in given]
    for names in (None, ("a", "b", "c")):
        read = read_labelled_texts(data, label_names=names)
        assert read.labels.dtype == np.float32 and read.labels.tolist() == rows
        assert read.label_names == (names or ("0", "1", "2"))
    with pytest.raises(
        InputError, match=r"lists of 3 values, 0 or 1, but there are 2 label names \(a, b\); give label_na"
    ):
        read_labelled_texts(data, label_names=["a", "b"])
    with pytest.raises(InputError, match=r"rows:0: repeated label: .* twice; give each label's name or number once"):
        read_labelled_texts([*data, {"text": "a", "label": given[0][:2]}])


def test_labels_with_a_0_or_1_for_each_class_of_the_dataset():
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["x", "y", "z"]))}
    )
    table = datasets.Dataset.from_list([{"text": "a", "label": [0, 1, 1]}], features=features)
    assert named(read_labelled_texts(table)) == [("a", ["y", "z"])]
    several = datasets.Dataset.from_list(
        [{"text": "a", "label": [0, 1]}, {"text": "b", "label": [1, 0]}], features=features
    )
    assert named(read_labelled_texts(several)) == [("a", ["x", "y"]), ("b", ["x", "y"])], (
        "each once: numbers of classes"
    )
    assert named(read_labelled_texts([{"text": "a", "label": [0, 1]}, {"text": "b", "label": [1, 0]}])) == [
        ("a", ["1"]), ("b", ["0"]),
    ]  # fmt: skip


def test_several_labels_in_one_field(tmp_path):
    rows = [{"text": "a", "label": "4, 27"}, {"text": "b", "label": "4"}, {"text": "c", "label": ""}]
    read = read_labelled_texts(write_csv(tmp_path / "a.tsv", rows), label_separator=",")
    assert read.label_names == ("4", "27") and read.labels.tolist() == [[1, 1], [1, 0], [0, 0]]
    with pytest.raises(InputError, match=r"rows:0: repeated label: its labels have 'a' twice"):
        read_labelled_texts([{"text": "a", "label": "a, b, a"}], label_separator=",")
    with pytest.raises(InputError, match=r"rows:1: its label is not a list, but the labels of other rows are"):
        read_labelled_texts([{"text": "a", "label": ["x"]}, {"text": "a", "label": "x"}])


def test_columns(tmp_path):
    row = {"id": 7, "premise": "It rains.", "hypothesis": "It is wet.", "gold": "yes"}
    file = write(tmp_path / "a.jsonl", [row], lines=True)
    read = read_labelled_texts(file, text_column=("premise", "hypothesis"), label_column="gold")
    assert read.texts == [("It rains.", "It is wet.")] and read.ids == ["7"]
    for options, message in [
        ({}, r"no column 'text' or .*; it has id, premise, hypothesis, gold; name the text column with text_column"),
        ({"text_column": "premise"}, r"no column 'label' or .*; name the label column with label_column"),
        (
            {"text_column": "premisse"},
            r"'premisse'; it has .*; did you mean 'premise'\? Name an existing column with text_column",
        ),
        (
            {"text_column": "premise", "label_column": "Gold"},
            r"'Gold'; it has .*; did you mean 'gold'\? Name an existing column with label_column",
        ),
        ({"text_column": ("a", "b", "c")}, r"name one column, or two"),
    ]:
        with pytest.raises(InputError, match=message):
            read_labelled_texts(file, **options)


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"text": " ", "label": "joy"}, r"empty text: its text is ' '"),
        ({"text": None, "label": "joy"}, r"empty text: its text is None"),
        ({"text": "a", "label": ""}, r"no label: its label is ''"),
        ({"text": "a", "label": None}, r"no label: its label is None"),
        ({"text": "a", "label": 0.5}, r"no label: its label is 0.5, a float"),
        ({"text": "a", "label": {"is": "joy"}}, r"no label: .*a dict; labels are names"),
        ({"text": "a", "label": "Joy"}, r"unknown label: its label 'Joy' is not one of anger, fear, joy; did you mean 'joy'"),
        ({"text": "a", "label": 3}, r"unknown label: its label 3 is not one of"),
        ({"text": "a"}, r"corrupt row: .*no column 'label'"),
        (["a", "b", "c"], r"corrupt row: row has type list"),
    ],
)  # fmt: skip
def test_unusable_rows_raise_or_are_counted(tmp_path, row, reason):
    file = write(tmp_path / "val.jsonl", [*ROWS[:1], row], lines=True)
    names = ("anger", "fear", "joy")
    with pytest.raises(InputError, match=rf"val\.jsonl:2: {reason}"):
        read_labelled_texts(file, label_names=names)
    report = CleaningReport()
    assert named(read_labelled_texts(file, label_names=names, report=report)) == [("so good", "joy")]
    assert sum(entry.documents for entry in report.dropped.values()) == 1


def test_unusable_sources(tmp_path):
    (tmp_path / "empty").mkdir()
    files = {
        "a.xml": "<a/>",
        "cut.json.gz": gzip.compress(json.dumps(CLINC).encode())[:-9],
        "broken.json": '{"train": [["a", "b"],]}',
        "none.csv": "text,label\n",
        "none.json": '{"train": [], "val": [["a", "b"]]}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    for source, options, message in [
        (tmp_path / "no", {}, r"no file or folder .*hub://owner/name"),
        (tmp_path / "empty", {}, r"has no file that ends in \.jsonl"),
        (tmp_path / "a.xml", {}, r"ends in none of"),
        (tmp_path / "cut.json.gz", {"split": "train"}, r"cannot be read: Compressed file ended"),
        (tmp_path / "broken.json", {}, r"broken\.json:1: corrupt line: not JSON"),
        (tmp_path / "none.csv", {}, r"none\.csv' is empty"),
        (tmp_path / "none.json", {"split": "train"}, r"none\.json', split 'train', is empty"),
        (tmp_path / "none.csv", {"split": "train"}, r"its name says none; leave the split out"),
        (tmp_path / "none.csv", {"config": "plus"}, r"config is 'plus', but .* is not a dataset on the Hub"),
        (7, {}, r"the source is a int"),
        (ROWS, {"split": "test"}, r"the rows have no splits"),
        (ROWS, {"limit": 0}, r"limit is 0"),
        (ROWS, {"label_names": ["joy", "joy"]}, r"'joy' twice"),
        (ROWS, {"label_names": []}, r"label_names is empty"),
        (ROWS, {"label_names": "joy"}, r"give a list of names"),
    ]:
        with pytest.raises(InputError, match=message):
            read_labelled_texts(source, **options)


def test_invalid_labels():
    for labels, message in [
        (np.zeros(2, np.int64), r"int64 \[2\] for 2 texts and 2 label names; they must be int32 \[2\] or float32 \[2, 2\]"),
        (np.zeros((2, 3), np.float32), r"float32 \[2, 3\]"),
        (np.array([0, 2], np.int32), r"range from 0 to 2, but there are 2 label names"),
        ([0, 1], r"labels are list"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=message):
            LabelledTexts(["a", "b"], labels, ("x", "y"))
    with pytest.raises(InputError, match="1 ids for 2 texts"):
        LabelledTexts(["a", "b"], np.zeros(2, np.int32), ("x",), ["1"])
    assert LabelledTexts(["a", "b"], np.zeros((2, 1), np.float32), ("x",)).ids == ["0", "1"]
