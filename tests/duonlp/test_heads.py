"""The table of heads: outputs, labels and loss terms."""

import re

import numpy as np
import pytest

from duonlp import architectures, heads
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, NO_POSITION, ROW_MASK, loss_terms, outputs_of, targets_of
from tests.cases import cases

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
BERT = architectures.config_from_hf({"model_type": "bert", "num_labels": 3, **SMALL})
ALBERT = architectures.config_from_hf({"model_type": "albert", "embedding_size": 12, **SMALL})
RNG = np.random.default_rng(0)


def test_outputs_depend_on_the_configuration():
    assert targets_of("pretraining", BERT) == {
        "labels": "prediction_logits",
        "next_sentence_label": "seq_relationship_logits",
    }
    assert targets_of("pretraining", ALBERT) == {"labels": "prediction_logits", "sentence_order_label": "sop_logits"}
    assert targets_of("base", BERT) == {}
    (output,) = outputs_of("sequence-classification", BERT)
    integers, shares = np.array([0, 2]), np.zeros((2, 3), np.float32)
    assert [output.kind_for(BERT, labels) for labels in (None, integers, shares)] == ["softmax", "softmax", "bernoulli"]
    assert output.kind_for(BERT.replace(labels=("value",)), shares) == "regression"
    assert output.kind_for(BERT.replace(problem_type="multi_label_classification"), integers) == "bernoulli"


@pytest.mark.parametrize("case", [case for case in cases() if "[" not in case.name], ids=lambda case: case.name)
def test_every_case_has_the_labels_of_its_head(case):
    labels = set(case.inputs()) & set(HEADS[case.head].label_names)
    assert labels == set(targets_of(case.head, case.config))


def terms_of(engine: str, head: str, outputs: dict, batch: dict, config=BERT, **options):
    """Return a head's terms as floats."""
    package = pytest.importorskip(engine)
    terms = loss_terms(package.ops, package.losses, head, config, outputs, batch, **options)
    return {name: (float(total), float(count)) for name, (total, count) in terms.items()}


def engines():
    return pytest.mark.parametrize("engine", ["tfnlp", "jaxnlp"])


def prepare(engine: str, arrays: dict) -> dict:
    """Return arrays of an engine."""
    if engine == "jaxnlp":
        import jax.numpy as jnp

        return {name: jnp.asarray(value) for name, value in arrays.items()}
    import tensorflow as tf

    return {name: tf.constant(value) for name, value in arrays.items()}


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


@engines()
def test_padding_rows_count_for_nothing(engine):
    rows = np.array([1, 1, 0], np.int32)
    logits, tokens = RNG.normal(size=(3, 4)).astype(np.float32), RNG.normal(size=(3, 5, 3)).astype(np.float32)
    classes, words = np.array([0, 2, 1], np.int32), np.array([[0, 1, IGNORED, 2, 1]] * 3, np.int32)
    shares, numbers = RNG.integers(0, 2, (3, 4)).astype(np.float32), RNG.normal(size=3).astype(np.float32)
    attended = np.array([[1, 1, 1, 1, 0]] * 3, np.int32)
    one = BERT.replace(labels=("value",))
    for head, outputs, batch, config in (
        ("sequence-classification", {"logits": logits}, {"labels": classes}, BERT),
        ("sequence-classification", {"logits": logits}, {"labels": shares}, BERT),
        ("sequence-classification", {"logits": logits[:, :1]}, {"labels": numbers}, one),
        ("token-classification", {"logits": tokens}, {"labels": words}, BERT),
        ("causal-lm", {"logits": tokens}, {"labels": words}, BERT),
        ("multiple-choice", {"logits": logits}, {"labels": classes}, BERT),
        ("replaced-token-detection", {"logits": tokens[..., 0]}, {"labels": words % 2, "attention_mask": attended}, BERT),
        (
            "question-answering",
            {"start_logits": logits, "end_logits": logits[::-1].copy()},
            {"start_positions": classes, "end_positions": np.array([0, NO_POSITION, 1], np.int32)},
            BERT,
        ),
    ):  # fmt: skip
        first_two = [prepare(engine, {name: value[:2] for name, value in part.items()}) for part in (outputs, batch)]
        whole = prepare(engine, outputs), prepare(engine, {**batch, ROW_MASK: rows})
        found, expected = terms_of(engine, head, *whole, config), terms_of(engine, head, *first_two, config)
        assert {name: count for name, (_, count) in found.items()} == {name: c for name, (_, c) in expected.items()}
        for name, (total, _) in expected.items():
            assert found[name][0] == pytest.approx(total, rel=1e-6), (head, name)


