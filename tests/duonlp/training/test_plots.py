"""Plots of loss curves: what they show, and errors."""

import importlib.util
import json
import math

import numpy as np
import pytest

from duonlp.errors import InputError, MissingExtraError
from duonlp.training.log.curves import plot_run
from duonlp.training.log.plots import format_count, name_runs, plot_loss, smooth, ticks

if not importlib.util.find_spec("matplotlib"):
    pytest.skip("the extra bench", allow_module_level=True)


def run(steps=60, per_step=1000, start=8.0, held_out=True):
    records = []
    for step in range(1, steps + 1):
        loss = start * step**-0.2
        records.append({"kind": "step", "step": step, "tokens": step * per_step, "loss": loss})
        if held_out and step % 20 == 0:
            records.append({"kind": "evaluation", "step": step, "tokens": step * per_step, "loss": loss + 0.1})
    return records


@pytest.fixture
def axes(monkeypatch):
    """Return a function that returns the left axes of the last saved figure."""
    from matplotlib.figure import Figure

    figures = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or original(self, *a, **k))
    return lambda: figures[-1].axes[0]


def legend(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_steps_moving_average_and_evaluations(tmp_path, axes):
    plot_loss(run(), tmp_path / "loss.png", title="a $run")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG") and len(list(tmp_path.iterdir())) == 1
    left_axes = axes()
    assert (left_axes.get_xscale(), left_axes.get_yscale(), left_axes.get_title()) == ("log", "log", "a $run")
    assert left_axes.get_xlabel() == "tokens seen" and left_axes.get_ylabel() == "loss (nats per token)"
    steps, mean, held_out = left_axes.lines
    np.testing.assert_allclose(steps.get_xdata(), np.arange(1, 61) * 1000)
    assert steps.get_alpha() < 0.5 < mean.get_linewidth()
    np.testing.assert_allclose(held_out.get_xdata(), [20000, 40000, 60000])
    assert legend(left_axes) == ["training", f"held-out: {8 * 60**-0.2 + 0.1:.3f} at the end"]
    left, right = left_axes.figure.axes
    assert right.get_ylabel() == "perplexity (per token)" and right.get_ylim() == left.get_ylim()


def test_several_runs_from_files_are_named_after_their_folders(tmp_path, axes):
    for name, start in (("small", 8.0), ("_wide", 7.0)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(record) + "\n" for record in run(start=start))
        (tmp_path / name / "metrics.jsonl").write_text(lines + '{"kind": "st')  # truncated, so dropped
    plot_loss([tmp_path / "small", tmp_path / "_wide" / "metrics.jsonl"], tmp_path / "both.svg")
    labels = legend(axes())
    assert labels[0] == "small" and labels[2] == " _wide" and labels[1].startswith("small, held-out")
    assert len({line.get_color() for line in axes().lines}) == 2
    assert "tokens seen" in (tmp_path / "both.svg").read_text()


def test_names_of_runs(tmp_path):
    a, b = run(2), run(3)
    assert list(name_runs([a, b])) == ["run 1", "run 2"] and name_runs(a) == {"run 1": a}
    assert list(name_runs([str(tmp_path), str(tmp_path)])) == [tmp_path.name, f"{tmp_path.name} (2)"]
    assert name_runs({"x": a}) == {"x": a}


def test_non_finite_losses_are_marked(tmp_path, axes):
    records = run(held_out=False)
    records[30]["loss"], records[31]["loss"] = math.nan, math.inf
    plot_loss(records, tmp_path / "loss.pdf")
    assert legend(axes()) == ["training", "non-finite loss"]
    np.testing.assert_allclose(axes().lines[-1].get_xdata(), [31000, 32000])
    assert len(axes().lines[0].get_xdata()) == 58


def test_named_evaluations_are_plotted_on_request(tmp_path, axes):
    records = run(held_out=False)
    records.append({"kind": "evaluation", "name": "other", "step": 9, "tokens": 9000, "loss": 3.0})
    records.append({"kind": "evaluation", "name": "human_eval", "step": 9, "tokens": 9000, "pass_at_1": 0.5})
    plot_loss(records, tmp_path / "loss.png")
    assert legend(axes()) == ["training"]
    plot_loss(records, tmp_path / "loss.png", evaluation="other")
    assert legend(axes()) == ["training", "held-out: 3.000 at the end"]


@pytest.mark.parametrize("log_axes", [True, False])
@pytest.mark.parametrize("losses", [[3.0], [3.0, 3.0], [1e-4, 2e-4], [300.0, 900.0], [3.25, 3.2501]])
def test_unusual_ranges(tmp_path, axes, losses, log_axes):
    records = [{"step": i, "tokens": i * 10, "loss": loss} for i, loss in enumerate(losses, 1)]
    plot_loss(records, tmp_path / "loss.png", log_axes=log_axes, smoothing=0)
    low, high = axes().get_ylim()
    assert low < min(losses) <= max(losses) < high


def test_smoothing_averages_over_a_share_of_the_tokens():
    tokens = np.arange(1.0, 1001)
    rng = np.random.default_rng(0)
    losses = rng.normal(size=1000)
    mean = smooth(tokens, losses, 0.1)
    inside = (tokens >= 0.9 * 500) & (tokens <= 500 / 0.9)
    assert mean[499] == pytest.approx(losses[inside].mean())
    np.testing.assert_allclose(mean[:8], losses[:8])  # no neighbors within the window
    np.testing.assert_allclose(smooth(tokens, np.full(1000, 2.5), 0.3), 2.5)


def test_ticks_are_round_and_few():
    assert ticks(2e3, 4e6) == [3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6]
    assert ticks(4.1, 8.4) == [4.5, 5, 5.5, 6, 7, 8]
    for low, high in ((1e3, 1e12), (3.2, 3.3), (7.85, 8.27), (1, 11), (2.3, 2.9), (0.01, 0.9)):
        marks = ticks(low, high)
        assert 3 <= len(marks) <= 9 and all(low <= mark <= high for mark in marks), (low, high, marks)
    assert [format_count(n) for n in (0, 12, 2048, 1e6, 1.5e9, 2e12)] == ["0", "12", "2.048K", "1M", "1.5B", "2T"]


def test_what_cannot_be_plotted_raises(tmp_path, monkeypatch):
    good = run(3)
    for arguments, message in (
        ((good, tmp_path / "loss.jpg"), r"\.png, \.svg, \.pdf"),
        ((good, tmp_path / "nowhere" / "loss.png"), "create it first"),
        (([], tmp_path / "loss.png"), "no runs to plot"),
        (([{"step": 1, "tokens": 5, "loss": math.nan}], tmp_path / "loss.png"), "no loss to plot"),
        ((tmp_path / "missing.jsonl", tmp_path / "loss.png"), "does not exist"),
    ):
        with pytest.raises(InputError, match=message):
            plot_loss(*arguments)
    with pytest.raises(InputError, match="smoothing is 1"):
        plot_loss(good, tmp_path / "loss.png", smoothing=1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"duonlp\[bench\]"):
        plot_loss(good, tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())


def test_scores_of_a_run_are_plotted_without_their_thresholds(tmp_path, axes):
    scores = {"f1": 50.0, "best_f1": 60.0, "best_f1_thresh": -3.0}
    records = [*run(10, held_out=False), {"kind": "evaluation", "step": 10, "examples": 8, **scores}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    plot_run(tmp_path, tmp_path / "run.svg")
    assert legend(axes().figure.axes[1]) == ["f1: 50.000", "best_f1: 60.000"]
