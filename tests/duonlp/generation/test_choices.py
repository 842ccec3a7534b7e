"""Top choices of each step as rows, as a table and as a plot."""

import importlib.util
import io
import json

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from duonlp.errors import InputError, MissingExtraError
from duonlp.generation.choices import choices_table, log_softmax, top_choices
from duonlp.generation.plots import count_kept, draw_histogram, plot_next_token

LOGITS = np.log(np.array([[0.5, 0.2, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]]))
WORDS = {"Ġthe": 0, "Ġcat": 1, "[x]": 2, "Ċ": 3}


@pytest.fixture(scope="module")
def tokenizer():
    backend = Tokenizer(models.WordLevel(WORDS, unk_token="[x]"))
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_top_choices(tokenizer):
    first, second = top_choices(LOGITS + 7, np.array([2, 3]), tokenizer, k=2)
    assert (first["step"], first["token_id"], first["token"]) == (0, 2, "[x]")
    assert first["logprob"] == pytest.approx(np.log(0.2)) and first["rank"] == 2  # ties: lower id first
    assert [c["token_id"] for c in first["choices"]] == [0, 1]
    assert [c["token"] for c in first["choices"]] == [" the", " cat"]
    assert [c["probability"] for c in first["choices"]] == pytest.approx([0.5, 0.2])
    assert second["rank"] == 0 and second["choices"][0] == {
        "token_id": 3,
        "token": "\n",
        "probability": pytest.approx(0.4),
    }


def test_ranks_are_indices_of_the_choices():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 4, (30, 9)).astype(np.float32)  # many ties
    for row, scored in zip(top_choices(scores, rng.integers(0, 9, 30), k=100), scores, strict=True):
        ids = [choice["token_id"] for choice in row["choices"]]
        assert ids == np.argsort(-scored, kind="stable").tolist()  # k is cut to the vocabulary
        assert ids[row["rank"]] == row["token_id"]
        assert sum(choice["probability"] for choice in row["choices"]) == pytest.approx(1)
        assert np.exp(row["logprob"]) == pytest.approx(row["choices"][row["rank"]]["probability"])


def test_ruled_out_tokens():
    scores = np.array([[0.0, -np.inf, -np.inf, 0.0]], np.float16)
    (row,) = top_choices(scores, [3], k=4)
    assert row["logprob"] == pytest.approx(np.log(0.5)) and row["rank"] == 1 and row["token"] is None
    assert [c["probability"] for c in row["choices"]] == pytest.approx([0.5, 0.5, 0, 0])
    assert top_choices(scores, [1])[0]["logprob"] == -np.inf


def test_types_are_plain(tokenizer):
    json.dumps(top_choices(LOGITS.astype(np.float32), np.array([0, 1], np.int32), tokenizer))
    assert top_choices(np.zeros((0, 4)), np.zeros(0, int)) == []


@pytest.mark.parametrize(
    ("scores", "chosen", "k", "message"),
    [
        (LOGITS, [0, 1], 0, "k=0"),
        (LOGITS, [0, 1], 1.5, "k=1.5"),
        (LOGITS, [0], 1, r"\(2, 4\).*\(1,\)"),
        (LOGITS[0], [0], 1, r"\(4,\)"),
        (LOGITS, [0, 4], 1, "from 0 to 4; pass ids from 0 to 3"),
        (LOGITS, [0, -1], 1, "from -1"),
        (LOGITS, [0.0, 1.0], 1, "float64"),
        (np.full((1, 3), -np.inf), [0], 1, "step 0 is -inf"),
        (np.array([[0, np.nan]]), [0], 1, "step 0 is nan"),
    ],
)
def test_invalid_choices(scores, chosen, k, message):
    with pytest.raises(InputError, match=message):
        top_choices(scores, np.array(chosen), k=k)


def render(table, **options):
    console = Console(file=io.StringIO(), width=200, **options)
    console.print(table)
    return console.file.getvalue()


def test_table(tokenizer):
    rows = top_choices(LOGITS, np.array([0, 3]), tokenizer, k=2)
    lines = render(choices_table(rows)).splitlines()
    assert lines[0].split() == ["step", "choice", "1", "choice", "2"]
    assert lines[1].split("  ")[-1].strip() == "' cat' (20.00%)" and "' the' (50.00%)" in lines[1]
    assert (
        r"'\n' (40.00%)" in lines[2] and "'[x]' (30.00%)" in lines[2]
    )  # line breaks are escaped, and markup is not interpreted
    colored = render(choices_table(rows), force_terminal=True, color_system="standard")
    assert "\x1b[1m' the' (50.00%)\x1b[0m" in colored and "\x1b[1m' cat' (20.00%)" not in colored


