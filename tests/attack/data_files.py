"""Tables as programs and people write them: what is read is what was written, or an error; no row is lost unseen."""

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.attack.file_formats import write_checkpoint
from tests.attack.formats import fuzzed
from tests.attack.harness import HELD, Budget, Outcome, attack

PIECES = (
    "a", "caf\u00e9", '5"', '"', '""', "'", ",", "\t", "\n", "\r\n", ";", " ", "0", "1.0", "\ufeff", "\u2028", "\x0b", "\x85",
)  # fmt: skip
ENCODINGS = (None, None, "utf-8-sig", "cp1252", "utf-16", "utf-16-be", "utf-32", "gb18030", "shift_jis")


def write_table(name: str, encoding: str = "utf-8"):
    """Return a writer of a table."""

    def write(folder: Path) -> Path:
        rows = [["id", "text", "label"], *([str(i), f'so "good", {i}\nand more', "xy"[i % 2]] for i in range(6))]
        text = io.StringIO()
        csv.writer(text, delimiter="\t" if name.endswith("tsv") else ",").writerows(rows)
        (folder / name).write_bytes(text.getvalue().encode(encoding))
        return folder / name

    return write


def read_table(file: Path, encoding: str | None = None) -> None:
    """Read a table with a report, which must count what is lost, and without one."""
    from duonlp.data import CleaningReport, read_labelled_texts, read_pairs

    list(read_pairs(file, document_field="text", summary_field="label", encoding=encoding, report=CleaningReport()))
    read_labelled_texts(file, encoding=encoding)


fuzzed("labeled texts in CSV", "bytes", write=write_table("a.csv"))(read_table)
fuzzed("labeled texts in TSV", "bytes", write=write_table("a.tsv"))(read_table)
fuzzed("labeled texts in UTF-16", "bytes", write=write_table("a.csv", "utf-16"))(
    lambda file: read_table(file, "utf-16")
)


if importlib.util.find_spec("torch"):

    def write_pickle(folder: Path) -> Path:
        """Write pytorch_model.bin of a small checkpoint."""
        import torch

        from duonlp.checkpoints import list_tensors

        write_checkpoint(folder)
        tensors = list_tensors(folder / "model.safetensors")
        torch.save(
            {name: torch.tensor(tensor.read()) for name, tensor in tensors.items()}, folder / "pytorch_model.bin"
        )
        return folder / "pytorch_model.bin"

    @fuzzed("pytorch_model.bin", "bytes", write=write_pickle)
    def read_pickle(file: Path) -> None:
        """Load the file as the process of ``duonlp convert`` does."""
        from duonlp.checkpoints.conversion.unpickle import Refused, load
        from duonlp.errors import CheckpointError

        try:
            load(str(file))
        except Refused as error:
            raise CheckpointError(str(error)) from None


def _text(rng: np.random.Generator, plain: bool) -> str:
    """Return a random text; a plain one has no tab or line end, and all have a visible character."""
    pieces = [piece for piece in PIECES if not (plain and set(piece) & set("\t\r\n"))]
    return "x" + "".join(rng.choice(pieces, rng.integers(0, 6))) if rng.random() < 0.6 else (
        '"' * int(rng.integers(0, 3)) + "x" + "".join(rng.choice(pieces, rng.integers(0, 4)))
    )  # fmt: skip


