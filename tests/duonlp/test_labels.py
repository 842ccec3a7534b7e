"""The forms of labels: which train alike, and which are refused, whatever the head, the framework, or tracing."""

import re
from functools import cache

import numpy as np
import pytest

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.heads import IGNORED, loss_terms, outputs_of, standard_batch
from duonlp.inputs import check_inputs, check_weights, shift_right
from duonlp.labels import array_of, check_form, standard_labels
from tests.cases import CHOICES, ENCODER, LENGTH

CLASSIFIER = "sequence-classification"
ROWS, CLASSES = 4, 3
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 60, (ROWS, LENGTH))
HEADS = (
    "sequence-classification", "token-classification", "question-answering", "multiple-choice", "masked-lm", "causal-lm",
    "next-sentence-prediction", "pretraining", "replaced-token-detection",
)  # fmt: skip


@cache
def config_of(head: str, **changes):
    labels = 2 if head == "question-answering" else CLASSES
    return architectures.config_from_hf({"model_type": "bert", "num_labels": labels, **ENCODER}).replace(**changes)


def head_batch(head, config):
    """Return random logits, and plain labels, of every output of a head."""
    logits, labels = {}, {}
    for output in outputs_of(head, config):
        classes = {"choices": CHOICES, "positions": LENGTH}.get(output.over) or output.classes(config)
        leading = (ROWS, LENGTH) if output.per_token or output.kind == "span" else (ROWS,)
        has_axis = output.kind != "span" and not (output.kind == "bernoulli" and output.per_token)
        shape = (*leading, classes) if has_axis else leading
        logits[output.logits] = RNG.normal(size=shape).astype(np.float32)
        labels[output.labels] = RNG.integers(0, classes, leading if output.per_token else ROWS)
    return logits, labels


def inputs_of(head):
    ids = np.stack([IDS] * CHOICES, 1) if head == "multiple-choice" else IDS
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def frameworks(engine):
    """Return an engine, its arrays' constructor, and its function that traces."""
    package = pytest.importorskip(engine)
    if engine == "jaxnlp":
        import jax

        return package, jax.numpy.asarray, jax.jit
    import tensorflow as tf

    return package, tf.constant, lambda function: tf.function(function, autograph=False)


def terms(engine, head, config, logits, batch):
    package, _, _ = frameworks(engine)
    found = loss_terms(package.ops, package.losses, head, config, logits, batch)
    return [total / count for total, count in found.values()]


