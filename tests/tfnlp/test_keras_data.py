"""Every form in which Keras takes labels, sample_weight and class_weight gives the loss and the gradient of the plain one."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from transformers import BatchEncoding

import tfnlp
from duonlp.errors import InputError
from tests.cases import ENCODER
from tfnlp.training import batch_dataset

pytestmark = [pytest.mark.usefixtures("eagerly"), pytest.mark.filterwarnings("ignore:Even though the:UserWarning")]

CLASSIFIER = "sequence-classification"
HF = {
    "model_type": "bert", **ENCODER, "vocab_size": 30, "num_hidden_layers": 1, "num_labels": 3,
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3,
}  # fmt: skip
RNG = np.random.default_rng(0)
IDS = RNG.integers(1, 30, (7, 5))
X = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}
Y = np.array([0, 1, 2, 2, 1, 0, 2])
W = RNG.uniform(0.1, 3.0, 7).astype(np.float32)
CLASS_WEIGHT = {0: 0.5, 1: 4.0}
TOKENS = RNG.integers(0, 3, (7, 5))
TOKENS[:, 4] = -100
BATCH = 4
"""Rows of a batch, the last of which has 3."""


def sparse():
    return keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(scope="module")
def models(eagerly):
    """Models of three heads and their initial weights."""
    made = {
        head: tfnlp.heads.HEADS[head].from_config(HF | {"num_labels": 2 if head == "question-answering" else 3}, seed=1)
        for head in (CLASSIFIER, "token-classification", "question-answering")
    }
    return {head: (model, model.get_weights()) for head, model in made.items()}


def row_losses(models, head=CLASSIFIER, labels=Y, output="logits"):
    """Return the cross-entropy of each label under the initial weights; 0 where it is ignored."""
    model, initial = models[head]
    model.set_weights(initial)
    logits = model(**X)[output].numpy().astype(np.float64)
    scores = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(scores, np.maximum(labels, 0)[..., None], -1)[..., 0]
    return losses * (labels != -100)


def trained(models, head, loss, args, options, rate=0.1):
    """Return the loss of an epoch of SGD, and the weights after it."""
    model, initial = models[head]
    model.set_weights(initial)
    model.compile(keras.optimizers.SGD(rate), loss=loss)
    value = model.fit(*args, verbose=0, shuffle=False, **options).history["loss"][0]
    return value, np.concatenate([weights.ravel() for weights in model.get_weights()])


class Rows(keras.utils.PyDataset):
    """A PyDataset of batches of the arrays in a structure."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def __len__(self):
        return -(-len(Y) // BATCH)

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        rows = slice(index * BATCH, (index + 1) * BATCH)
        x, *rest = self.data if isinstance(self.data, tuple) else (self.data,)
        x = type(x)({name: value[rows] for name, value in x.items()})
        return (x, *(value[rows] for value in rest)) if rest else x


def dataset(data):
    return tf.data.Dataset.from_tensor_slices(data).batch(BATCH)


ARRAYS = {"batch_size": BATCH}
FORMS = {
    "y": lambda: ((X, Y), ARRAYS | {"sample_weight": W}),
    "columns": lambda: ((X, Y[:, None]), ARRAYS | {"sample_weight": W[:, None]}),
    "uint8": lambda: ((X, Y.astype("uint8")), ARRAYS | {"sample_weight": W.tolist()}),
    "lists": lambda: (({n: v.tolist() for n, v in X.items()}, Y.tolist()), ARRAYS | {"sample_weight": W}),
    "tensors": lambda: ((X, tf.constant(Y, tf.int16)), ARRAYS | {"sample_weight": tf.constant(W)}),
    "dict": lambda: ((X, {"labels": Y}), ARRAYS | {"sample_weight": W}),
    "two dicts": lambda: ((X, {"logits": Y}), ARRAYS | {"sample_weight": {"labels": W}}),
    "inside": lambda: ((X | {"labels": Y},), ARRAYS | {"sample_weight": W}),
    "all inside": lambda: ((X | {"labels": Y, "sample_weight": W[:, None]},), ARRAYS),
    "weights inside": lambda: ((X | {"sample_weight": W}, Y), ARRAYS),
    "encoding": lambda: ((BatchEncoding(X), Y), ARRAYS | {"sample_weight": W}),
    "encoding with labels": lambda: ((BatchEncoding(X | {"labels": Y}),), ARRAYS | {"sample_weight": W}),
    "dataset": lambda: ((dataset((X, Y, W)),), {}),
    "dataset of columns": lambda: ((dataset((X, Y[:, None].astype("int8"), W[:, None])),), {}),
    "dataset of dicts": lambda: ((dataset(X | {"labels": Y, "sample_weight": W}),), {}),
    "dataset of three dicts": lambda: ((dataset((X, {"labels": Y}, {"labels": W})),), {}),
    "PyDataset": lambda: ((Rows((X, Y, W)),), {}),
    "PyDataset of encodings": lambda: ((Rows((BatchEncoding(X), Y.tolist(), W)),), {}),
    "PyDataset of dicts": lambda: ((Rows(X | {"labels": Y[:, None], "sample_weight": W}),), {}),
    "batch_dataset": lambda: ((batch_dataset(list(Rows(X | {"labels": Y[:, None], "sample_weight": W[:, None]}))),), {}),
    "generator": lambda: ((batch for batch in Rows((X, Y, W))), {"steps_per_epoch": 2}),
    "generator of dicts": lambda: (
        (batch for batch in Rows(X | {"labels": Y, "sample_weight": W})), {"steps_per_epoch": 2}
    ),
}  # fmt: skip
OBJECTIVES = (
    (None, {}, 1.0),
    (
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        {"class_weight": CLASS_WEIGHT},
        np.array([0.5, 4.0, 1.0])[Y],
    ),
)
"""Losses, further arguments of fit, and the factor of each row that they mean."""
FORMS |= {name: lambda form=FORMS[name]: ((form()[0],), form()[1]) for name in FORMS if name.startswith("generator")}


@pytest.fixture(scope="module")
def plain(models):
    """(loss, weights) of the plain form with the head's own loss, and with Keras' and class weights; losses are NumPy's."""
    (args, options), plain = FORMS["y"](), {}
    for loss, more, factor in OBJECTIVES:
        value, _ = trained(models, CLASSIFIER, loss, args, options | more, rate=0.0)
        assert value == pytest.approx((row_losses(models) * W * factor).mean(), rel=1e-5)
        plain[loss] = trained(models, CLASSIFIER, loss, args, options | more)
    return plain


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_labels_and_weights_trains_alike(models, plain, form):
    for loss, more, _ in OBJECTIVES:
        args, options = FORMS[form]()
        value, weights = trained(models, CLASSIFIER, loss, args, options | more)
        assert value == pytest.approx(plain[loss][0], rel=1e-6)
        np.testing.assert_allclose(weights, plain[loss][1], atol=1e-6)


def test_class_weights_end_with_their_fit_and_do_not_apply_to_validation(models):
    model, _ = models[CLASSIFIER]
    losses = row_losses(models)
    model.compile(keras.optimizers.SGD(0.0))
    options = {"verbose": 0, "batch_size": BATCH}
    weighted = model.fit(X, Y, class_weight={2: 9.0}, validation_data=(X, Y), **options).history
    assert weighted["loss"][0] == pytest.approx((losses * np.where(Y == 2, 9, 1)).mean(), rel=1e-5)
    assert weighted["val_loss"][0] == pytest.approx(losses.mean(), rel=1e-5)
    assert model.fit(X | {"labels": Y}, **options).history["loss"][0] == pytest.approx(losses.mean(), rel=1e-5)


def test_class_weights_of_tokens_and_of_one_hot_labels(models):
    table = np.array([0.5, 4.0, 1.0])
    losses, counted = row_losses(models, "token-classification", TOKENS), (TOKENS != -100).sum()
    arguments = (X, TOKENS), ARRAYS | {"class_weight": CLASS_WEIGHT, "sample_weight": W}
    value, _ = trained(models, "token-classification", None, *arguments, rate=0.0)
    assert value == pytest.approx((losses * table[TOKENS % 3] * W[:, None]).sum() / counted, rel=1e-5)
    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    for labels in (np.eye(3, dtype=int)[Y], np.eye(3)[Y]):
        value, _ = trained(models, CLASSIFIER, loss, (X, labels), ARRAYS | {"class_weight": CLASS_WEIGHT}, rate=0.0)
        assert value == pytest.approx((row_losses(models) * table[Y]).mean(), rel=1e-5)


@pytest.mark.parametrize("validation", ["tuple", "inside", "encoding", "dataset", "PyDataset", "dict"])
def test_validation_data_with_weights(models, validation):
    model, _ = models[CLASSIFIER]
    data = {
        "tuple": (X, Y[:, None], W), "inside": (X | {"labels": Y}, None, W), "dict": (X, {"labels": Y}, W),
        "encoding": BatchEncoding(X | {"labels": Y, "sample_weight": W}), "dataset": dataset((X, Y, W)),
        "PyDataset": Rows(X | {"labels": Y, "sample_weight": W}),
    }[validation]  # fmt: skip
    expected = (row_losses(models) * W).mean()
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(X, Y, validation_data=data, batch_size=BATCH, epochs=2, verbose=0).history
    assert history["val_loss"] == [pytest.approx(expected, rel=1e-5)] * 2


def test_a_validation_split_cuts_labels_and_weights_inside(models):
    model, _ = models[CLASSIFIER]
    losses = row_losses(models) * W
    model.compile(keras.optimizers.SGD(0.0))
    history = model.fit(X | {"labels": Y}, sample_weight=W, validation_split=0.3, batch_size=BATCH, verbose=0).history
    assert (history["loss"][0], history["val_loss"][0]) == pytest.approx(
        (losses[:4].mean(), losses[4:].mean()), rel=1e-5
    )


@pytest.mark.parametrize("form", ["tuple", "dict", "inside", "parts", "outputs", "dataset"])
def test_weights_of_two_outputs(models, form):
    head, ends = "question-answering", (Y, Y + 1)
    names, two = ("start_positions", "end_positions"), (W, W[::-1].copy())
    named = dict(zip(names, ends))
    args, weights = {
        "tuple": ((X, ends), W), "dict": ((X, named), W), "inside": ((X | named,), W), "parts": ((X, ends), two),
        "outputs": ((X, named), {"start_logits": two[0], "end_logits": two[1]}), "dataset": ((dataset((X, ends, two)),), None),
    }[form]  # fmt: skip
    second = W if form in ("tuple", "dict", "inside") else two[1]
    losses = [row_losses(models, head, y, f"{end}_logits") for end, y in zip(("start", "end"), ends)]
    expected = ((losses[0] * W).mean() + (losses[1] * second).mean()) / 2
    options = {} if weights is None else ARRAYS | {"sample_weight": weights}
    assert trained(models, head, None, args, options, rate=0.0)[0] == pytest.approx(expected, rel=1e-5)
    assert trained(models, head, sparse(), args, options, rate=0.0)[0] == pytest.approx(2 * expected, rel=1e-5)


@pytest.mark.parametrize("weights", [W, W[:, None], np.linspace(0.1, 2, 35).reshape(7, 5)])
def test_weights_of_tokens(models, weights):
    losses = row_losses(models, "token-classification", TOKENS)
    by_token = weights[:, None] if weights.ndim == 1 else weights
    for loss in (None, sparse()):
        options = ARRAYS | {"sample_weight": weights}
        value, _ = trained(models, "token-classification", loss, (X, TOKENS), options, rate=0.0)
        assert value == pytest.approx((losses * by_token).sum() / (TOKENS != -100).sum(), rel=1e-5)


def test_single_batches_and_predictions(models):
    model, _ = models[CLASSIFIER]
    losses, logits = row_losses(models), model(**X)["logits"].numpy()
    for loss in (None, sparse()):
        model.compile(keras.optimizers.SGD(0.0), loss=loss)
        expected, inside = pytest.approx((losses * W).mean(), rel=1e-5), BatchEncoding(X | {"labels": Y[:, None]})
        assert model.test_on_batch(X, Y.tolist(), W) == expected
        assert model.test_on_batch(inside, sample_weight=W) == expected
        assert model.train_on_batch(inside, sample_weight=W) == expected
        weighted = pytest.approx((losses * np.where(Y == 1, 3, 1)).mean(), rel=1e-5)
        assert model.train_on_batch(inside, class_weight={1: 3.0}) == weighted
        assert model.evaluate(inside, sample_weight=W, batch_size=BATCH, verbose=0) == expected
    for x in (
        BatchEncoding(X),
        X | {"labels": Y},
        Rows((BatchEncoding(X), Y)),
        (batch for batch in Rows((BatchEncoding(X), Y))),
    ):
        np.testing.assert_allclose(model.predict(x, verbose=0)["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(model.predict_on_batch(BatchEncoding(X))["logits"], logits, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.eye(3, dtype=int)[Y], "labels (int64) has shape (7, 3), but this model takes one class per text, [batch]"),
        (np.eye(3)[Y][:, :2], "labels (float64) has shape (7, 2), but this model takes a number per class, [batch, 3]"),
        (Y.astype(float), "labels (float64) has shape (7,), but this model takes a number per class"),
        (np.array(["a", "b", "c", "a", "b", "c", "a"]), "labels must be numbers, got text"),
        (np.array([None, *Y[1:]]), "labels must be numbers, got object"),
        ([[0], [1, 2]], "labels: rows differ in length"),
        (tf.ragged.constant([[0], [1, 2]]), "labels is a RaggedTensor; pass a dense tensor"),
        (np.where(Y == 2, 9, Y).astype("uint8"), "row 2 of labels contains 9, but this model's class ids are 0 to 2"),
        (np.where(Y == 2, -1, Y), "row 2 of labels contains -1"),
    ],
)  # fmt: skip
def test_other_labels_are_refused_before_a_step(models, labels, message):
    model, _ = models[CLASSIFIER]
    model.compile("sgd")
    calls = (
        lambda: model.fit(X, labels, verbose=0),
        lambda: model.fit(X | {"labels": labels}, verbose=0),
        lambda: model.fit(X, Y, validation_data=(X, labels), verbose=0),
        lambda: model.train_on_batch(X, labels),
        lambda: model.test_on_batch(BatchEncoding(X | {"labels": labels})),
        lambda: model(**X, labels=labels),
    )
    for call in calls:
        with pytest.raises(InputError, match=re.escape(message)):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_weight": W[:5]}, "sample_weight has shape (5,) and labels (7,)"),
        ({"sample_weight": np.ones((7, 2))}, "sample_weight has shape (7, 2) and labels (7,)"),
        ({"sample_weight": np.where(Y == 1, np.nan, 1)}, "row 1 of sample_weight contains nan"),
        ({"sample_weight": ["a"] * 7}, "sample_weight must be numbers"),
        ({"sample_weight": {"label": W}}, "sample_weight has label; it may have labels, logits"),
        ({"sample_weight": {}}, "sample_weight is an empty dict; omit it"),
        ({"class_weight": {3: 1.0}}, "class_weight has the class 3; classes are integers from 0 to 2"),
        ({"class_weight": {"LABEL_0": 1.0}}, "class_weight has the class 'LABEL_0'"),
        ({"class_weight": [1.0, 2.0]}, "class_weight is [1.0, 2.0]; pass a dict"),
        ({"class_weight": {0: np.nan}}, "class_weight gives class 0 the weight nan"),
    ],
)
def test_other_weights_are_refused(models, options, message):
    model, _ = models[CLASSIFIER]
    model.compile("sgd")
    with pytest.raises(InputError, match=re.escape(message)):
        model.fit(X, Y, verbose=0, **options)


