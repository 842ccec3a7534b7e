"""explore, leakage and folds: counts, tables and plots; folds by item."""

import numpy as np
import pytest
from rich.console import Console

from duonlp.data import Questions, explore, folds, leakage
from duonlp.errors import InputError
from duonlp.tokenizers import train_tokenizer


def row(name, question, context, title, *answers):
    starts = [context.index(answer) for answer in answers]
    return {
        "id": name, "title": title, "question": question, "context": context,
        "answers": {"text": list(answers), "answer_start": starts},
    }  # fmt: skip


DATA = Questions([
    row("1", "How is it?", "It is good.", "A", "good", "It is good."),
    row("2", "how long?", "It is good.", "A"),
    row("3", "What's new?", "Nothing at all.", "B", "Nothing"),
    row("4", "???", "Nothing at all.", ""),
], "demo", {"corrupt row": 2})  # fmt: skip


def printed(value):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(value)
    return capture.get()


def test_explore():
    result = explore(DATA)
    assert (result.questions, result.answerable, result.unanswerable, result.titles) == (4, 2, 2, 2)
    assert (result.contexts, result.answers) == (2, 3), "different contexts, but every answer"
    assert list(result.types.items()) == [("How", 2), ("(none)", 1), ("What's", 1)]
    assert result.answerable_types == {"How": 1, "(none)": 0, "What's": 1}
    assert result.lengths["answers"].values.tolist() == [1, 1, 3] and result.unit == "words"
    characters = explore(DATA, unit="characters")
    assert characters.lengths["contexts"].values.tolist() == [11, 15] and characters.lengths["questions"].longest == 11
    text = printed(result)
    for part in ("answerable", "50.0%", "How", "dropped: corrupt row", "words, p95"):
        assert part in text
    report = result.to_dict()
    assert report["lengths"]["questions"]["max"] == 3 and report["dropped"] == {"corrupt row": 2}
    assert report["unanswerable"] == 2 and "limits" not in report["lengths"]["questions"]


def test_lengths_in_tokens():
    tokenizer = train_tokenizer(["it is good", "nothing at all"] * 9, vocab_size=280, min_frequency=0, max_length=32)
    result = explore(DATA, tokenizer=tokenizer)
    expected = sorted(
        len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("good", "It is good.", "Nothing")
    )
    assert result.unit == "tokens" and result.lengths["answers"].values.tolist() == expected


@pytest.mark.parametrize("rows", [DATA, DATA[1:2]], ids=["some", "none answerable"])
def test_plot(tmp_path, rows):
    pytest.importorskip("matplotlib")
    result = explore(rows)
    result.plot(tmp_path / "x.svg", "demo")
    text = (tmp_path / "x.svg").read_text()
    assert "demo" in text and ("answers, " in text or "no answers" in text)
    assert "answerable" in printed(result) and result.to_dict()["lengths"]["answers"]["count"] == result.answers
    with pytest.raises(InputError, match="ends in"):
        result.plot(tmp_path / "x.txt")


def test_leakage():
    other = Questions([
        row("1", "how  IS it?", "IT is\ngood.", "a", "good"), row("9", "Why?", "New.", ""), row("10", "How is it?", "New.", "C"),
    ], "dev")  # fmt: skip
    result = leakage(DATA, other)
    counts = {kind: (shared.count, shared.shared, shared.questions) for kind, shared in result.kinds.items()}
    assert counts == {
        "ids": (3, 1, 1), "titles": (2, 1, 1), "contexts": (2, 1, 1), "questions": (2, 1, 2),
        "questions on the same context": (3, 1, 1),
    }  # fmt: skip
    assert result.kinds["questions on the same context"].examples == ("how is it? / it is good.",)
    assert "50.0%" in printed(result) and result.to_dict()["kinds"]["ids"]["examples"] == ("1",)
    assert (result.train, result.other, result.questions) == ("demo", "dev", 3)
    with pytest.raises(InputError, match="other has no questions"):
        leakage(DATA, Questions([]))


@pytest.mark.parametrize("by", ["title", "context", "stars"])
def test_folds_keep_groups_together(by):
    rng = np.random.default_rng(0)
    rows = [
        row(str(i), "Why?", f"context {rng.integers(30)}", f"item {rng.integers(25)}") | {"stars": int(rng.integers(9))}
        for i in range(100)
    ]
    data = Questions(rows, "demo")
    parts = list(folds(data, 4, by=by, seed=1))
    assert sorted(int(r["id"]) for _, held_out in parts for r in held_out) == list(range(100)), "each is held out once"
    for number, (train, held_out) in enumerate(parts, 1):
        assert {r[by] for r in train}.isdisjoint({r[by] for r in held_out})
        assert len(train) + len(held_out) == 100 and abs(len(held_out) - 25) <= 5
        assert [int(r["id"]) for r in train] == sorted(int(r["id"]) for r in train), "in their order"
        assert held_out.name == f"demo, held-out part {number} of 4"
    again, other = list(folds(data, 4, by=by, seed=1)), list(folds(data, 4, by=by, seed=2))
    assert again == parts and other != parts


def test_invalid_folds_and_explorations():
    for k in (1, 0, "3", 2.0, True):
        with pytest.raises(InputError, match="it must be an integer of at least 2"):
            folds(DATA, k)
    with pytest.raises(InputError, match=r"the question '4' has no title.*by='context'"):
        folds(DATA, 2)
    with pytest.raises(InputError, match=r"no column 'contxt'; it has .*did you mean 'context'"):
        folds(DATA, 2, by="contxt")
    with pytest.raises(InputError, match="k is 3, but demo has only 2 different values of 'context'"):
        folds(DATA, 3, by="context")
    with pytest.raises(InputError, match="seed is -1"):
        folds(DATA, 2, by="context", seed=-1)
    with pytest.raises(InputError, match="no questions to explore"):
        explore(Questions([]))
    with pytest.raises(InputError, match="unit 'word' is not one of"):
        explore(DATA, unit="word")
