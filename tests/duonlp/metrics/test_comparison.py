"""compare: shared resamples, calibrated p-values, Holm's correction, tables, plots and errors."""

import importlib.util
import io
import json

import numpy as np
import pytest

from duonlp.errors import InputError
from duonlp.metrics.bleu import Bleu
from duonlp.metrics.bootstrap import holm, interval, p_value, resampled_sums, win_rate
from duonlp.metrics.comparison import compare
from duonlp.metrics.rouge import Rouge

for module in ("rouge_score", "sacrebleu"):
    pytest.importorskip(module)


rng = np.random.default_rng(0)
WORDS = [f"word{i}" for i in range(40)]
REFERENCES = [" ".join(rng.choice(WORDS, 12)) for _ in range(40)]


def noisy(share, seed):
    """Return the references with a fraction of their words replaced."""
    draw = np.random.default_rng(seed)
    return [
        " ".join(draw.choice(WORDS) if draw.random() < share else word for word in text.split()) for text in REFERENCES
    ]


SYSTEMS = {"good": noisy(0.2, 1), "like it": noisy(0.2, 2), "bad": noisy(0.7, 3)}


@pytest.fixture(scope="module")
def comparison():
    return compare(SYSTEMS, REFERENCES, [Rouge(("rouge1", "rougeL")), Bleu()], resamples=300, seed=5)


def test_scores_are_those_of_each_system_alone(comparison):
    for name, predictions in SYSTEMS.items():
        for metric in (Rouge(("rouge1", "rougeL")), Bleu()):
            metric.add(predictions, REFERENCES)
            for kind, score in metric.compute(resamples=300, seed=5).items():
                assert comparison.scores[name][kind] == pytest.approx(score, rel=1e-12)


def test_significance(comparison):
    rows = {(row.first, row.second, row.kind): row for row in comparison.differences}
    assert len(rows) == 9
    for kind in ("rouge1", "rougeL", "bleu"):
        clear, alike = rows["good", "bad", kind], rows["good", "like it", kind]
        assert clear.significant and clear.difference.low > 0 and clear.wins == 1 and clear.p_value == 1 / 301
        assert not alike.significant and alike.difference.low < 0 < alike.difference.high and 0 < alike.wins < 1
        three = [rows[(*pair, kind)] for pair in
                 (("good", "like it"), ("good", "bad"), ("like it", "bad"))]  # fmt: skip
        assert [row.corrected_p_value for row in three] == holm([row.p_value for row in three]).tolist()
        value = comparison.scores["good"][kind].value - comparison.scores["bad"][kind].value
        assert clear.difference.value == value


def test_pairing_matters():
    """A small consistent gain is significant although examples vary widely and the intervals overlap."""
    lengths = np.linspace(0, 11, 30).astype(int)
    references = [f"{' '.join(WORDS[:12])}" for _ in lengths]
    lower = [" ".join(WORDS[:n]) for n in lengths]
    higher = [" ".join(WORDS[: n + 1]) for n in lengths]
    found = compare({"lower": lower, "higher": higher}, references, [Rouge("rouge1")])
    (difference,) = found.differences
    assert found.scores["lower"]["rouge1"].high > found.scores["higher"]["rouge1"].low
    assert difference.significant and difference.wins == 0 and difference.difference.high < 0


def test_a_system_does_not_differ_from_itself():
    found = compare([("a", SYSTEMS["good"]), ("b", SYSTEMS["good"])], REFERENCES, resamples=100)
    for row in found.differences:
        assert row.p_value == 1 and row.wins == 0.5 and row.difference.value == 0 and not row.significant


def test_p_values_are_calibrated():
    """Between equal systems about one p-value in twenty is below 0.05."""
    draw, p_values = np.random.default_rng(11), []
    for seed in range(300):
        statistics = draw.normal(size=(40, 1))
        samples = resampled_sums(statistics, 200, seed)[:, 0] / 40
        p_values.append(p_value(samples, float(statistics.mean())))
    assert 0.02 < np.mean(np.array(p_values) <= 0.05) < 0.09 and 0.4 < np.mean(p_values) < 0.6


def test_resamples():
    statistics = np.eye(5)
    sums = resampled_sums(statistics, 130, seed=2)
    assert sums.shape == (130, 5) and (sums.sum(axis=1) == 5).all() and (sums >= 0).all()
    np.testing.assert_array_equal(resampled_sums(statistics, 10, seed=2), sums[:10])
    np.testing.assert_array_equal(resampled_sums(statistics[:, :2], 130, seed=2), sums[:, :2])
    assert interval(np.arange(101.0), 0.9) == pytest.approx((5, 95))
    assert win_rate(np.array([1.0, 0.0, -1.0, 2.0])) == 0.625


def test_holm():
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.6, 0.9])).tolist() == [1, 1] and holm(np.array([0.3])).tolist() == [0.3]