@attack("tables")
def tables(budget: Budget) -> Iterator[Outcome]:
    """Write random tables, quoted by csv.writer or plain, and compare what is read with what was written."""
    from duonlp.data import read_labelled_texts
    from duonlp.errors import DuonlpError

    rng = budget.rng
    for number in budget:
        tabs, encoding = bool(rng.random() < 0.6), ENCODINGS[rng.integers(len(ENCODINGS))]
        plain = tabs and bool(rng.random() < 0.5)
        rows = [(_text(rng, plain), str(rng.choice(["a", "b"]))) for _ in range(rng.integers(1, 7))]
        quoting = [csv.QUOTE_MINIMAL, csv.QUOTE_ALL][rng.integers(2)]
        delimiter, end = "\t" if tabs else ",", str(rng.choice(["\n", "\r\n"]))
        if plain:
            text = end.join(delimiter.join(row) for row in [("text", "label"), *rows]) + end
        else:
            stream = io.StringIO()
            writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator=end)
            writer.writerows([("text", "label"), *rows])
            text = stream.getvalue()
        file = budget.folder / f"{number}.{'tsv' if tabs else 'csv'}"
        data = text.encode(encoding or "utf-8", "replace")
        file.write_bytes(data)
        expected = [
            (field.encode(encoding or "utf-8", "replace").decode(encoding or "utf-8"), label) for field, label in rows
        ]
        told = None if rng.random() < 0.5 else (not plain)
        case = f"seed {budget.seed}, case {number}: {file.suffix} {encoding} plain={plain} quoting={told} {text!r:.200}"
        try:
            read = read_labelled_texts(file, encoding=encoding, quoting=told)
        except DuonlpError as error:
            # A file with signs of both is refused, but never one whose quoting is named.
            yield Outcome(case, HELD if told is None and tabs else "wrong", str(error)[:300])
        else:
            actual = [(text, read.label_names[label]) for text, label in zip(read.texts, read.labels, strict=True)]
            # Nobody can tell a text that happens to be quoted as csv.writer would from one that was, nor a quoted tab and line
            # break from the ends of two rows.
            either = told is None and tabs and (
                any(re.fullmatch(r'"(?:[^"]|"")*""(?:[^"]|"")*"', text) for text, _ in rows)
                if plain
                else all(line.count("\t") == 1 for line in re.split(r"\r\n|\n|\r", text) if line)
            )  # fmt: skip
            verdict = HELD if actual == expected or either else "wrong"
            yield Outcome(case, verdict, f"{actual!r:.200} for {expected!r:.200}")
        file.unlink()


@attack("lost rows")
def lost_rows(budget: Budget) -> Iterator[Outcome]:
    """Damage tables and compare the number of rows with those that are read and those that the report counts."""
    from duonlp.data import CleaningReport, read_labelled_texts, read_pairs
    from duonlp.errors import DuonlpError

    rng = budget.rng
    for number in budget:
        tabs = bool(rng.random() < 0.5)
        delimiter, count = "\t" if tabs else ",", int(rng.integers(2, 12))
        lines = [f"text{delimiter}label", *(f"text {i}{delimiter}{'ab'[i % 2]}" for i in range(count))]
        for _ in range(rng.integers(1, 4)):
            row = int(rng.integers(1, len(lines)))
            at = int(rng.integers(0, len(lines[row]) + 1))
            lines[row] = (
                lines[row][:at] + str(rng.choice(['"', "\udce9", delimiter, "\0", '"x"', "\ufeff"])) + lines[row][at:]
            )
        file = budget.folder / f"{number}.{'tsv' if tabs else 'csv'}"
        file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        quoting = [None, True, False][rng.integers(3)]
        for reader in ("labeled texts", "pairs"):
            report = CleaningReport()
            case = f"seed {budget.seed}, case {number}: {reader}, quoting={quoting} {lines!r:.300}"
            try:
                if reader == "pairs":
                    kept = [
                        pair.document
                        for pair in read_pairs(file, summary_field="label", quoting=quoting, report=report)
                    ]
                else:
                    kept = list(read_labelled_texts(file, quoting=quoting, report=report).texts)
            except DuonlpError as error:
                yield Outcome(case, HELD, str(error)[:100])
                continue
            # A quoted field may hold line ends, as it should: two quotes that a damage has put there are such a field.
            seen = sum(text.count("\n") + 1 for text in kept) + sum(
                entry.documents for entry in report.dropped.values()
            )
            melted = quoting is not False and sum(line.count('"') for line in lines) > 1
            yield Outcome(
                case, HELD if seen == count or melted else "wrong", f"{seen} of {count} rows: {kept} {report.dropped}"
            )
        file.unlink()


