"""Bars of several systems: their labels, and what cannot be drawn."""

import pytest

pytest.importorskip("matplotlib")

from duonlp.errors import InputError
from duonlp.metrics.bars import plot_bars
from duonlp.metrics.bootstrap import Score


def test_bars_have_names_values_and_intervals(tmp_path):
    systems = {
        "general": {"EM": Score(10.0, 12.5, 15.0), "F1": Score(None, 0.0, None)},
        "both": {"EM": Score(99.0, 100.0, 100.0), "F1": Score(20.0, 33.3, 40.0)},
    }
    plot_bars(systems, tmp_path / "bars.svg", title="three bars", caption="percent")
    text = (tmp_path / "bars.svg").read_text()
    assert all(part in text for part in ("general", "both", "12.5", "33.3", "three bars", "percent"))


def test_nothing_to_draw(tmp_path):
    with pytest.raises(InputError, match="no scores to plot"):
        plot_bars({}, tmp_path / "bars.svg")
    with pytest.raises(InputError, match="txt"):
        plot_bars({"a": {"F1": Score(None, 1.0, None)}}, tmp_path / "bars.txt")