def test_to_dict(comparison):
    plain = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert plain["examples"] == 40 and plain["settings"] == {
        "confidence": 0.95, "resamples": 300, "seed": 5, "level": 0.05,
    }  # fmt: skip
    assert plain["scores"]["good"]["bleu"]["value"] == comparison.scores["good"]["bleu"].value
    assert plain["metrics"]["bleu"]["highest"] == 100 and "tok:13a" in plain["metrics"]["bleu"]["signature"]
    assert plain["parts"]["good"] == comparison.parts["good"] and len(plain["parts"]["good"]["precisions"]) == 4
    row = plain["differences"][0]
    assert row["first"] == "good" and row["second"] == "like it" and row["low"] < row["value"] < row["high"]


def printed(comparison, width=80):
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width).print(comparison.table())
    return out.getvalue()


def test_table(comparison):
    text = printed(comparison)
    assert f"hyp_len = {comparison.parts['good']['sys_len']}, ref_len = 480" in " ".join(text.split())
    assert "40 examples" in text and "95% intervals" in text and "corrected for 3 pairs (Holm)" in text
    value = 100 * comparison.scores["good"]["rouge1"].value
    assert f"{value:.2f}" in text and f"{comparison.scores['bad']['bleu'].value:.2f}" in text
    gain = 100 * value / 100 - 100 * comparison.scores["bad"]["rouge1"].value
    assert f"{gain:+.2f}*" in text and max(map(len, text.splitlines())) <= 80
    one = compare({"a [name]": SYSTEMS["good"]}, REFERENCES, [Bleu()], resamples=10)
    assert "fewer than 30" in compare({"a": REFERENCES[:9], "b": REFERENCES[:9]}, REFERENCES[:9], resamples=20).note
    assert (
        "fewer than" not in text
        and "a [name]" in printed(one)
        and "differences" not in printed(one)
        and one.differences == ()
    )


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_plot(comparison, tmp_path):
    comparison.plot(tmp_path / "scores.svg", "a $title")
    text = (tmp_path / "scores.svg").read_text()
    assert all(part in text for part in ("rougeL", "like it", "a $title", "95% intervals"))
    for file, part in (("scores.jpg", "'.jpg'"), ("none/scores.png", "none")):
        with pytest.raises(InputError, match=part):
            comparison.plot(tmp_path / file)
    assert [path.name for path in tmp_path.iterdir()] == ["scores.svg"]


def test_several_references_and_progress():
    done = []
    systems = {"a": ["one two three", ""], "b": ["x", "four five"]}
    references = (["one two three", "other"], "four five six")
    found = compare(systems, references, [Rouge("rouge1"), Bleu()], resamples=20, progress=done.append)
    assert found.scores["a"]["rouge1"].value == 0.5 and sum(done) == 8


@pytest.mark.parametrize(
    ("systems", "references", "options", "parts"),
    [
        ({}, ["a", "b"], {}, ["no systems"]),
        ([("x", ["a", "b"]), ("x", ["a", "b"])], ["a", "b"], {}, ["two systems are named 'x'"]),
        ({"x": ["a"]}, ["a", "b"], {}, ["'x' has 1 predictions", "2 references"]),
        ({"x": ["a", 3]}, ["a", "b"], {}, ["system 'x': prediction 1 is 3"]),
        ({"x": "ab"}, ["a", "b"], {}, ["system 'x': predictions are 'ab'"]),
        ({"x": ["a"]}, ["a"], {}, ["only 1 example", "at least 2"]),
        ({"x": ["a", "b"]}, ["a", ""], {}, ["reference 1 is empty"]),
        ({"x": ["a", "b"]}, [], {}, ["no references"]),
        ({3: ["a", "b"]}, ["a", "b"], {}, ["with non-empty names"]),
        (["x"], ["a", "b"], {}, ["{name: predictions}"]),
        ({"x": ["a", "b"]}, ["a", "b"], {"metrics": ["rouge1"]}, ["metrics contain 'rouge1'"]),
        ({"x": ["a", "b"]}, ["a", "b"], {"metrics": []}, ["no metrics"]),
        ({"x": ["a", "b"]}, ["a", "b"], {"metrics": [Rouge(), Rouge("rouge1")]}, ["rouge1 twice"]),
        ({"x": ["a", "b"]}, ["a", "b"], {"level": 5}, ["level is 5"]),
        ({"x": ["a", "b"]}, ["a", "b"], {"resamples": 0}, ["resamples is 0", "at least 1"]),
        ({name: ["a", "b"] for name in "abcd"}, ["a", "b"], {"resamples": 118}, ["4 systems", "at least 119"]),
    ],
)
def test_invalid_arguments(systems, references, options, parts):
    with pytest.raises(InputError) as error:
        compare(systems, references, **options)
    assert all(part in str(error.value) for part in parts), error.value
