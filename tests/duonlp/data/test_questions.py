"""read_questions and write_squad: every form of SQuAD and SubjQA, and each way in which a row can be unusable."""

import csv
import gzip
import io
import json
import os

import numpy as np
import pytest

from duonlp.data import CleaningReport, Questions, read_questions, write_squad
from duonlp.errors import InputError, StorageError


def answers(texts, starts):
    return {"answers": {"text": texts, "answer_start": starts}}


CONTEXT = "The caf\u00e9 opens at 9 and closes at 9."
ROWS = [
    {"id": "1", "title": "Caf\u00e9", "question": "When?", "context": CONTEXT,
     **answers(["at 9", "9", "9"], [15, 18, 34])},
    {"id": "2", "title": "Caf\u00e9", "question": "Who?", "context": CONTEXT, **answers([], [])},
    {"id": "3", "title": "Other", "question": "What?", "context": "A \U0001f408\r\nsat.",
     **answers(["sat"], [5])},
]  # fmt: skip
SUBJQA = [
    # id, item, question, review without sentinel, annotators' (start, end)
    ("q1", "B1", "How is it?", "It is good. Very good.", [(6, 10), "none", (12, 31)]),
    ("q2", "B2", "Is it red?", "No idea.", ["none"]),
    ("q3", "B1", "What is it?", "It is good. Very good.", ["none", "none"]),
]
SENTINEL = " ANSWERNOTFOUND"


def squad(rows, **keys):
    """Return SQuAD's JSON value with one paragraph per row."""
    return {"version": "v2.0", "data": [
        {"title": row["title"], "paragraphs": [{"context": row["context"], "qas": [{
            "id": row["id"], "question": row["question"], **keys,
            "answers": [{"text": text, "answer_start": start} for text, start in zip(*row["answers"].values(), strict=True)],
        }]}]} for row in rows
    ]}  # fmt: skip


def subjqa_rows():
    for name, item, question, review, spans in SUBJQA:
        for number, span in enumerate(spans):
            a, b = (len(review) + 1, len(review) + len(SENTINEL)) if span == "none" else span
            yield {
                "item_id": item, "domain": "electronics", "q_review_id": name, "question": question, "review": review + SENTINEL,
                "human_ans_spans": "tok en", "human_ans_indices": f"({a}, {b})", "answer_subj_level": str(number),
            }  # fmt: skip