def write_squad_file(name: str):
    """Return a writer of questions in SQuAD's JSON."""

    def write(folder: Path) -> Path:
        from duonlp.data import write_squad

        rows = [
            {
                "id": f"{number}", "title": "Caf\u00e9", "question": "What?", "context": 'A "cat" sat.', "note": [1, None],
                "answers": {"text": ["cat"] * (number % 3), "answer_start": [3] * (number % 3)},
            } for number in range(6)
        ]  # fmt: skip
        write_squad(rows, folder / name)
        return folder / name

    return write


def read_question_file(file: Path) -> None:
    """Read questions with a report, explore and write them, and read them without a report."""
    from duonlp.data import CleaningReport, explore, folds, leakage, read_questions, write_squad

    some = read_questions(file, report=CleaningReport())
    for row in some:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start : start + len(text)] == text
    explore(some).to_dict(), leakage(some, some)
    write_squad(some, file.with_name("copy.json"))
    if len(some) > 1:
        list(folds(some, 2, by="id"))
    read_questions(file)


def write_reviews(folder: Path) -> Path:
    """Write a table in the form of SubjQA."""
    rows = [["item_id", "q_review_id", "question", "review", "human_ans_indices"]]
    review = 'It is "good",\nreally. ANSWERNOTFOUND'
    rows += [[f"B{i % 2}", f"q{i // 2}", "Is it?", review, ["(6, 12)", "(22, 36)"][i % 2]] for i in range(8)]
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (folder / "reviews.csv").write_text(text.getvalue(), newline="")
    return folder / "reviews.csv"


def write_answers_file(folder: Path) -> Path:
    (folder / "answers.json").write_text('{"q1": "a cat", "q2": ""}')
    return folder / "answers.json"


fuzzed("SQuAD JSON", "json", write=write_squad_file("squad.json"))(read_question_file)
fuzzed("SQuAD JSON in gzip", "bytes", write=write_squad_file("squad.json.gz"))(read_question_file)
fuzzed("SubjQA", "bytes", write=write_reviews)(read_question_file)


@fuzzed("predicted answers", "json", write=write_answers_file)
def read_predicted_answers(file: Path) -> None:
    from duonlp.metrics import read_answers, squad_scores

    answers = read_answers(file)
    squad_scores(answers, [{"id": name, "answers": {"text": ["cat"]}} for name in answers])


def _question_rows(rng: np.random.Generator) -> tuple[list[dict], set[str]]:
    """Return random rows with SQuAD's columns, and the ids of those whose answers are damaged."""
    rows: list[dict] = []
    bad = set()
    for number in range(rng.integers(1, 8)):
        context = f"{_text(rng, False)} {''.join(rng.choice(PIECES, 12))}\U0001f408y"
        starts = [int(rng.integers(0, len(context) - 1)) for _ in range(rng.integers(0, 4))]
        texts = [context[start : start + int(rng.integers(1, 9))] for start in starts]
        if starts and rng.random() < 0.2:
            starts[0] = int(rng.choice([-1, len(context), len(context) + 9]))
            bad.add(str(number))
        rows.append({
            "id": str(number), "title": str(rng.choice(["", "a", "b, c"])), "question": _text(rng, False), "context": context,
            "answers": {"text": texts, "answer_start": starts}, "note": str(rng.choice(PIECES)),
        })  # fmt: skip
    return rows, bad


