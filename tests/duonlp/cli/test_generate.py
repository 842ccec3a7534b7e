"""`duonlp generate` over a small real checkpoint: text on a terminal, choices, figures and reports."""

import importlib
import importlib.util
import io
import json

import numpy as np
import pytest

from duonlp.cli.common import merge_options
from duonlp.errors import InputError
from tests.duonlp.cli.test_app import checkpoint, run  # noqa: F401  (fixtures)

FRAMEWORKS = [
    pytest.param(name, marks=pytest.mark.skipif(not importlib.util.find_spec(needed), reason=f"no {needed}"))
    for name, needed in (("tf", "tensorflow"), ("jax", "flax"))
]
PROMPT = "import os"
ANY = pytest.mark.skipif(not importlib.util.find_spec("flax"), reason="no flax")


class Pieces(io.StringIO):
    """A standard output that records its content at each flush."""

    def __init__(self):
        super().__init__()
        self.flushed = []

    def flush(self):
        self.flushed.append(self.getvalue())


def base(checkpoint, framework, *more):  # noqa: F811
    return ["generate", PROMPT, "-m", checkpoint, "-f", framework, "--max-new-tokens", "5", *more]


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_greedy_text_is_streamed_and_the_same_as_the_pipelines(run, checkpoint, framework, monkeypatch):  # noqa: F811
    package = importlib.import_module(f"{framework}nlp")
    expected = package.pipeline("text-generation", checkpoint, max_new_tokens=5)(PROMPT)[0]["generated_text"]
    status, out, err = run(*base(checkpoint, framework))
    assert status == 0 and out == expected + "\n", err
    pieces = Pieces()
    monkeypatch.setattr("sys.stdout", pieces)
    assert run(*base(checkpoint, framework))[0] == 0
    assert pieces.flushed[0] == PROMPT and pieces.getvalue() == expected + "\n"
    assert len(pieces.flushed) > 2 and all(
        later.startswith(first) for first, later in zip(pieces.flushed, pieces.flushed[1:])
    )


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_report_has_texts_log_probabilities_and_choices(run, checkpoint, framework, tmp_path):  # noqa: F811
    options = ["--choices", "3", "--json", "--plot", tmp_path / "next.png", "--top-k", "4"]
    status, out, err = run(*base(checkpoint, framework, *options))
    assert status == 0, err
    report = json.loads(out)
    assert {name: report[name] for name in ("prompt", "framework")} == {"prompt": PROMPT, "framework": framework}
    assert report["options"] == {"max_new_tokens": 5, "top_k": 4}
    ((text,), (choices,)) = report["texts"], report["choices"]
    assert text["generated_text"] == PROMPT + text["new_text"] and "sequences_score" not in text
    assert len(text["token_ids"]) == len(text["logprobs"]) == len(choices)
    assert text["logprob"] == pytest.approx(sum(text["logprobs"]))
    assert text["perplexity"] == pytest.approx(np.exp(-np.mean(text["logprobs"])))
    for token, logprob, row in zip(text["token_ids"], text["logprobs"], choices, strict=True):
        assert (row["token_id"], row["rank"], len(row["choices"])) == (token, 0, 3)
        assert row["logprob"] == pytest.approx(logprob, abs=1e-5)
    assert (tmp_path / "next.png").read_bytes().startswith(b"\x89PNG")


@ANY
def test_beams_and_their_scores(run, checkpoint):  # noqa: F811
    arguments = base(checkpoint, "jax", "--beams", "3", "--return", "2", "--choices", "2")
    texts = json.loads(run(*arguments, "--json")[1])["texts"]
    scores = [text["sequences_score"] for text in texts]
    assert len(texts) == 2 and scores == sorted(scores, reverse=True)
    status, out, _ = run(*arguments)
    assert status == 0 and "--- text 2 of 2 ---" in out and "choice 2" in out and "beam score" in out


@ANY
def test_a_sampled_text_can_be_reproduced(run, checkpoint):  # noqa: F811
    sampled = base(checkpoint, "jax", "--sample", "--temperature", "3", "--json")
    first = json.loads(run(*sampled)[1])
    again = json.loads(run(*sampled, "--seed", first["options"]["seed"])[1])
    assert again["texts"] == first["texts"]


@ANY
def test_the_prompt_can_come_from_standard_input(run, checkpoint):  # noqa: F811
    arguments = base(checkpoint, "jax", "--no-stream")
    expected = run(*arguments)[1]
    status, out, _ = run(arguments[0], *arguments[2:], stdin=PROMPT + "\n")
    assert status == 0 and out == expected and out.startswith(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["x"], ["--model"]),
        (["-m", "MODEL"], ["no prompt"]),
        (["x", "-m", "/nowhere/at-all"], ["/nowhere/at-all"]),
        (["x", "-m", "MODEL", "--choices", "-1"], ["--choices", "-1"]),
        (["x", "-m", "MODEL", "--plot", "/nowhere/a.png"], ["/nowhere"]),
        (["x", "-m", "MODEL", "--plot", "a.gif"], ["a.gif", ".png"]),
        (["x", "-m", "MODEL", "--seed", "1", "-o", "seed=2"], ["seed is given twice"]),
        (["x", "-m", "MODEL", "-o", "max_new_tokns=2"], ["did you mean 'max_new_tokens'"]),
        (["x", "-m", "MODEL", "--return", "2"], ["num_return_sequences=2", "identical texts"]),
    ],
)
@ANY
def test_usage_errors_are_one_line(run, checkpoint, arguments, parts):  # noqa: F811
    status, out, err = run("generate", *[checkpoint if a == "MODEL" else a for a in arguments])
    assert status == 2 and out == "" and err.count("\n") == 1, err
    assert all(part in err for part in parts), err


def test_flags_that_were_not_given_are_dropped():
    flags = {"seed": 0, "top_k": 0, "do_sample": False, "temperature": None, "stop_strings": []}
    assert merge_options(flags, {"min_p": 0.1}) == {"seed": 0, "top_k": 0, "min_p": 0.1}
    with pytest.raises(InputError, match="seed is given twice"):
        merge_options(flags, {"seed": 1})
