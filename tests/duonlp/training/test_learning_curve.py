"""The learning curve: means by count, records, the file, the table and the plot."""

import importlib.util
import io
import json
import math

import pytest
from rich.console import Console

from duonlp.errors import InputError
from duonlp.training.log import LearningCurve, learning_curve_table, plot_learning_curve, read_learning_curve


def curve_of(folder=None, unit="examples"):
    """Return the curve of two epochs of two steps with two terms, evaluated after each epoch."""
    curve = LearningCurve(unit, folder)
    for step, (total, count) in enumerate([(6.0, 3), (1.0, 1), (2.0, 4), (0.0, 0)], 1):
        curve.add({"a": (total, count), "b": (2.0, 2)})
        if step % 2 == 0:
            curve.record(step, step // 2, 8 * step, 0.1, {"loss": 1.0 / step, "f1": 0.5}, True)
    return curve


def test_a_record_has_the_mean_by_count_of_its_epoch(tmp_path):
    curve = curve_of(tmp_path)
    assert [record["train_loss"] for record in curve.records] == [7 / 4 + 1, 2 / 4 + 1]
    assert curve.records[0] == {
        "step": 2, "epoch": 1, "examples": 16, "learning_rate": 0.1, "train_loss": 2.75, "loss": 0.5, "f1": 0.5,
    }  # fmt: skip
    assert read_learning_curve(tmp_path) == curve.records
    curve.add({"a": (9.0, 3)})
    curve.record(5, 3, 40, 0.1, None, False)  # in an epoch
    curve.add({"a": (3.0, 3)})
    curve.record(6, 3, 48, 0.1, {"loss": math.nan}, False)
    assert [record["train_loss"] for record in curve.records[2:]] == [3.0, 2.0] and "loss" not in curve.records[2]
    assert read_learning_curve(tmp_path)[-1]["loss"] is None


def test_blocks_have_no_epochs():
    curve = LearningCurve("tokens")
    for step, loss in enumerate((4.0, 2.0), 1):
        curve.add({"loss": (loss * 10, 10)})
        curve.record(step, 1, 10 * step, 0.1, None, False)
    assert [(record["train_loss"], record["tokens"]) for record in curve.records] == [(4.0, 10), (2.0, 20)]


def test_a_restored_curve_goes_on_as_it_was(tmp_path):
    whole = curve_of(tmp_path)
    state = json.loads(json.dumps(whole.state()))
    whole.add({"a": (1.0, 1)})
    middle = json.loads(json.dumps(whole.state()))
    whole.record(5, 3, 40, 0.1, None, True)
    resumed = LearningCurve("examples", tmp_path)
    resumed.restore(state)  # a later record, written before the kill, is gone
    assert read_learning_curve(tmp_path) == resumed.records == whole.records[:2]
    for step in (state, middle):
        resumed.restore(step)
        if step is state:
            resumed.add({"a": (1.0, 1)})
        resumed.record(5, 3, 40, 0.1, None, True)
        assert resumed.records == whole.records
    old = LearningCurve()
    old.restore(None)
    assert old.records == []


def test_errors_table_and_plot(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_learning_curve(tmp_path)
    for content in ("[", "{}", "[1]"):
        (tmp_path / "learning_curve.json").write_text(content)
        with pytest.raises(InputError, match="resume the run"):
            read_learning_curve(tmp_path)
    (tmp_path / "run").mkdir()
    curve, out = curve_of(tmp_path / "run"), io.StringIO()
    Console(file=out, width=80).print(learning_curve_table([{"epoch": 1, "step": 1}, *curve.records]))
    assert "training loss  validation loss      f1" in out.getvalue() and "2.7500" in out.getvalue()
    if importlib.util.find_spec("matplotlib"):
        for number, run in enumerate((tmp_path / "run", curve.records)):
            plot_learning_curve(run, tmp_path / f"{number}.png", "a $title")
            assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
        with pytest.raises(InputError, match="no records"):
            plot_learning_curve([], tmp_path / "none.png")
