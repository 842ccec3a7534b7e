"""Exact match and F1 equal the official SQuAD 2.0 script's definitions; thresholds, intervals, files and invalid inputs."""

import re
import string
from collections import Counter

import numpy as np
import pytest

from duonlp.data import Questions
from duonlp.errors import InputError
from duonlp.metrics import (
    best_threshold,
    exact_match,
    example_scores,
    normalize_answer,
    read_answers,
    read_null_gaps,
    squad_scores,
    token_f1,
    write_answers,
    write_null_gaps,
)

WORDS = [
    "a", "an", "The", "THE", "...", "-", "", " ", "6000", "hours", "hours,", "about", "caf\u00e9", "CAF\u00c9", "\u0130",
    "\u00df", "\u2019s", "it's", "its", "\u3000", "\u00a0x", "x\u0301", "the-a", "\u201cx\u201d", "1,000", "thea", "an\u200bx",
]  # fmt: skip


def official_normalize(text):
    """Normalize step by step, as the script's four functions do."""
    kept = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept, flags=re.UNICODE).split())


def official_f1(reference, prediction):
    gold, guess = official_normalize(reference).split(), official_normalize(prediction).split()
    same = sum((Counter(gold) & Counter(guess)).values())
    if not gold or not guess:
        return int(gold == guess)
    if same == 0:
        return 0
    precision, recall = same / len(guess), same / len(gold)
    return 2 * precision * recall / (precision + recall)


def official_scores(questions, predictions, odds, threshold):
    """Return what evaluate-v2.0.py prints, from its published definition, with an odds file and --na-prob-thresh."""
    has = {row["id"]: bool(row["answers"]["text"]) for row in questions}
    raw = {"exact": {}, "f1": {}}
    for row in questions:
        gold = [text for text in row["answers"]["text"] if official_normalize(text)] or [""]
        guess = predictions[row["id"]]
        raw["exact"][row["id"]] = max(int(official_normalize(text) == official_normalize(guess)) for text in gold)
        raw["f1"][row["id"]] = max(official_f1(text, guess) for text in gold)
    report = {}
    for prefix, ids in (
        ("", list(has)),
        ("HasAns_", [i for i in has if has[i]]),
        ("NoAns_", [i for i in has if not has[i]]),
    ):
        for metric, scores in raw.items():
            final = {i: float(not has[i]) if odds[i] > threshold else scores[i] for i in scores}
            if ids:
                report[prefix + metric] = 100 * sum(final[i] for i in ids) / len(ids)
                report[f"{prefix}total"] = len(ids)
    for metric, scores in raw.items():
        best = current = sum(not answered for answered in has.values())
        best_odds = 0.0
        for i in sorted(odds, key=lambda i: odds[i]):
            current += scores[i] if has[i] else (-1 if predictions[i] else 0)
            if current > best:
                best, best_odds = current, odds[i]
        report |= {f"best_{metric}": 100 * best / len(scores), f"best_{metric}_thresh": best_odds}
    return report


def random_case(rng, ties=False):
    def text():
        return " ".join(rng.choice(WORDS, rng.integers(0, 5)))

    rows, predictions, gaps = [], {}, {}
    for number in range(rng.integers(1, 25)):
        answers = [text() for _ in range(rng.integers(0, 4))] if rng.random() < 0.6 else []
        rows.append({"id": f"q{number}", "answers": {"text": answers, "answer_start": [0] * len(answers)}})
        right = answers and rng.random() < 0.5
        predictions[f"q{number}"] = "" if rng.random() < 0.2 else str(rng.choice(answers)) if right else text()
        gaps[f"q{number}"] = float(rng.integers(-1, 2) if ties else rng.normal())
    return rows, predictions, gaps


