"""length_report: statistics by hand, the table, the figure and errors."""

import importlib.util
import json

import numpy as np
import pytest
from rich.console import Console

from duonlp.data.pairs.lengths import Lengths, length_report
from duonlp.data.pairs.summaries import Pair
from duonlp.errors import InputError, MissingExtraError
from duonlp.tokenizers.train import train_tokenizer

PAIRS = [Pair(" ".join(["cat"] * n), ("cat", "cat cat"), str(n)) for n in range(1, 101)]


@pytest.fixture(scope="module")
def report():
    tokenizer = train_tokenizer(["cat cat cat"] * 9, "wordpiece", 20)  # one token per word, plus [CLS] and [SEP]
    return length_report(iter(PAIRS), tokenizer, source_limits=(52, 200), target_limits=3, prefix="cat ")


def test_figures_by_hand(report):
    sources, targets = report.sources, report.targets
    np.testing.assert_array_equal(
        sources.values, np.arange(4, 104)
    )  # 1 to 100 words, the prefix and two special tokens
    assert (len(sources), sources.mean, sources.longest) == (100, 53.5, 103)
    assert [sources.percentile(share) for share in (50, 90, 95, 99)] == [53, 93, 98, 102]
    assert (sources.cut(52), sources.cut(53), sources.cut(200), sources.cut(103)) == (0.51, 0.5, 0, 0)
    assert sources.lost(102) == 1 / 5350
    assert len(targets) == 200 and targets.mean == 3.5 and targets.cut(3) == 0.5, "every summary counts"
    assert json.loads(json.dumps(report.to_dict())) == {
        "sources": {"count": 100, "mean": 53.5, "p50": 53, "p90": 93, "p95": 98, "p99": 102, "max": 103}
        | {
            "limits": {"52": {"texts_cut": 0.51, "tokens_lost": 1326 / 5350}, "200": {"texts_cut": 0, "tokens_lost": 0}}
        },
        "targets": {"count": 200, "mean": 3.5, "p50": 3, "p90": 4, "p95": 4, "p99": 4, "max": 4}
        | {"limits": {"3": {"texts_cut": 0.5, "tokens_lost": 1 / 7}}},
    }


def test_the_table(report):
    console = Console(width=60)
    with console.capture() as capture:
        console.print(report)
    assert [line.split() for line in capture.get().splitlines()] == [
        ["tokens", "sources", "targets"],
        ["count", "100", "200"],
        ["mean", "53.5", "3.5"],
        ["p50", "53", "3"],
        ["p90", "93", "4"],
        ["p95", "98", "4"],
        ["p99", "102", "4"],
        ["max", "103", "4"],
        ["longer", "than", "3", "50.0%"],
        ["longer", "than", "52", "51.0%"],
        ["longer", "than", "200", "0.0%"],
    ]


@pytest.mark.skipif(not importlib.util.find_spec("matplotlib"), reason="the extra bench")
def test_the_figure_shows_every_text_and_the_limits(report, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    figures = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: figures.append(self) or original(self, *a, **k))
    report.plot(tmp_path / "lengths.svg", title="cats")
    assert [file.name for file in tmp_path.iterdir()] == ["lengths.svg"]
    left, right = figures[0].axes
    assert [sum(bar.get_height() for bar in axes.patches) for axes in (left, right)] == [100, 200]
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == ["p50: 53", "p95: 98", "limit 52: cuts 51.0%", "limit 200: cuts 0.0%"]
    assert right.get_title() == "200 summaries, 3.5 tokens on average"
    assert "limit 3: cuts 50.0%" in (tmp_path / "lengths.svg").read_text()
    with pytest.raises(InputError, match="ends in"):
        report.plot(tmp_path / "lengths.gif")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"duonlp\[bench\]"):
        report.plot(tmp_path / "lengths.png")


def test_invalid_arguments(report):
    assert Lengths(np.array([5])).percentile(99) == 5
    with pytest.raises(InputError, match="no pairs"):
        length_report([], None)
    for limits in (0, "512", (512, 1.5), [None]):
        with pytest.raises(InputError, match="source_limits is"):
            length_report(PAIRS, None, source_limits=limits)