@pytest.mark.parametrize("engine", ["tfnlp", "jaxnlp"])
@pytest.mark.parametrize("head", HEADS)
def test_labels_of_other_forms_give_the_same_terms(engine, head):
    config, (_, array, trace) = config_of(head), frameworks(engine)
    logits, labels = head_batch(head, config)
    logits, ones = {name: array(value) for name, value in logits.items()}, {"attention_mask": array(np.ones_like(IDS))}
    plain = terms(engine, head, config, logits, {n: array(v.astype(np.int32)) for n, v in labels.items()} | ones)
    forms = ["uint8", "int16", "int64"] if engine == "tfnlp" else ["uint8", "int16"]
    for dtype in forms:
        columns = {n: v[:, None] if v.ndim == 1 else v for n, v in labels.items()}
        for values in (labels, columns):
            check_inputs(config, head, inputs_of(head) | {n: v.astype(dtype) for n, v in values.items()})
            batch = {n: array(v.astype(dtype)) for n, v in values.items()} | ones
            for run in (terms, trace(lambda logits, batch: terms(engine, head, config, logits, batch))):
                arguments = (engine, head, config, logits, batch) if run is terms else (logits, batch)
                assert [float(t) for t in run(*arguments)] == pytest.approx([float(t) for t in plain], rel=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_other_forms_are_refused_for_every_head(head):
    config = config_of(head)
    _, labels = head_batch(head, config)
    bad = {
        "text": lambda v: np.full(v.shape, "a"),
        "object": lambda v: np.full(v.shape, None),
        "rank": lambda v: v[..., None, None],
        "rows": lambda v: v[:-1],
    }
    if head != "replaced-token-detection":  # its losses take numbers
        bad |= {"float": lambda v: v.astype(np.float32), "one-hot": lambda v: np.eye(99, dtype=int)[v]}
    for output in outputs_of(head, config):
        values = labels[output.labels]
        beyond = np.where(np.arange(values.size).reshape(values.shape) == values.size - 1, -7, values)
        forms = {form: make(values) for form, make in bad.items()} | {"negative": beyond}
        for form, value in forms.items():
            with pytest.raises(InputError, match=output.labels):
                check_inputs(config, head, inputs_of(head) | labels | {output.labels: value})
                pytest.fail(form)
        with pytest.raises(InputError, match=f"row {ROWS - 1} of {output.labels} contains -7"):
            check_inputs(config, head, inputs_of(head) | labels | {output.labels: beyond})


@pytest.mark.parametrize(
    ("changes", "labels", "message"),
    [
        ({}, np.eye(3, dtype=int)[[0, 1, 2, 0]], "one class per text, [batch]; for one-hot rows, pass labels.argmax(-1)"),
        ({}, np.eye(3, dtype=bool)[[0, 1, 2, 0]], "labels (bool) has shape (4, 3)"),
        ({}, [0.0, 1.0, 2.0, 0.0], "takes a number per class, [batch, 3]; for one class per text, pass integers"),
        ({"problem_type": "single_label_classification"}, [0.0, 1.0, 2.0, 0.0], "labels must be integers, got float64"),
        ({"problem_type": "multi_label_classification"}, [0, 1, 2, 0], "load the model with problem_type='single_label"),
        ({"problem_type": "multi_label_classification"}, np.ones((4, 2)), "takes a number per class, [batch, 3]"),
        ({"problem_type": "multi_label_classification"}, np.full((4, 3), np.nan), "row 0 of labels contains nan"),
        ({"problem_type": "regression"}, [0.0, 1.0, 2.0, 0.0], "takes numbers, [batch, 3]"),
        ({"labels": ("score",)}, np.ones((4, 2)), "takes numbers, [batch]"),
        ({"labels": ("score",)}, [0.0, 1.0, np.inf, 0.0], "row 2 of labels contains inf"),
    ],
)  # fmt: skip
def test_refused_labels_of_a_text_classifier(changes, labels, message):
    with pytest.raises(InputError, match=re.escape(message)):
        check_inputs(
            config_of(CLASSIFIER, **changes),
            CLASSIFIER,
            inputs_of("") | {"labels": labels},
        )


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, [True, False, True, True]),
        ({}, np.array([[0], [1], [IGNORED], [2]], np.int8)),
        ({}, RNG.uniform(size=(4, 3))),
        ({"problem_type": "multi_label_classification"}, np.eye(3, dtype=bool)[[0, 1, 2, 0]]),
        ({"problem_type": "multi_label_classification"}, np.full((4, 3), IGNORED)),
        ({"labels": ("score",)}, [1, 2, 3, 4]),
        ({"labels": ("score",)}, np.ones((4, 1), np.float16)),
    ],
)
def test_accepted_labels_of_a_text_classifier(changes, labels):
    config = config_of(CLASSIFIER, **changes)
    check_inputs(config, CLASSIFIER, inputs_of("") | {"labels": labels})


def test_arrays_of_other_packages():
    pandas, torch = pytest.importorskip("pandas"), pytest.importorskip("torch")
    config, (output,) = (
        config_of(CLASSIFIER),
        outputs_of(CLASSIFIER, config_of(CLASSIFIER)),
    )
    for labels in (
        pandas.Series([0, 1, 2, 0], index=[5, 6, 7, 8]),
        torch.tensor([[0], [1], [2], [0]]),
        pandas.DataFrame({"y": [0, 1, 2, 0]}),
    ):
        check_inputs(config, CLASSIFIER, inputs_of("") | {"labels": labels})
        assert array_of("labels", labels).ravel().tolist() == [0, 1, 2, 0]
    with pytest.raises(InputError, match="labels must be numbers"):
        check_form(output, config, array_of("labels", pandas.Series(["a", "b"]).astype("category")))
    with pytest.raises(InputError, match="labels"):
        check_form(output, config, array_of("labels", pandas.Series([1, None], dtype="Int64")))