@engines()
def test_terms_are_sums_and_counts_in_numpy(engine):
    logits = RNG.normal(size=(2, 4, 3)).astype(np.float32)
    labels = np.array([[1, 0, 2, IGNORED], [2, 2, IGNORED, 1]], np.int32)
    batch = prepare(engine, {"labels": labels, "sample_weight": np.array([1.0, 3.0], np.float32)})
    outputs, losses = prepare(engine, {"logits": logits}), -log_softmax(logits)
    picked = np.take_along_axis(losses, np.maximum(labels, 0)[..., None], -1)[..., 0] * (labels != IGNORED)
    assert terms_of(engine, "token-classification", outputs, batch) == {
        "logits": (pytest.approx((picked.sum(1) * [1, 3]).sum(), rel=1e-6), 6.0)
    }
    # A causal model's logits predict the label of the next position.
    shifted = np.take_along_axis(losses[:, :-1], np.maximum(labels[:, 1:], 0)[..., None], -1)[..., 0]
    total = ((shifted * (labels[:, 1:] != IGNORED)).sum(1) * [1, 3]).sum()
    assert terms_of(engine, "causal-lm", outputs, batch) == {"logits": (pytest.approx(total, rel=1e-6), 4.0)}


COUNTED = {
    "token-classification": [({"labels": [[1, IGNORED]]}, True), ({"labels": [[IGNORED, IGNORED]]}, False)],
    "causal-lm": [({"labels": [[IGNORED, 1]]}, True), ({"labels": [[1, IGNORED]]}, False)],  # the first has no logits
    "sequence-classification": [({"labels": [[IGNORED]]}, False), ({"labels": [0], ROW_MASK: [0]}, False), ({}, True)],
    "question-answering": [
        ({"start_positions": [1], "end_positions": [9]}, True),
        ({"start_positions": [2], "end_positions": [heads.NO_POSITION]}, False),
    ],
    "replaced-token-detection": [
        ({"labels": [[0, 0]], "attention_mask": [[1, 0]]}, True),
        ({"labels": [[0, 1]], "attention_mask": [[0, 0]]}, False),
    ],
    "base": [({}, True)],
}


@pytest.mark.parametrize("head", COUNTED)
def test_labels_that_count(head):
    for batch, expected in COUNTED[head]:
        arrays = {name: np.array(value, np.int32) for name, value in {"input_ids": [[5, 6]], **batch}.items()}
        assert heads.counts_labels(head, BERT, arrays) == expected, batch


@engines()
def test_label_smoothing_needs_classes(engine):
    config = BERT.replace(problem_type="regression", labels=("value",))
    inputs = (
        prepare(engine, {"logits": np.zeros((2, 1), np.float32)}),
        prepare(engine, {"labels": np.zeros(2, np.float32)}),
    )
    message = re.escape("label_smoothing is 0.1 but the loss of this sequence-classification model is not over classes")
    with pytest.raises(InputError, match=message):
        terms_of(engine, "sequence-classification", *inputs, config, label_smoothing=0.1)
    with pytest.raises(InputError, match=message):
        heads.check_label_smoothing("sequence-classification", config, 0.1)
    heads.check_label_smoothing("sequence-classification", BERT, 0.1)