@attack("questions")
def questions(budget: Budget) -> Iterator[Outcome]:
    """Write random questions in each form, some answers damaged; read what was written, and count what was damaged."""
    import gzip

    from duonlp.data import CleaningReport, read_questions, write_squad
    from duonlp.errors import DuonlpError

    rng = budget.rng
    for number in budget:
        rows, bad = _question_rows(rng)
        form = str(
            rng.choice(
                ["squad.json", "squad.json.gz", "rows.json", "data.json", "x.jsonl", "x.csv", "x.csv.gz", "x.tsv"]
            )
        )
        encoding = [None, "utf-8-sig", "utf-16", "utf-32", "gb18030"][rng.integers(5)]
        case = f"seed {budget.seed}, case {number}: {form} {encoding} {rows!r:.300}"
        if form.startswith("squad"):
            qas = [{
                **{key: row[key] for key in ("id", "question", "note")},
                "answers": [{"text": t, "answer_start": a} for t, a in zip(*row["answers"].values(), strict=True)],
            } for row in rows]  # fmt: skip
            value = {"version": "v2.0", "data": [
                {"title": row["title"], "paragraphs": [{"context": row["context"], "qas": [qa]}]}
                for row, qa in zip(rows, qas, strict=True)
            ]}  # fmt: skip
            text = json.dumps(value, ensure_ascii=False, indent=[None, 1][rng.integers(2)])
        elif form in ("rows.json", "data.json"):
            text = json.dumps(rows if form == "rows.json" else {"version": 1, "data": rows}, ensure_ascii=False)
        elif form == "x.jsonl":
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            stream = io.StringIO()
            writer = csv.DictWriter(
                stream, list(rows[0]), delimiter="\t" if form == "x.tsv" else ",", quoting=csv.QUOTE_ALL
            )
            writer.writeheader()
            write = [json.dumps, str][rng.integers(2)]
            writer.writerows(row | {"answers": write(row["answers"])} for row in rows)
            text = stream.getvalue()
        file, report = budget.folder / form, CleaningReport()
        data = text.encode(encoding or "utf-8")
        file.write_bytes(gzip.compress(data) if form.endswith(".gz") else data)
        expected = [row for row in rows if row["id"] not in bad]
        try:
            read = list(read_questions(file, encoding=encoding, report=report))
        except DuonlpError as error:
            yield Outcome(case, "wrong" if expected else HELD, str(error)[:300])
            continue
        dropped = sum(entry.documents for entry in report.dropped.values())
        yield Outcome(
            case, HELD if read == expected and dropped == len(bad) else "wrong", f"{read!r:.300} {report.dropped}"
        )
        write_squad(read, budget.folder / "copy.json")
        again = {row["id"]: row for row in read_questions(budget.folder / "copy.json")}
        yield Outcome(case, HELD if again == {row["id"]: row for row in read} else "wrong", f"written: {again!r:.300}")


LABELS = ("a", "b", "1", "c d")
TEMPLATES = (
    "{x}", "{x}\n\n{y}", "{{{x}}} {x}", "{x}{id}", "{", "{}", "{x!r}", "{x.y}", "{x[0]}", "{x:9}", "}{", "{z}", "x", "{\0}"
)  # fmt: skip


def write_label_map(name: str):
    """Return a writer of a map of labels."""

    def write(folder: Path) -> Path:
        pairs = {"a": "b", "1": "one", "c d": "", "*": "other"}
        lines = "".join(f"{json.dumps(old)} = {json.dumps(new)}\n" for old, new in pairs.items())
        (folder / name).write_text(json.dumps(pairs) if name.endswith("json") else lines)
        return folder / name

    return write


def read_mapped(file: Path) -> None:
    """Read labeled texts with the map."""
    from duonlp.data import prepare_labels

    rows = [{"text": f"{label}", "labels": [label]} for label in LABELS]
    prepare_labels([*rows, {"text": "x", "labels": [*LABELS]}], label_map=file).report.table()


fuzzed("label map in JSON", "json", write=write_label_map("map.json"))(read_mapped)
fuzzed("label map in TOML", "toml", write=write_label_map("map.toml"))(read_mapped)