@pytest.mark.parametrize("loss", [None, sparse()])
def test_labels_that_are_missing_or_a_single_number(models, loss):
    model, _ = models[CLASSIFIER]
    model.compile("sgd", loss=loss)
    for call in (lambda: model.fit(X, verbose=0), lambda: model.fit(dataset(X), verbose=0)):
        with pytest.raises(InputError, match="no labels to learn from"):
            call()
    with pytest.raises(InputError, match=r"labels (is a single number|has shape)"):
        model.fit(X, 3, verbose=0)


def test_a_loss_of_one_of_two_outputs_needs_its_labels_alone(models):
    model, _ = models["question-answering"]
    model.compile("sgd", loss={"start_logits": sparse()})
    assert np.isfinite(model.fit(X, {"start_positions": Y}, verbose=0).history["loss"][0])


def test_class_weights_need_one_class_per_text(models):
    model, _ = models["question-answering"]
    model.compile("sgd")
    with pytest.raises(InputError, match="class_weight needs a model with one kind of labels, and this one has 2"):
        model.fit(X, (Y, Y), class_weight=CLASS_WEIGHT, verbose=0)


def test_an_invalid_batch_of_a_generator_is_an_input_error(models):
    model, _ = models[CLASSIFIER]
    model.compile("sgd")
    late = np.where(np.arange(7) == 6, 3, Y)
    for data, options in ((Rows((X, late)), {}), ((batch for batch in Rows((X, late))), {"steps_per_epoch": 2})):
        with pytest.raises(InputError, match="row 2 of labels contains 3"):
            model.fit(data, verbose=0, **options)


def test_a_train_step_of_ones_own_gets_the_weights(models):
    seen = []

    class Custom(type(models[CLASSIFIER][0])):
        def train_step(self, data):
            _, y, weights = keras.utils.unpack_x_y_sample_weight(data)
            seen.append((y.numpy(), weights.numpy()))
            return super().train_step(data)

    model = Custom.from_config(HF, seed=1)
    model.compile("sgd")
    model.fit(X, Y, class_weight=CLASS_WEIGHT, sample_weight=W, batch_size=7, shuffle=False, verbose=0)
    np.testing.assert_array_equal(seen[0][0], Y)
    np.testing.assert_allclose(seen[0][1], W * np.array([0.5, 4, 1])[Y], rtol=1e-6)
