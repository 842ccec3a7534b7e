"""Learning curves by hand, their intervals against SciPy, and their figures."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from duonlp.errors import InputError
from duonlp.metrics import (
    f1_curve_plot,
    learning_curve_plot,
    learning_curve_scores,
    learning_curves,
    summarize_runs,
    threshold_curves,
    top_k_curves,
)
from duonlp.metrics.learning_curves import T_QUANTILES, _t_quantile

RECORDS = [
    {"method": "setfit", "size": size, "seed": seed, "micro_f1": 0.3 + size / 100 + seed / 50, "macro_f1": size / 100}
    for size in (64, 8, 16)
    for seed in range(3)
] + [
    {"method": "_zero", "size": 0, "seed": 0, "micro_f1": 0.4, "macro_f1": 0.35},
    {"method": "failed", "size": 8, "seed": 0, "micro_f1": 0.2, "macro_f1": None},
]  # fmt: skip


def test_points_are_means_with_intervals():
    curves = learning_curves(RECORDS, "micro_f1")
    assert list(curves) == ["setfit", "_zero", "failed"] and [p.size for p in curves["setfit"]] == [8, 16, 64]
    point = curves["setfit"][0]
    assert (point.low, point.mean, point.high, point.std, point.seeds) == pytest.approx((0.38, 0.40, 0.42, 0.02, 3))
    point = learning_curves(RECORDS, "micro_f1", interval="t")["setfit"][0]
    half = 4.3027 * 0.02 / math.sqrt(3)
    assert (point.low, point.high) == pytest.approx((0.40 - half, 0.40 + half))
    assert learning_curves(RECORDS, "micro_f1", interval="t")["failed"][0].low == 0.2  # one seed
    assert "failed" not in learning_curves(RECORDS, "macro_f1")


def test_quantiles_are_those_of_students_t():
    stats = pytest.importorskip("scipy.stats")
    for freedom in (*range(1, len(T_QUANTILES) + 3), 100):
        assert _t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=2e-4)


def test_tables():
    rows = summarize_runs(RECORDS)
    assert [(row["method"], row["size"]) for row in rows] == [
        ("setfit", 8), ("setfit", 16), ("setfit", 64), ("_zero", 0), ("failed", 8)
    ]  # fmt: skip
    assert rows[-1]["macro_f1"] is None and rows[0]["micro_f1"]["seeds"] == 3
    assert rows[0]["micro_f1"]["mean"] == pytest.approx(0.4) and rows[0]["micro_f1"]["std"] == pytest.approx(0.02)
    text = io.StringIO()
    Console(file=text, width=100).print(learning_curve_scores(RECORDS, "micro_f1"))
    heading, first, zero, _ = text.getvalue().splitlines()
    assert heading.split() == ["micro", "F1", "0", "8", "16", "64"] and zero.split() == ["_zero", "0.400"]
    assert first.split() == ["setfit", *["0.400", "±", "0.020", "0.480", "±", "0.020", "0.960", "±", "0.020"]]


def test_a_wide_table_fits_80_columns():
    methods, sizes = (
        ("naive-bayes", "lookup", "setfit", "fine-tune", "adapt", "in-context"),
        (8, 16, 32, 64, 128, 223, 985),
    )
    records = [
        {"method": m, "size": n, "seed": s, "macro_f1": 0.4 + s / 100} for m in methods for n in sizes for s in range(3)
    ]
    text = io.StringIO()
    Console(file=text, width=80).print(learning_curve_scores(records))
    lines = text.getvalue().splitlines()
    assert lines[0].split() == ["macro", "F1", *map(str, sizes)]
    for number, method in enumerate(methods):
        means, deviations = lines[1 + 2 * number : 3 + 2 * number]
        assert means.split() == [method, *["0.410"] * 7] and deviations.split() == ["±0.010"] * 7


@pytest.mark.parametrize("interval", ["range", "t"])
def test_the_figure_has_a_tick_at_each_size(interval, tmp_path):
    pytest.importorskip("matplotlib")
    file = tmp_path / "curves.svg"
    many = [row | {"method": f"m{number}"} for number in range(12) for row in RECORDS[:3]]
    learning_curve_plot([*RECORDS, *many], file, interval=interval, title="GitHub issues")
    text = file.read_text()
    for label in (
        "micro F1",
        "macro F1",
        "labeled texts",
        ">8<",
        ">16<",
        ">64<",
        "setfit",
        " _zero",
        "m11",
        "GitHub issues",
    ):
        assert label in text, label
    learning_curve_plot(RECORDS[-2:-1], tmp_path / "zero.png", scores=["macro_f1"])
    assert (tmp_path / "zero.png").stat().st_size > 1000


def test_f1_curves_are_plotted(tmp_path):
    pytest.importorskip("matplotlib")
    rng = np.random.default_rng(0)
    scores, labels = rng.random((9, 3)), rng.integers(0, 2, (9, 3))
    f1_curve_plot({"a": threshold_curves(scores, labels), "b": top_k_curves(scores, labels)}, tmp_path / "f1.svg")
    text = (tmp_path / "f1.svg").read_text()
    assert "threshold" in text and "labels per text (top k)" in text and "macro F1, best" in text
    f1_curve_plot(top_k_curves(scores, labels), tmp_path / "one.pdf")
    with pytest.raises(InputError, match="no curves"):
        f1_curve_plot([], tmp_path / "f1.svg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": -1}, "size of record 0 is -1"),
        ({"size": "8"}, "size of record 0 is '8'"), ({"size": True}, "size of record 0"),
        ({"method": ""}, "method of record 0"), ({"seed": [1]}, "seed of record 0"),
        ({"macro_f1": float("nan")}, "macro_f1 of record 0 is nan"), ({"macro_f1": "0.5"}, "must be a finite number"),
        ({"macro_f1": None}, "no record has a score 'macro_f1'"),
    ],
)  # fmt: skip
def test_invalid_records(change, message):
    with pytest.raises(InputError, match=message):
        learning_curves([RECORDS[0] | change])


def test_other_errors(tmp_path):
    with pytest.raises(InputError, match="two records have method 'setfit', size 64 and seed 0"):
        learning_curves(RECORDS[:1] * 2)
    with pytest.raises(InputError, match="record 0 is"):
        learning_curves([{"size": 8}])
    with pytest.raises(InputError, match="interval"):
        learning_curves(RECORDS, interval="std")
    with pytest.raises(InputError, match="scores is 'macro_f1'; give a list"):
        learning_curve_plot(RECORDS, tmp_path / "x.png", scores="macro_f1")
    with pytest.raises(InputError, match="give a file that ends in"):
        learning_curve_plot(RECORDS, tmp_path / "x.gif")