def test_the_table_shows_chosen_tokens_outside_the_choices(tokenizer):
    table = render(choices_table(top_choices(LOGITS, np.array([3, 3]), tokenizer, k=2)))
    assert "chosen" in table and r"'\n' (10.00%, rank 3)" in table
    assert "#3 (10.00%, rank 3)" in render(choices_table(top_choices(LOGITS, np.array([3, 3]), k=1)))
    assert render(choices_table([])).strip() == "step"


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (None, None, 4),
        (2, None, 2),
        (9, None, 4),
        (None, 0.75, 2),
        (None, 0.81, 3),
        (None, 1.0, 4),
        (2, 0.6, 1),
        (1, 0.1, 1),
    ],
)
def test_number_of_tokens_that_top_k_and_top_p_keep(top_k, top_p, kept):
    assert count_kept(np.array([0.5, 0.3, 0.15, 0.05, 0.0]), top_k, top_p) == kept


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("PDF", b"%PDF")])
def test_plot_by_suffix(tmp_path, tokenizer, suffix, begins):
    pytest.importorskip("matplotlib")
    logits = np.append(LOGITS[0], -np.inf)
    file = tmp_path / f"next.{suffix}"
    file.write_bytes(b"old")
    assert plot_next_token(logits, file, tokenizer=tokenizer, top_k=3, top_p=0.8, title="next") is None
    assert file.read_bytes().startswith(begins)
    assert [f.name for f in tmp_path.iterdir()] == [file.name]


def test_plot_labels(tmp_path, recwarn):
    pytest.importorskip("matplotlib")
    backend = Tokenizer(models.WordLevel({"$a$": 0, "字": 1, "x" * 40: 2, "<b>": 3}, unk_token="<b>"))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    plot_next_token(LOGITS[0], tmp_path / "next.svg", tokenizer=tokenizer, top_k=2, title="cost: $5 or $6")
    text = (tmp_path / "next.svg").read_text(encoding="utf-8")
    for words in ("kept: 2", "cut: 2", "top-k = 2: 70.0%", "temperature 0.5", "$5 or $6", "$a$", r"\u5b57", "xx..."):
        assert words in text
    assert not [w for w in recwarn if "Glyph" in str(w.message)]  # characters missing in the font are escaped


@pytest.mark.parametrize(
    "logits", [[0.0, -np.inf], [0.0, 0.0, 0.0], [0.0, -9999.0, -3.0], [2.0, 1.0, -60.0, -np.inf, -90.0]]
)
def test_the_histogram_counts_every_token(logits, tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    ranked = np.sort(np.exp(log_softmax(np.array(logits), "x")))[::-1]
    for kept in (None, 1):
        axes = Figure().subplots()
        draw_histogram(axes, ranked, kept)
        assert sum(bar.get_height() for bar in axes.patches) == np.count_nonzero(ranked)
        assert axes.get_xscale() == axes.get_yscale() == "log" and bool(axes.lines) == (kept is not None)
        widths = np.log10([bar.get_x() + bar.get_width() for bar in axes.patches]) - np.log10(
            [b.get_x() for b in axes.patches]
        )
        np.testing.assert_allclose(widths, widths[0], rtol=1e-6)
    plot_next_token(np.array(logits), tmp_path / "next.svg", top_p=0.5)
    assert f"probabilities of all {np.count_nonzero(ranked)} tokens" in (tmp_path / "next.svg").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "next.gif"}, "'.gif'; give a file that ends in .png, .svg, .pdf"),
        ({"path": "next"}, "give a file"),
        ({"path": "nowhere/next.png"}, "nowhere' of 'next.png' does not exist; create it first"),
        ({"logits": LOGITS}, r"\(2, 4\)"),
        ({"logits": np.full(3, -np.inf)}, "largest logit of the next token is -inf"),
        ({"temperatures": ()}, "at least one"),
        ({"temperatures": (1.0, 0)}, "temperature 0 "),
        ({"top_k": 0}, "top_k=0"),
        ({"top_p": 1.5}, "top_p=1.5"),
    ],
)
def test_invalid_plots(tmp_path, change, message):
    options = {"logits": LOGITS[0], "path": "next.png"} | change
    with pytest.raises(InputError, match=message):
        plot_next_token(options.pop("logits"), tmp_path / options.pop("path"), **options)
    assert not list(tmp_path.iterdir())


def test_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"duonlp\[bench\]"):
        plot_next_token(LOGITS[0], tmp_path / "next.png")