def write_csv(path, rows):
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
    writer.writeheader()
    writer.writerows(rows)
    data = stream.getvalue().encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def write_json(path, value, **options):
    data = json.dumps(value, **options).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["dev-v2.0.json", "squad.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_squad_json(tmp_path, name, indent):
    file = write_json(tmp_path / name, squad(ROWS), indent=indent)
    read = read_questions(file)
    assert list(read) == ROWS and read.name == str(file) and read.dropped == {}
    assert read[0]["answers"]["text"] == ["at 9", "9", "9"], "equal answers of several annotators are kept"
    if name.startswith("dev"):
        assert list(read_questions(tmp_path, "validation")) == list(read_questions(file, "dev")) == ROWS
    write_json(file, squad(ROWS)["data"][0])
    assert list(read_questions(file)) == ROWS[:1], "an article alone"
    assert list(read_questions(squad(ROWS))) == ROWS, "the value of a file"
    write_json(file, {"version": "1", "data": ROWS}, indent=indent)
    assert list(read_questions(file)) == ROWS, "rows, as Transformers' examples have them"


def test_other_keys_of_squad_are_columns(tmp_path):
    value = squad(ROWS[:1], plausible_answers=[{"text": "9", "answer_start": 18}], is_impossible=False, level=2)
    value["data"][0] |= {"source": "web", "level": 0}
    value["data"][0]["paragraphs"][0]["document_id"] = 7
    row = read_questions(value)[0]
    extra = {"source": "web", "level": 2, "document_id": 7, "plausible_answers": [{"text": "9", "answer_start": 18}]}
    assert row == ROWS[0] | extra and list(row)[:5] == list(ROWS[0])
    write_squad(read_questions(value), tmp_path / "x.json")
    assert list(read_questions(tmp_path / "x.json")) == [row]


FORMS = {
    "nested": lambda answers: answers,
    "objects": lambda answers: [{"text": t, "answer_start": s} for t, s in zip(*answers.values(), strict=True)],
    "JSON": json.dumps,
    "JSON objects": lambda answers: json.dumps(FORMS["objects"](answers)),
    "Python": str,
    "NumPy": lambda answers: {"text": np.array(answers["text"], object), "answer_start": np.array(answers["answer_start"], int)},
    "pandas": lambda answers: str(FORMS["NumPy"](answers)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_answers(form):
    rows = [row | {"answers": FORMS[form](row["answers"]), "stars": 5} for row in ROWS]
    assert list(read_questions(rows)) == [row | {"stars": 5} for row in ROWS]
    if form in ("nested", "JSON", "Python"):
        parts = [
            {f"answers.{key}": FORMS[form](value) for key, value in row["answers"].items()}
            | {key: value for key, value in row.items() if key != "answers"}
            for row in ROWS
        ]
        assert list(read_questions(parts)) == ROWS, "flattened columns"


@pytest.mark.parametrize(
    "ending", ["csv", "tsv", "csv.gz", "jsonl", "json", "splits", "parquet", "saved", "dict", "to_csv"]
)
def test_tables(tmp_path, ending):
    from datasets import Dataset, DatasetDict

    rows = [row | {"stars": str(number)} for number, row in enumerate(ROWS)]
    as_text = [row | {"answers": json.dumps(row["answers"])} for row in rows]
    source, split = tmp_path / f"validation.{ending}", "dev"
    if ("csv" in ending and ending != "to_csv") or ending == "tsv":
        write_csv(source, as_text)
    elif ending == "jsonl":
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif ending == "json":
        write_json(source, rows)
    elif ending == "splits":
        source = write_json(tmp_path / "all.json", {"train": rows[:1], "validation": rows})
    elif ending == "dict":
        source = {"train": rows[:1], "validation": rows}
    elif ending == "saved":
        DatasetDict(train=Dataset.from_list(rows[:1]), validation=Dataset.from_list(rows)).save_to_disk(source)
    elif ending == "parquet":
        Dataset.from_list(rows).to_parquet(source)
    else:
        source = tmp_path / "validation.csv"
        Dataset.from_list(rows).to_csv(source)
    assert list(read_questions(source, split)) == rows
    with pytest.raises(InputError, match="split"):
        read_questions(source, "test")


def test_the_hub(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*names, **options):
        asked.append((names, options["revision"]))
        return datasets.DatasetDict(
            train=datasets.Dataset.from_list(ROWS[:1]), validation=datasets.Dataset.from_list(ROWS)
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    for source in ("squad", "hub://rajpurkar/squad", "squad_v2@main"):
        assert list(read_questions(source, "dev")) == ROWS
    read_questions("some/questions", "train", config="de")
    squad_1, squad_2 = "rajpurkar/squad", "rajpurkar/squad_v2"
    assert asked == [((squad_1, None), None)] * 2 + [((squad_2, None), "main"), (("some/questions", "de"), None)]
    with pytest.raises(InputError, match="name one, such as"):
        read_questions("squad")


@pytest.mark.parametrize("name", ["electronics.train.csv", "electronics.train.csv.gz"])
def test_subjqa(tmp_path, name):
    file = write_csv(tmp_path / name, list(subjqa_rows()))
    read = read_questions(file)
    assert [row["id"] for row in read] == ["q1", "q2", "q3"] and read.dropped == {}
    assert read[0] == {
        "id": "q1", "title": "B1", "question": "How is it?", "context": "It is good. Very good.",
        **answers(["good", "Very good."], [6, 12]), "domain": "electronics",
        "human_ans_spans": ["tok en"] * 3, "human_ans_indices": ["(6, 10)", "(23, 37)", "(12, 31)"],
        "answer_subj_level": ["0", "1", "2"],
    }  # fmt: skip
    assert [row["answers"]["text"] for row in read][1:] == [[], []]
    hub = [row | {"context": row["context"] + SENTINEL} for row in read]
    hub[0] = hub[0] | answers(["good", "Very good. ANSWER"], [6, 12])
    hub[1] = hub[1] | answers(["ANSWERNOTFOUND"], [9])
    assert list(read_questions(hub)) == list(read), "with SQuAD's columns, as on the Hub"
    write_squad(read, tmp_path / "x.json")
    again = read_questions(tmp_path / "x.json")
    assert {row["id"]: row for row in again} == {row["id"]: row for row in read}
    assert [row["id"] for row in again] == ["q1", "q3", "q2"], "grouped by title and context"


def test_unusable_rows_of_subjqa(tmp_path):
    rows = list(subjqa_rows())
    rows += [
        rows[0] | {"question": "Other?"}, rows[0] | {"review": "x"}, rows[3] | {"human_ans_indices": "(3, 99)"},
        rows[3] | {"human_ans_indices": "(-1, 4)"}, rows[3] | {"human_ans_indices": "3"}, rows[3] | {"q_review_id": " "},
    ]  # fmt: skip
    report = CleaningReport()
    read = read_questions(write_csv(tmp_path / "x.csv", rows), report=report)
    assert len(read) == 3 and read.dropped == {"duplicate id": 1, "answer outside the context": 3, "corrupt row": 2}
    assert "with another question" in report.dropped["duplicate id"].examples[0]
    for row, message in zip(
        rows[-6:],
        ["with another question", "1 characters", r"\(3, 99\), but the review has 23", "but the", "is '3'", "is ' '"],
    ):
        with pytest.raises(InputError, match=message):
            read_questions([*subjqa_rows(), row])


BAD = {
    "it occurs at 15": (answers(["at 9"], [14]), "answer not found"),
    "it occurs at 18, 34": (answers(["9"], [0]), "answer not found"),
    "where the context has 'The '; it occurs nowhere": (answers(["at 8"], [0]), "answer not found"),
    "answer_start is -1 for a text of 4 characters": (answers(["at 9"], [-1]), "answer outside the context"),
    "answer_start is 35 .* in a context of 36": (answers(["9."], [35]), "answer outside the context"),
    "has empty lists": (answers([""], [0]), "empty answer"),
    "2 texts and 1 values": (answers(["9", "9"], [18]), "corrupt row"),
    "the keys text": ({"answers": {"text": ["9"]}}, "corrupt row"),
    "'answer_start'|\"answer_start\"": ({"answers": [{"text": "9"}]}, "corrupt row"),
    "are of type str; expected lists": ({"answers": "at 9"}, "corrupt row"),
    "are of type NoneType": ({"answers": None}, "corrupt row"),
    "answer_start 18.0": (answers(["9"], [18.0]), "corrupt row"),
    "answer_start True": (answers(["9"], [True]), "corrupt row"),
    "is_impossible is True, but it has answers": ({"is_impossible": True}, "corrupt row"),
    "its question has no text": ({"question": " \u200b"}, "empty question"),
    "its context has no text": ({"context": ""}, "empty context"),
    "its context is of type list": ({"context": ["x"]}, "corrupt row"),
    "its title is of type float": ({"title": 0.5}, "corrupt row"),
    "NUL": ({"question": "a\0"}, "binary"),
    "unpaired surrogate": ({"question": "a\ud800"}, "invalid UTF-8"),
    "the id '2' is already that of rows:0": ({"id": 2}, "duplicate id"),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_unusable_rows_raise_or_are_counted(message):
    change, reason = BAD[message]
    rows = [ROWS[1], ROWS[0] | change, ROWS[2]]
    with pytest.raises(InputError, match=message):
        read_questions(rows)
    report = CleaningReport()
    read = read_questions(rows, report=report)
    assert [row["id"] for row in read] == ["2", "3"] and read.dropped == {reason: 1}
    assert report.dropped[reason].examples[0].startswith("rows:1")


def test_questions_without_an_answer_must_say_so():
    value = squad(ROWS[1:2], is_impossible=False)
    with pytest.raises(
        InputError, match=r"data\[0\].paragraphs\[0\].qas\[0\].*is_impossible is False, but it has no answers"
    ):
        read_questions(value)
    assert read_questions(squad(ROWS[1:2], is_impossible=True))[0] == ROWS[1]


def test_corrupt_places_of_squad_json(tmp_path):
    value = squad(ROWS + [ROWS[0] | {"id": str(i)} for i in range(4, 9)])
    value["data"][3]["paragraphs"] = None
    value["data"][4]["paragraphs"][0] = "x"
    value["data"][5]["paragraphs"][0]["qas"] = {}
    value["data"][6]["paragraphs"][0].pop("context")
    value["data"][7]["paragraphs"][0]["qas"].append(7)
    file, report = write_json(tmp_path / "x.json", value), CleaningReport()
    read = read_questions(file, report=report)
    assert [row["id"] for row in read] == ["1", "2", "3", "8"] and read.dropped == {"corrupt row": 5}
    examples = report.dropped["corrupt row"].examples
    assert [example.split(": ")[0].removeprefix(f"{file}:") for example in examples] == [
        "data[3].paragraphs", "data[4].paragraphs[0]", "data[5].paragraphs[0].qas", "data[6].paragraphs[0].qas[0]",
        "data[7].paragraphs[0].qas[1]",
    ]  # fmt: skip


def test_encodings(tmp_path):
    file = tmp_path / "x.json"
    file.write_bytes(
        json.dumps(squad(ROWS[:2]), ensure_ascii=False).replace("Who?", "Who is Ren\u00e9?", 1).encode("cp1252")
    )
    read = read_questions(file, encoding="cp1252")
    assert read[0] == ROWS[0] and read[1]["question"] == "Who is Ren\u00e9?"
    with pytest.raises(InputError, match="encoding='cp1252'"):
        read_questions(file)
    mixed = json.dumps(squad(ROWS), ensure_ascii=False).encode().replace(b"Who?", b"Who \xe9?")
    file.write_bytes(mixed)
    report = CleaningReport()
    read = read_questions(file, report=report)
    assert [row["id"] for row in read] == ["1", "3"] and read.dropped == {"invalid UTF-8": 1}, "row by row"
    file.write_bytes(json.dumps(squad(ROWS), ensure_ascii=False).encode("utf-16"))
    with pytest.raises(InputError, match="UTF-16"):
        read_questions(file)
    with pytest.raises(InputError, match="invalid UTF-8"):
        read_questions(file, report=CleaningReport())
    assert list(read_questions(file, encoding="utf-16")) == ROWS
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(squad(ROWS)).encode())
    assert list(read_questions(file)) == ROWS
    with pytest.raises(InputError, match="neither CSV nor TSV"):
        read_questions(file, quoting=True)
    with pytest.raises(InputError, match="drop encoding"):
        read_questions(ROWS, encoding="cp1252")


def test_files_that_are_not_questions(tmp_path):
    cases = {
        "truncated.json.gz": (gzip.compress(json.dumps(squad(ROWS * 50)).encode())[:-40], "corrupt archive"),
        "cut.json": (json.dumps(squad(ROWS)).encode()[:-9], "corrupt file: not JSON"),
        "other.json": (b'{"a": 1}', "no column 'question' and no column 'context' and no column 'answers'; it has a"),
        "empty.json": (b'{"version": "v2.0", "data": []}', "has no questions"),
        "numbers.json": (b'{"version": "v2.0", "data": [1]}', "corrupt row: row has type int"),
        "list.json": (b"[1]", "row has type int"),
        "text.json": (b"hello", "corrupt line: not JSON"),
        "names.jsonl": (
            b'{"question": "?", "contxt": "x", "answer": 1}', "no column 'context' and.*did you mean 'contxt'",
        ),
        "subjqa.csv": (b"q_review_id,question,human_ans_indices,reviews\n", "has no questions"),
        "subjqa2.csv": (
            b"q_review_id,question,human_ans_indices,reviews\n1,2,3,4\n", "no column 'review'.*did you mean 'reviews'",
        ),
        "x.docx": (b"", "ends in none of"),
    }  # fmt: skip
    for name, (data, message) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=message):
            read_questions(tmp_path / name)
    with pytest.raises(InputError, match="no file or folder"):
        read_questions(tmp_path / "missing.json")
    with pytest.raises(InputError, match=r"has no questions \(dropped rows: 1 answer not found\)"):
        read_questions([ROWS[0] | answers(["x"], [0])], report=CleaningReport())
    file = write_json(tmp_path / "dev-v1.1.json", squad(ROWS))
    with pytest.raises(InputError, match="its name says 'validation'"):
        read_questions(file, "train")
    with pytest.raises(InputError, match="drop"):
        read_questions(squad(ROWS), "train")
    with pytest.raises(InputError, match="limit is 0"):
        read_questions(ROWS, limit=0)


def test_missing_ids_and_limits():
    rows = [{key: value for key, value in row.items() if key not in ("id", "title")} for row in ROWS]
    assert [(row["id"], row["title"]) for row in read_questions(rows)] == [
        ("rows:0", ""),
        ("rows:1", ""),
        ("rows:2", ""),
    ]
    many = [ROWS[0] | {"id": number} for number in range(9)]
    assert [row["id"] for row in read_questions(many, limit=3)] == ["0", "4", "8"], "spread evenly"
    assert len(read_questions(many, limit=99)) == 9


def test_write_squad(tmp_path):
    rows = [ROWS[0], ROWS[2], ROWS[1] | {"note": ["a", None, 1.5]}]
    for name in ("x.json", "x.json.gz"):
        write_squad(Questions(rows), tmp_path / name)
        assert list(read_questions(tmp_path / name)) == [rows[0], rows[2], rows[1]]
    value = json.loads((tmp_path / "x.json").read_text())
    assert value["version"] == "v2.0" and [article["title"] for article in value["data"]] == ["Caf\u00e9", "Other"]
    (paragraph,) = value["data"][0]["paragraphs"]
    assert [qa["is_impossible"] for qa in paragraph["qas"]] == [False, True] and paragraph["qas"][1]["note"] == [
        "a",
        None,
        1.5,
    ]
    before = (tmp_path / "x.json").read_bytes()
    write_squad(read_questions(tmp_path / "x.json"), tmp_path / "y.json")
    assert (tmp_path / "y.json").read_bytes() == before
    for rows, message in [
        ([], "no questions to write"),
        ([ROWS[0], ROWS[0]], "duplicate id"),
        ([ROWS[0] | answers(["x"], [0])], "answer not found"),
        ([{"id": "1"}], "question 0 has no column"),
        ([ROWS[0] | {"note": {1, 2}}], "a value that JSON lacks"),
    ]:
        with pytest.raises(InputError, match=message):
            write_squad(rows, tmp_path / "x.json")
        assert (tmp_path / "x.json").read_bytes() == before, "an error leaves the file as it was"
    with pytest.raises(InputError, match="ends in none of"):
        write_squad(ROWS, tmp_path / "x.jsonl")
    with pytest.raises(StorageError):
        write_squad(ROWS, tmp_path / "missing" / "x.json")
    assert sorted(os.listdir(tmp_path)) == ["x.json", "x.json.gz", "y.json"]
