"""Adaptation runs: the texts, the loss, resuming, cleaning and bad input, in both engines."""

import json

import pytest

from duonlp.errors import InputError
from duonlp.runs.adaptation import AdaptationSettings, adapt, plan, prepare
from duonlp.training.fit_config import FitConfig
from tests.cases import Case
from tests.reference import record_pipelines as reference

BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 32, "pad_token_id": 0, "initializer_range": 0.2, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
ROWS = [
    {"title": f"Ada wrote program {i}.", "body": "x = 1\n" * (i % 3), "labels": ["bug"] * (i % 2)} for i in range(24)
]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    tokenizer = reference.load_tokenizer("wordpiece")
    folder = Case("base", BERT | {"vocab_size": len(tokenizer)}, "base").write(tmp_path_factory.mktemp("base"))
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def options(base, tmp_path):
    (tmp_path / "issues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]))
    return {
        "model": str(base), "data": str(tmp_path / "issues.jsonl"), "output": str(tmp_path / "out"), "batch_size": 4,
        "text_template": "{title}\n\n{body}", "max_length": 12, "held_out": 0.2, "probability": 0.3,
        "fit": FitConfig(epochs=3, learning_rate=1e-2),
    }  # fmt: skip


@pytest.mark.parametrize("engine", ["jaxnlp", "tfnlp"])
def test_the_loss_falls_and_the_same_run_is_not_repeated(options, engine, tmp_path):
    package = pytest.importorskip(engine)
    report = adapt(package, AdaptationSettings(**options), console=False)
    losses = [entry["loss"] for entry in report["history"]]
    assert len(losses) == 3 and losses[-1] < losses[0] and report["metrics"]["loss"] == min(losses)
    assert report["data"]["train"] + report["data"]["held_out"] == 24  # labeled or not, each once
    model = package.AutoModelForMaskedLM.from_pretrained(tmp_path / "out/best")
    assert model.num_parameters() == report["parameters"]
    again = adapt(package, AdaptationSettings(**options), console=False)
    assert again["steps"] == report["steps"] and again["metrics"] == report["metrics"]
    with pytest.raises(InputError, match=r"different settings \(probability\)"):
        adapt(package, AdaptationSettings(**options | {"probability": 0.2}), console=False)


def test_texts_that_are_held_out_and_dropped(options):
    data, _ = prepare(AdaptationSettings(**options))
    held_out = data.held_out
    assert held_out is not None and not set(held_out.texts) & set(data.batches.texts)
    same, _ = prepare(AdaptationSettings(**options))
    assert [*same.batches.texts] == [*data.batches.texts] and same.fingerprint == data.fingerprint
    cleaned, _ = prepare(
        AdaptationSettings(**options | {"cleaning": "prose"}),
        ["tiny", "A sentence of some length.", *data.batches.texts],
    )
    assert cleaned.dropped["too small"] == 1
    none, _ = prepare(AdaptationSettings(**options | {"held_out": 0.0}))
    assert none.held_out is None and len(none.batches.texts) == 24
    assert (
        "24 training texts, 0 held-out texts"
        in plan(AdaptationSettings(**options | {"held_out": 0.0}), "jax")["summary"]
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ""}, "model is empty"),
        ({"held_out": 1.0}, "held_out is 1.0; it must be a share"),
        ({"cleaning": "pros"}, "pros.*did you mean 'prose'"),
        ({"max_length": 64}, "max_length is 64; the model reads at most 32 tokens"),
        ({"probability": 1.5}, "probability is 1.5"),
        ({"text_template": "{titel}"}, "has no column 'titel'"),
        ({"data": "missing.jsonl"}, "missing.jsonl"),
    ],
)
def test_bad_input(options, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(AdaptationSettings(**options | changes))