@pytest.mark.parametrize("seed", range(60))
def test_scores_equal_the_official_definition(seed):
    rng = np.random.default_rng(seed)
    rows, predictions, gaps = random_case(rng, ties=seed % 3 == 0)
    threshold = float(rng.normal())
    scores = squad_scores(predictions, rows, null_gaps=gaps, threshold=threshold, resamples=0)
    expected = official_scores(rows, predictions, gaps, threshold)
    assert dict(scores) == pytest.approx(expected, abs=1e-9) and scores.threshold == threshold
    plain = squad_scores(predictions, rows, resamples=0)
    assert dict(plain) == pytest.approx(
        {name: value for name, value in official_scores(rows, predictions, gaps, np.inf).items() if "best" not in name}
    )


@pytest.mark.parametrize("seed", range(30))
def test_the_best_threshold_is_attained_and_the_lowest_of_the_best(seed):
    rows, predictions, gaps = random_case(np.random.default_rng(seed), ties=seed % 2 == 0)
    for metric in ("exact", "f1"):
        best = best_threshold(predictions, rows, gaps, metric)

        def score(threshold, metric=metric):
            return squad_scores(predictions, rows, null_gaps=gaps, threshold=threshold, resamples=0)[metric]

        assert score(best.threshold) == pytest.approx(best.score)
        scores = {threshold: score(threshold) for threshold in [min(gaps.values()) - 1, *gaps.values()]}
        assert best.score == pytest.approx(max(scores.values()))
        assert all(value < best.score - 1e-9 for threshold, value in scores.items() if threshold < best.threshold - 1)


def test_normalization_and_the_scores_of_an_example():
    assert normalize_answer("  The  U.S.A.'s\tan\u00a0Apple, the ") == "usas apple"
    assert normalize_answer("\u201cThe\u201d x") == "\u201c \u201d x", "only ASCII punctuation is removed"
    assert (exact_match("about 6000 hours", ["6000 hours"]), token_f1("about 6000 hours", ["6000 hours"])) == (0, 0.8)
    assert token_f1("about 6000 dollars", ["6000 hours"]) == pytest.approx(0.4)
    assert (
        token_f1("6000 hours", ["nothing", "The 6000 hours!"])
        == exact_match("6000 hours", ["x", "The 6000 hours!"])
        == 1
    )
    assert exact_match("", []) == exact_match("the", []) == token_f1("...", []) == 1
    assert exact_match("x", []) == token_f1("x", []) == exact_match("", ["x"]) == token_f1("", ["x"]) == 0
    assert exact_match("", ["the"]) == 1, "a reference without words asks for no word"


def questions(*answers):
    return Questions(
        [{"id": f"q{i}", "answers": {"text": list(a), "answer_start": [0] * len(a)}} for i, a in enumerate(answers)]
    )


def test_groups_intervals_and_the_table():
    from rich.console import Console

    data = questions(["x"], ["y z"], [], [], [])
    predictions = {"q0": "x", "q1": "y", "q2": "", "q3": "", "q4": "w"}
    scores = squad_scores(predictions, data, seed=3)
    f1 = 100 * (1 + 2 / 3 + 2) / 5
    assert dict(scores) == pytest.approx({
        "exact": 60, "f1": f1, "total": 5, "HasAns_exact": 50, "HasAns_f1": 500 / 6, "HasAns_total": 2,
        "NoAns_exact": 200 / 3, "NoAns_f1": 200 / 3, "NoAns_total": 3,
    })  # fmt: skip
    draws = np.random.default_rng(3).integers(5, size=(1000, 5))
    example = example_scores(predictions, data)
    assert example.has_answer.tolist() == [True, True, False, False, False] and example.is_empty.sum() == 2
    low, high = np.percentile(100 * example.f1[draws].mean(axis=1), [2.5, 97.5])
    assert scores.intervals["f1"] == pytest.approx((low, f1, high))
    answered = example.has_answer[draws]
    some = answered.any(axis=1)
    ratios = 100 * (example.f1[draws] * answered).sum(axis=1)[some] / answered.sum(axis=1)[some]
    assert scores.intervals["HasAns_f1"][::2] == pytest.approx(np.percentile(ratios, [2.5, 97.5]))
    assert squad_scores(predictions, data, resamples=0).intervals["f1"] == (None, pytest.approx(f1), None)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(scores)
    assert re.search(r"unanswerable +3 +66\.7", capture.get()) and "95% interval" in capture.get()
    assert scores.to_dict()["intervals"]["exact"]["low"] == scores.intervals["exact"].low
    alone = squad_scores({"q0": ""}, questions([]))
    assert dict(alone) == {"exact": 100, "f1": 100, "total": 1, "NoAns_exact": 100, "NoAns_f1": 100, "NoAns_total": 1}
    assert alone.intervals["f1"] == (None, 100, None), "the resamples of one example are all equal"