def write_issues(folder: Path) -> Path:
    """Write rows with and without labels."""
    rows = [{"x": f"t{i % 5}", "y": [None, "body"][i % 2], "labels": list(LABELS[: i % 4])} for i in range(9)]
    (folder / "issues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "issues.jsonl"


@fuzzed("issues", "jsonl", write=write_issues)
def read_issues(file: Path) -> None:
    """Prepare and split the rows; write and read them again."""
    from duonlp.data import (
        CleaningReport,
        label_counts,
        nested_slices,
        prepare_labels,
        read_unlabelled_texts,
        stratified_split,
    )
    from duonlp.data.labelled.writing import write_label_folder

    read = prepare_labels(file, text_template="{x} {y}", report=CleaningReport())
    parts = dict(zip(("train", "test"), stratified_split(read.labelled, (0.5, 0.5))))
    label_counts(parts).to_dict()
    slices = {"all": nested_slices(parts["train"], ("all",))[0]}
    folder = file.with_name("out")
    write_label_folder(folder, parts, slices, read.unlabelled)
    if len({len(text) for text in read.unlabelled}):
        assert read_unlabelled_texts(folder / "unlabeled.jsonl") == read.unlabelled
    prepare_labels(file, text_template="{x} {y}")


@attack("text templates")
def text_templates(budget: Budget) -> Iterator[Outcome]:
    """Make texts of random columns by templates, valid and not; a template reads columns and nothing else."""
    from duonlp.data import read_labelled_texts
    from duonlp.errors import InputError

    rng = budget.rng
    values = (None, "", " ", "v", "{x}", "{{", 7, 1.5, True, float("nan"), ["a"], {"y": "w"}, "\ud800", "a\0b")
    for number in budget:
        template = "".join(rng.choice(TEMPLATES, rng.integers(1, 3)))
        row = {"id": "r", **{name: values[rng.integers(len(values))] for name in ("x", "y")}, "label": "l"}
        case = f"seed {budget.seed}, case {number}: {template!r} of {row!r}"
        try:
            (text,) = read_labelled_texts([row], text_template=template).texts
        except InputError as error:
            yield Outcome(case, HELD, str(error)[:200])
            continue
        texts = {name: "" if value is None or value != value else str(value) for name, value in row.items()}
        parts = re.split(r"(\{\{|\}\}|\{(?:x|y|id)\})", template)
        special = {"{{": "{", "}}": "}", **{f"{{{name}}}": texts[name] for name in ("x", "y", "id")}}
        wanted = "".join(special[part] if index % 2 else part for index, part in enumerate(parts)).strip()
        yield Outcome(case, HELD if text == wanted else "wrong", f"{text!r} for {wanted!r}")


@attack("prepared labels")
def prepared_labels(budget: Budget) -> Iterator[Outcome]:
    """Prepare random rows with a random map; compare with a few lines of Python, and check splits and slices of the result."""
    from duonlp.data import nested_slices, prepare_labels, stratified_split
    from duonlp.errors import InputError

    rng = budget.rng
    for number in budget:
        names = list(LABELS[: rng.integers(1, 5)])
        label_map = {name: [None, "b", "new"][rng.integers(3)] for name in names if rng.random() < 0.4}
        rows = [
            {"text": f"t{rng.integers(12)}", "labels": [name for name in names if rng.random() < 0.4]}
            for _ in range(rng.integers(1, 20))
        ]
        case = f"seed {budget.seed}, case {number}: {label_map} {rows!r:.300}"
        expected: dict[str, set[str]] = {}
        mapped = [(row["text"], {label_map.get(n, n) for n in row["labels"]} - {None}) for row in rows]
        for text, labels in mapped:
            if labels:
                expected.setdefault(text, labels)
        others = list(dict.fromkeys(text for text, _ in mapped if text not in expected))
        try:
            read = prepare_labels(rows, label_map=label_map or None)
        except InputError as error:
            yield Outcome(case, "wrong" if expected else HELD, str(error)[:200])
            continue
        labelled = read.labelled
        found = {
            text: {labelled.label_names[i] for i in np.flatnonzero(row)}
            for text, row in zip(labelled.texts, labelled.labels)
        }
        report = read.report
        adds_up = report.labelled + report.unlabelled + report.duplicates == report.rows == len(rows)
        held = found == expected and read.unlabelled == others and adds_up
        yield Outcome(
            case, HELD if held else "wrong", f"{found} for {expected}; {read.unlabelled} for {others}; {report}"
        )
        parts = stratified_split(labelled, (0.5, 0.5), number) if len(labelled) > 1 else [labelled]
        slices = nested_slices(labelled, (1, "all", (len(labelled) + 1) // 2), number)
        nested = set(slices[0].texts) <= set(slices[2].texts) <= set(slices[1].texts)
        whole = sorted(text for part in parts for text in part.texts) == sorted(labelled.texts)
        yield Outcome(case, HELD if nested and whole else "wrong", "splits and slices")