def test_a_choice_beyond_the_batchs_choices():
    labels = np.array([0, 1, CHOICES, 0])
    with pytest.raises(
        InputError, match=f"row 2 of labels contains {CHOICES}, but this model's class ids are 0 to {CHOICES - 1}"
    ):
        check_inputs(config_of("multiple-choice"), "multiple-choice", inputs_of("multiple-choice") | {"labels": labels})


def test_padding_of_replaced_tokens_may_have_any_label():
    config, labels = config_of("replaced-token-detection"), np.ones_like(IDS)
    labels[:, -1] = IGNORED
    inputs = inputs_of("") | {"labels": labels}
    with pytest.raises(InputError, match=r"row 0 of labels contains -100.*leave padding out with attention_mask"):
        check_inputs(config, "replaced-token-detection", inputs)
    inputs["attention_mask"] = (labels == 1).astype(int)
    check_inputs(config, "replaced-token-detection", inputs)


def test_traced_labels_are_refused_by_dtype_and_shape():
    jax = pytest.importorskip("jax")
    config, (output,) = (
        config_of(CLASSIFIER),
        outputs_of(CLASSIFIER, config_of(CLASSIFIER)),
    )
    from jaxnlp import ops

    trace = jax.jit(lambda labels: standard_labels(ops, output, config, labels))
    assert trace(np.ones((4, 1), np.uint8)).shape == (4,)
    for labels in (np.ones((4, 3), np.int32), np.ones(4, np.float32)):
        with pytest.raises(InputError, match=r"labels .*has shape"):
            trace(labels)


@pytest.mark.parametrize("weights", [np.ones(3), np.ones((4, 2)), ["a"] * 4, [0.0, 1.0, np.nan, 1.0], 1.0])
def test_refused_weights(weights):
    with pytest.raises(InputError, match="sample_weight"):
        check_weights(
            config_of(CLASSIFIER),
            CLASSIFIER,
            {"labels": [0, 1, 2, 0], "sample_weight": weights},
        )


@pytest.mark.parametrize("engine", ["tfnlp", "jaxnlp"])
def test_columns_of_weights_become_rows_with_and_without_labels(engine):
    package, array, trace = frameworks(engine)
    for labels in ({}, {"labels": array(np.array([0, 1, 2, 0]))}):
        batch = labels | {"sample_weight": array(np.array([[1], [2], [3], [4]]))}
        for run in (lambda function: function, trace):
            standard = run(lambda batch: standard_batch(package.ops, CLASSIFIER, config_of(CLASSIFIER), batch))
            assert standard(batch)["sample_weight"].shape == (4,)
            by_name = standard(batch | {"sample_weight": {"labels": batch["sample_weight"]}})
            assert by_name["sample_weight"]["labels"].shape == (4,)


def test_weights_whose_rank_only_a_graph_knows():
    tf = pytest.importorskip("tensorflow")
    package, array, _ = frameworks("tfnlp")
    config, labels = config_of(CLASSIFIER), array(np.array([0, 1, 2, 0]))
    logits = {"logits": array(RNG.normal(size=(ROWS, CLASSES)).astype(np.float32))}

    @tf.function(input_signature=[tf.TensorSpec(None, tf.float32)], autograph=False)
    def loss(weights):
        batch = {"labels": labels, "sample_weight": weights}
        return loss_terms(package.ops, package.losses, CLASSIFIER, config, logits, batch)["logits"][0]

    weights = np.array([0.5, 1.0, 2.0, 0.0], np.float32)
    assert float(loss(weights)) == pytest.approx(float(loss(weights[:, None])), rel=1e-6)


@pytest.mark.parametrize("engine", ["tfnlp", "jaxnlp"])
@pytest.mark.parametrize("dtype", ["uint8", "int16"])
def test_start_tokens_beyond_the_dtype_of_the_labels(engine, dtype):
    package, array, trace = frameworks(engine)
    hf = {"model_type": "marian", "vocab_size": 60_000, "pad_token_id": 58_100, "decoder_start_token_id": 58_100}
    config, labels = architectures.config_from_hf(hf), np.array([[3, 4, 5]], dtype)
    for run in (lambda function: function, trace):
        ids = run(lambda labels: shift_right(package.ops, labels, config))(array(labels))
        assert np.asarray(ids).tolist() == [[58_100, 3, 4]]