def test_invalid_inputs():
    data = questions(["x"], [])
    good, gaps = {"q0": "x", "q1": ""}, {"q0": 0.0, "q1": 1}
    for predictions, message in [
        ({"q0": "x"}, "lack 1 of 2 questions, such as 'q1'"),
        (good | {"other": "y"}, "1 ids that no question has, such as 'other'"),
        (good | {"q1": None}, "the prediction for 'q1' is None; it must be a text"),
        (["x", ""], "predictions are of type list; give a dict"),
    ]:
        with pytest.raises(InputError, match=message):
            squad_scores(predictions, data)
    for options, message in [
        ({"threshold": 0.5}, "no null_gaps"),
        ({"null_gaps": {"q0": 0.0}}, "null_gaps lack 1 of 2"),
        ({"null_gaps": gaps | {"q1": float("nan")}}, "the null gap of 'q1' is nan"),
        ({"null_gaps": gaps | {"q1": "1"}}, "the null gap of 'q1' is '1'"),
        ({"null_gaps": gaps, "threshold": "best"}, "threshold is 'best'"),
        ({"null_gaps": gaps, "threshold": float("nan")}, "threshold is nan"),
        ({"confidence": 1.0}, "confidence is 1.0"),
        ({"resamples": -1}, "resamples is -1"),
    ]:
        with pytest.raises(InputError, match=message):
            squad_scores(good, data, **options)
    with pytest.raises(InputError, match="no questions to score"):
        squad_scores({}, [])
    with pytest.raises(InputError, match="question 1 has the id 'q0' of a question before"):
        squad_scores(good, [data[0], data[0]])
    with pytest.raises(InputError, match="metric 'f2' is not one of exact, f1"):
        best_threshold(good, data, gaps, "f2")
    gaps = {"q0": np.inf, "q1": -np.inf}
    assert best_threshold(good, data, gaps) == (np.inf, 100) and best_threshold({"q0": "", "q1": "x"}, data, gaps) == (
        -np.inf,
        0,
    )
    infinite = squad_scores(good, data, null_gaps={"q0": -np.inf, "q1": np.inf}, threshold=0)
    assert infinite["exact"] == infinite["best_exact"] == 100


def test_files_in_the_official_format(tmp_path):
    answers, gaps = {"q0": "caf\u00e9 \ud800", "q1": ""}, {"q0": -1.5, "q1": np.inf, "q2": np.float32(2)}
    write_answers(tmp_path / "answers.json", answers)
    write_null_gaps(tmp_path / "gaps.json", gaps)
    assert read_answers(tmp_path / "answers.json") == answers
    read = read_null_gaps(tmp_path / "gaps.json")
    assert read["q0"] == -1.5 and read["q2"] == 2 and read["q1"] > 1e308
    for content, reader, message in [
        ('{"q0": 1}', read_answers, "the answer 'q0' is 1; it must be a text"),
        ("[]", read_answers, "holds a list; expected a JSON object"),
        ('{"q0": "x", "q0": "y"}', read_answers, "the key 'q0' twice"),
        ('{"q0": true}', read_null_gaps, "the null gap 'q0' is True"),
        ('{"q0": NaN}', read_null_gaps, "the null gap 'q0' is nan"),
        ('{"q0"', read_null_gaps, "not valid JSON"),
    ]:
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(InputError, match=message):
            reader(tmp_path / "bad.json")
    with pytest.raises(InputError, match="cannot read"):
        read_answers(tmp_path / "missing.json")
