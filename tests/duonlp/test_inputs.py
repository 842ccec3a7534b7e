"""Validation of model inputs, with every kind of array."""

import numpy as np
import pytest

from duonlp import architectures
from duonlp.errors import InputError
from duonlp.inputs import check_inputs
from tests.cases import CHOICES, LENGTH, VOCABULARY, cases

SMALL = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
BERT = architectures.config_from_hf({"model_type": "bert", "max_position_embeddings": 20, **SMALL})
THREE = architectures.config_from_hf({"model_type": "bert", "num_labels": 3, **SMALL})
IDS = np.ones((2, 5), int)


class Symbolic:
    """An array of which only the shape is known."""

    def __init__(self, *shape):
        self.shape = shape

    def __array__(self, *args, **kwargs):
        raise NotImplementedError


def refused(message, head="base", cfg=BERT, cached=False, **inputs):
    with pytest.raises(InputError, match=message):
        check_inputs(cfg, head, {"input_ids": IDS, **inputs}, cached)


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_the_inputs_of_the_other_tests_are_valid(case):
    check_inputs(case.config, case.head, case.inputs())


def test_input_ids_are_needed():
    refused("the inputs are attention_mask; a model needs input_ids", input_ids=None, attention_mask=IDS)
    refused("the inputs are empty", input_ids=None)


@pytest.mark.parametrize("name", ["input_ids", "attention_mask", "token_type_ids", "labels"])
def test_rows_of_different_lengths(name):
    refused(f"{name}: rows differ in length; pass padding=True", "masked-lm", **{name: [[5, 6], [7]]})


@pytest.mark.parametrize("name", ["attention_mask", "token_type_ids", "position_ids"])
@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (5,), (2, 5, 1), ()])
def test_shapes_that_do_not_match_input_ids(name, shape):
    values = np.zeros(shape, int)
    refused(rf"{name} has shape .* and input_ids \(2, 5\); they must match", **{name: values})
    refused(name, **{name: values.tolist()})
    refused(name, input_ids=Symbolic(2, 5), **{name: Symbolic(*shape)})


def test_matching_shapes():
    for name in ("attention_mask", "token_type_ids", "position_ids"):
        check_inputs(BERT, "base", {"input_ids": IDS, name: IDS * 0})
        check_inputs(BERT, "base", {"input_ids": Symbolic(None, None), name: Symbolic(2, 7)})
        check_inputs(BERT, "base", {"input_ids": IDS, name: Symbolic(None, 5)})
    check_inputs(BERT, "base", {"input_ids": IDS, "position_ids": np.arange(5)[None]})
    check_inputs(BERT, "base", {"input_ids": IDS, "attention_mask": np.ones((2, 12))}, cached=True)
    choices = np.ones((2, CHOICES, 5), int)
    check_inputs(BERT, "multiple-choice", {"input_ids": choices, "position_ids": np.arange(5)[None, None]})


def test_a_mask_with_a_cache_has_the_same_number_of_rows():
    refused("attention_mask has shape", cached=True, attention_mask=np.ones((3, 12)))
    refused("attention_mask has shape", attention_mask=np.ones((2, 12)))


def test_errors_of_reading_an_array_are_raised():
    class Broken(Symbolic):
        def __array__(self, *args, **kwargs):
            raise RuntimeError("Array has been deleted")

    with pytest.raises(RuntimeError, match="deleted"):
        check_inputs(BERT, "base", {"input_ids": Broken(2, 5)})


# -- labels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        (
            "sequence-classification",
            [0, 3],
            "labels contains 3, but this model's class ids are 0 to 2; use -100 where there is no label$",
        ),
        ("sequence-classification", [-1, 0], "labels contains -1"),
        (
            "sequence-classification",
            [0, 1, 2],
            r"labels has shape \(3,\) and input_ids \(2, 5\); they must have the same number of rows",
        ),
        ("token-classification", IDS * 3, "labels contains 3.*use -100 where there is no label"),
        ("token-classification", IDS[:, :4], "labels has shape"),
        ("token-classification", [0, 1], "labels has shape"),
        ("masked-lm", IDS * VOCABULARY, "labels contains 61, but this model's token ids are 0 to 60"),
        ("masked-lm", IDS * -1, "labels contains -1"),
        ("masked-lm", IDS * 1.0, "labels must be integers, got float64"),
        ("causal-lm", IDS * VOCABULARY, "labels contains 61"),
        ("pretraining", IDS * VOCABULARY, "labels contains 61"),
    ],
)
def test_invalid_labels(head, labels, message):
    refused(message, head, THREE, labels=labels)


def test_rows_of_other_labels():
    refused("start_positions has shape", "question-answering", start_positions=[1], end_positions=[1, 2])
    refused("next_sentence_label has shape", "pretraining", labels=IDS, next_sentence_label=[0, 1, 1])


@pytest.mark.parametrize(
    ("head", "cfg", "labels"),
    [
        ("masked-lm", BERT, IDS * -100),
        ("token-classification", THREE, np.array([[0, 1, 2, -100, 0]] * 2)),
        ("sequence-classification", THREE, [0, 2]),
        ("sequence-classification", THREE, [-100, 2]),
        ("sequence-classification", THREE, np.eye(3)[:2]),
        (
            "sequence-classification",
            THREE.replace(problem_type="multi_label_classification"),
            np.eye(3, dtype=int)[:2] * 5,
        ),
        ("sequence-classification", THREE.replace(labels=("score",)), [4, 9]),
        ("sequence-classification", THREE, Symbolic(2)),
        ("masked-lm", BERT, Symbolic(None, 5)),
    ],
)
def test_valid_labels(head, cfg, labels):
    check_inputs(cfg, head, {"input_ids": IDS, "labels": labels})


# -- the frameworks' own arrays -----------------------------------------------------------------------------------


def test_jax_arrays_and_tracers():
    jax = pytest.importorskip("jax")

    def check(ids, labels):
        check_inputs(BERT, "masked-lm", {"input_ids": ids, "labels": labels})
        return ids

    ids = jax.numpy.full((2, LENGTH), VOCABULARY)
    with pytest.raises(InputError, match="contains 61"):
        check(ids, ids)
    jax.jit(check)(ids, ids)
    jax.eval_shape(check, ids, ids)
    with pytest.raises(InputError, match="they must match"):
        jax.jit(check)(ids, ids[:, 1:])


def test_tensorflow_tensors():
    tf = pytest.importorskip("tensorflow")
    keras = pytest.importorskip("keras")

    def check(ids, labels):
        check_inputs(BERT, "masked-lm", {"input_ids": ids, "labels": labels})
        return ids

    ids = tf.fill((2, LENGTH), VOCABULARY)
    with pytest.raises(InputError, match="contains 61"):
        check(ids, ids)
    for shape in ((2, LENGTH), (None, LENGTH), (None, None), None):
        tf.function(check, [tf.TensorSpec(shape, tf.int32)] * 2, autograph=False)(ids, ids)
    with pytest.raises(InputError, match="they must match"):
        tf.function(check, autograph=False)(ids, ids[:, 1:])
    check(keras.KerasTensor((None, LENGTH), "int32"), keras.KerasTensor((None, LENGTH), "int32"))
