"""Every distillation loss in both frameworks, against the NumPy reference, each other, and PyTorch."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

import jaxnlp
import jaxnlp.distillation.losses
import jaxnlp.heads
import tfnlp
import tfnlp.distillation.losses
import tfnlp.heads
from duonlp.distillation import reference_losses as reference
from duonlp.distillation.pair import Attentions, Distillation, HiddenStates, Relations, init_projections
from jaxnlp.inference import transposed
from jaxnlp.pretrained import merge, split
from tests.cases import cases
from tests.engines import difference
from tfnlp.pretrained import parameter_tree

ROWS, HEADS, LENGTH, CLASSES = 3, 2, 5, 7
REAL = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
WEIGHTS = np.array([0.5, 2.0, 3.0], np.float32)


def normal(*shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32) * 2


def attention(seed):
    """Return probabilities [B, N, T, T] like those of models: exactly 0 on padding."""
    scores = normal(ROWS, HEADS, LENGTH, LENGTH, seed=seed) + np.where(REAL[:, None, None], 0, -1e30)
    return reference.softmax(scores).astype(np.float32)


def pair(make):
    return make(1), make(2)


TOKENS = pair(lambda seed: normal(ROWS, LENGTH, CLASSES, seed=seed))
TEXTS = pair(lambda seed: normal(ROWS, CLASSES, seed=seed))
STATES = pair(lambda seed: normal(ROWS, LENGTH, 8, seed=seed))
ATTENTIONS = pair(attention)
VECTORS = normal(ROWS, LENGTH, 4, seed=1), normal(ROWS, LENGTH, 6, seed=2)
CASES = {
    "kl_divergence_sum": (TOKENS, (3.0,), REAL),
    "bernoulli_kl_divergence_sum": (TEXTS, (2.0,), REAL[:, 0]),
    "squared_error_sum": (TEXTS, (), REAL[:, 0]),
    "hidden_mse_sum": (STATES, (), REAL),
    "hidden_cosine_sum": (STATES, (), REAL),
    "attention_kl_sum": (ATTENTIONS, (), REAL),
    "attention_mse_sum": (ATTENTIONS, (), REAL),
    "relation_kl_sum": (VECTORS, (2,), REAL),
}


def in_jax(name, student, teacher, *options):
    """Return sum, count, and the gradients of the sum with respect to the student's and the teacher's values."""
    function = getattr(jaxnlp.distillation.losses, name)
    both = jax.jit(jax.value_and_grad(lambda s, t: function(s, t, *options), argnums=(0, 1), has_aux=True))
    (total, count), gradients = both(jnp.asarray(student), jnp.asarray(teacher))
    assert total.dtype == count.dtype == jnp.float32 and gradients[0].dtype == student.dtype
    return float(total), float(count), *(np.asarray(g, np.float32) for g in gradients)


def in_keras(name, student, teacher, *options):
    student, teacher = tf.convert_to_tensor(student), tf.convert_to_tensor(teacher)
    with tf.GradientTape() as tape:
        tape.watch((student, teacher))
        total, count = getattr(tfnlp.distillation.losses, name)(student, teacher, *options)
    gradients = tape.gradient(total, (student, teacher))
    assert total.dtype == count.dtype == tf.float32 and gradients[0].dtype == student.dtype and gradients[1] is None
    return float(total), float(count), tf.cast(gradients[0], tf.float32).numpy()


@pytest.mark.parametrize("variant", ["all", "masked and weighted", "bfloat16"])
@pytest.mark.parametrize("name", CASES)
def test_losses_match_the_reference_in_both_frameworks(name, variant):
    (student, teacher), options, mask = CASES[name]
    options += (None, None) if variant == "all" else (mask, WEIGHTS)
    if variant == "bfloat16":
        student, teacher = (x.astype(jnp.bfloat16) for x in (student, teacher))
    total, count = getattr(reference, name)(student.astype(np.float64), teacher.astype(np.float64), *options)
    ours, theirs = in_jax(name, student, teacher, *options), in_keras(name, student, teacher, *options)
    for result in (ours, theirs):
        assert result[1] == count
        assert result[0] == pytest.approx(total, rel=1e-5)
        assert np.isfinite(result[2]).all() and np.abs(result[2]).max() > 0
        if variant != "all":
            assert not result[2][2].any()  # a masked row
    assert not ours[3].any()
    assert difference(theirs[2], ours[2]) < (1e-2 if variant == "bfloat16" else 1e-4)


@pytest.mark.parametrize("framework", ["jax", "tf"])
def test_sums_and_counts_add_up_over_rows(framework):
    losses = {"jax": jaxnlp, "tf": tfnlp}[framework].distillation.losses
    for name, ((student, teacher), options, mask) in CASES.items():
        whole = getattr(losses, name)(jnp.asarray(student) if framework == "jax" else student, teacher, *options, mask)
        rows = [
            getattr(losses, name)(student[i : i + 1], teacher[i : i + 1], *options, mask[i : i + 1])
            for i in range(ROWS)
        ]
        np.testing.assert_allclose(np.sum(rows, axis=0), np.asarray(whole), rtol=1e-5, err_msg=name)


def test_keras_losses_trace_with_unknown_batch_and_length():
    """As fit traces a step once for all bucket lengths; and compiled with XLA for one of them."""
    for name, ((student, teacher), options, mask) in CASES.items():
        expected = getattr(reference, name)(student, teacher, *options, mask, WEIGHTS)
        function = getattr(tfnlp.distillation.losses, name)
        unknown = [tf.TensorSpec([None] * (x.ndim - 1) + [x.shape[-1]], tf.float32) for x in (student, teacher)]
        unknown += [tf.TensorSpec([None] * mask.ndim, tf.int32), tf.TensorSpec([None], tf.float32)]
        if name.startswith("attention"):
            unknown[:2] = [tf.TensorSpec([None] * 4, tf.float32)] * 2

        def call(s, t, mask, weights, function=function, options=options):
            return function(s, t, *options, mask, weights)

        compiled = [tf.function(call, jit_compile=True)] if name in ("kl_divergence_sum", "relation_kl_sum") else []
        for traced in (tf.function(call, unknown), *compiled):
            result = traced(student, teacher, mask.astype(np.int32), WEIGHTS)
            np.testing.assert_allclose([float(x) for x in result], expected, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("name", ["kl_divergence_sum", "bernoulli_kl_divergence_sum"])
def test_extreme_logits_stay_finite(name):
    student, teacher = (x.copy() for x in TEXTS)
    student[0, 1], teacher[0, 1], student[1, 2], teacher[1, 3], teacher[2, 0] = 1e4, 1e4, 1e4, -1e4, -1e9
    expected = getattr(reference, name)(student, teacher)
    for result in (in_jax(name, student, teacher), in_keras(name, student, teacher)):
        assert result[0] == pytest.approx(expected[0], rel=1e-5)
        assert np.isfinite(result[2]).all()


def test_classes_that_both_models_exclude_do_not_matter():
    """Their logits are -inf, as after a mask or a logits processor."""
    student, teacher = (x.copy() for x in TEXTS)
    student[:, 2] = teacher[:, 2] = -np.inf
    rest = np.delete(student, 2, axis=1), np.delete(teacher, 2, axis=1)
    expected = reference.kl_divergence_sum(*rest)[0]
    for result in (f("kl_divergence_sum", student, teacher) for f in (in_jax, in_keras)):
        assert result[0] == pytest.approx(expected, rel=1e-5)
        assert np.isfinite(result[2]).all() and not result[2][:, 2].any()


def test_zero_attentions_and_zero_states_have_a_finite_loss():
    sharp = np.zeros_like(ATTENTIONS[0])
    sharp[..., 0] = 1
    zeros = np.zeros_like(STATES[0])
    for name, student, teacher in (
        ("attention_kl_sum", sharp, ATTENTIONS[1]),
        ("attention_kl_sum", ATTENTIONS[0], sharp),
        ("hidden_cosine_sum", zeros, STATES[1]),
        ("hidden_cosine_sum", STATES[0], zeros),
        ("relation_kl_sum", 100 * STATES[0], 100 * STATES[1]),
    ):
        options = (2, REAL) if name == "relation_kl_sum" else (REAL,)
        expected = getattr(reference, name)(student, teacher, *options)
        for result in (in_jax(name, student, teacher, *options), in_keras(name, student, teacher, *options)):
            assert result[:2] == (pytest.approx(expected[0], rel=1e-5), expected[1]) and np.isfinite(result[2]).all()


# Whole models.


def named(name):
    return next(case for case in cases() if case.name == name)


BERT, GPT2, BART = (named(f"{n}") for n in ("bert-sequence-classification", "gpt2-causal-lm", "bart-seq2seq-lm"))
WIDER = {"bert": {"hidden_size": 32, "num_hidden_layers": 3}, "gpt2": {"n_embd": 32, "n_layer": 3}}
INSIDE = (
    HiddenStates(0.5), HiddenStates(kind="cosine", layers=((-1, -1),)), Attentions(0.3), Attentions(0.2, "mse"),
    Relations(2.0, heads=2),
)  # fmt: skip


def batch(head):
    rng = np.random.default_rng(5)
    ids = rng.integers(3, 50, (ROWS, LENGTH)).astype(np.int32)
    labels = np.array([1, 0, -100]) if head == "sequence-classification" else np.where(REAL, ids, -100)
    mask = np.where(REAL.any(axis=1, keepdims=True), REAL, 1)  # padding rows are copies of some text
    return {"input_ids": ids, "attention_mask": mask.astype(np.int32), "labels": labels.astype(np.int32)}


def run(model, distillation, inputs):
    """Return outputs with hidden states and attentions; labels are only passed if the decoder reads them."""
    model_inputs = {name: value for name, value in inputs.items() if name != "labels" or model.head == "seq2seq-lm"}
    return model(
        **model_inputs,
        output_hidden_states=distillation.needs_hidden_states,
        output_attentions=distillation.needs_attentions,
    )


def jax_terms(student, teacher, distillation, inputs, projections):
    """Return {name: (sum, count, factor)}, the gradient of the loss by parameter path, and that of the projections."""
    teacher_outputs = run(teacher, distillation, inputs)
    graphdef, params = split(student)

    def loss(params, projections):
        student = merge(graphdef, params)
        terms = jaxnlp.distillation.losses.teacher_terms(
            distillation, student, teacher, run(student, distillation, inputs), teacher_outputs, inputs,
            projections=projections, sample_weight=WEIGHTS,
        )  # fmt: skip
        return jaxnlp.distillation.losses.total_loss(terms), terms

    (_, terms), trees = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(params, projections)
    flat = [{"/".join(k.key for k in p): v for p, v in jax.tree_util.tree_leaves_with_path(tree)} for tree in trees]
    return {name: tuple(map(float, term)) for name, term in terms.items()}, *flat


def keras_terms(student, teacher, distillation, inputs, projections):
    inputs = {name: tf.constant(value) for name, value in inputs.items()}
    projections = {name: {"kernel": tf.Variable(values["kernel"])} for name, values in projections.items()}
    teacher_outputs = run(teacher, distillation, inputs)
    with tf.GradientTape() as tape:
        terms = tfnlp.distillation.losses.teacher_terms(
            distillation, student, teacher, run(student, distillation, inputs), teacher_outputs, inputs,
            projections=projections, sample_weight=WEIGHTS,
        )  # fmt: skip
        loss = tfnlp.distillation.losses.total_loss(terms)
    variables = {path: variable.value for path, variable in parameter_tree(student).items()}
    variables |= {f"{name}/kernel": values["kernel"] for name, values in projections.items()}
    gradients = {
        path: np.zeros(variables[path].shape) if gradient is None else tf.convert_to_tensor(gradient).numpy()
        for path, gradient in zip(variables, tape.gradient(loss, list(variables.values())))
    }
    return {name: tuple(map(float, term)) for name, term in terms.items()}, gradients


@pytest.mark.parametrize("case", [BERT, GPT2, BART], ids=lambda case: case.name)
def test_the_parts_of_the_loss_and_their_gradients_agree(case):
    """Post-norm (BERT) and pre-norm (GPT-2) with a deeper and wider teacher, and an encoder-decoder with one of its size."""
    losses = INSIDE if case is not BART else INSIDE[:-1]
    distillation = Distillation(0.4, 3.0, losses)
    wider = case.hf | WIDER.get(case.hf["model_type"], {})
    models = []
    for package in (jaxnlp, tfnlp):
        create, scale = package.heads.HEADS[case.head].from_config, "init_std" if case is BART else "initializer_range"
        models.append([create(hf | {scale: 0.3}, seed=seed) for hf, seed in ((case.hf, 1), (wider, 2))])
    inputs, configs = batch(case.head), [model.config for model in models[0]]
    projections = init_projections(distillation, *configs)
    ours, gradients, to_projections = jax_terms(*models[0], distillation, inputs, projections)
    theirs, keras_gradients = keras_terms(*models[1], distillation, inputs, projections)
    assert list(theirs) == ["logits_kl", *distillation.loss_names] and set(ours) == set(theirs)
    for name, term in ours.items():
        assert term[0] > 0 and theirs[name] == pytest.approx(term, rel=1e-4), name
        rows = {"sequence-classification": 2, "causal-lm": 6, "seq2seq-lm": 8}[case.head]
        assert term[1] == (rows if name == "logits_kl" else 8), name
    gradients |= to_projections
    assert set(gradients) == set(keras_gradients)
    largest = max(np.abs(g).max() for g in gradients.values())
    for path, gradient in gradients.items():
        assert np.abs(keras_gradients[path] - gradient).max() < 1e-4 * largest, path
    assert all(np.abs(g).max() > 0 for g in to_projections.values())


@pytest.mark.parametrize("case", [BERT, GPT2], ids=lambda case: case.name)
def test_queries_and_keys_reproduce_the_attention_probabilities(case):
    inputs = {name: value for name, value in batch(case.head).items() if name != "labels"}
    for package in (jaxnlp, tfnlp):
        model = package.heads.HEADS[case.head].from_config(case.hf, seed=1, initializer_range=0.3)
        out = model(**inputs, output_hidden_states=True, output_attentions=True)
        models = (
            (model, transposed(model)) if package is jaxnlp else (model,)
        )  # the layers of jaxnlp.inference are fused
        c = model.config.attention
        for variant in models:
            for layer in range(model.config.num_layers):
                vectors = package.distillation.losses.queries_keys_values(variant, out["hidden_states"], layer)
                query, key = (
                    np.asarray(vectors[name]).reshape(ROWS, LENGTH, c.num_heads, c.head_dim).swapaxes(1, 2)
                    for name in ("query", "key")
                )
                scores = query @ key.swapaxes(2, 3) * c.head_dim**-0.5
                scores += np.where(inputs["attention_mask"][:, None, None], 0, -1e30)
                if case is GPT2:
                    scores += np.where(np.tri(LENGTH), 0, -1e30)
                assert vectors["value"].shape == vectors["query"].shape
                assert difference(reference.softmax(scores), np.asarray(out["attentions"][layer])) < 1e-5


# The same losses in PyTorch.


def torch_losses():
    import torch
    from torch.nn import functional as F

    def divergence(log_student, log_teacher):
        return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)

    def relations(x, heads, mask):
        parts = x.unflatten(-1, (heads, -1)).transpose(1, 2)
        scores = parts @ parts.mT / parts.shape[-1] ** 0.5
        return scores.masked_fill(~mask[:, None, None, :], -1e30).log_softmax(-1)

    def bernoulli(student, teacher, temperature, mask):
        targets = torch.sigmoid(teacher / temperature)
        entropies = [
            F.binary_cross_entropy_with_logits(x / temperature, targets, reduction="none") for x in (student, teacher)
        ]
        return entropies[0] - entropies[1]

    def attention_kl(student, teacher, mask):
        return F.kl_div(student.clamp_min(1e-8).log(), teacher, reduction="none").sum(-1).mean(1)

    def attention_mse(student, teacher, mask):
        keys = mask[:, None, None, :].float()
        means = (F.mse_loss(student, teacher, reduction="none") * keys).sum(-1) / keys.sum(-1).clamp_min(1)
        return means.mean(1)

    return SimpleNamespace(
        kl_divergence_sum=lambda s, t, temperature, mask: divergence(
            F.log_softmax(s / temperature, -1), F.log_softmax(t / temperature, -1)
        ),
        bernoulli_kl_divergence_sum=bernoulli,
        squared_error_sum=lambda s, t, mask: F.mse_loss(s, t, reduction="none"),
        hidden_mse_sum=lambda s, t, mask: F.mse_loss(s, t, reduction="none").mean(-1),
        hidden_cosine_sum=lambda s, t, mask: 1 - F.cosine_similarity(s, t, dim=-1),
        attention_kl_sum=attention_kl,
        attention_mse_sum=attention_mse,
        relation_kl_sum=lambda s, t, heads, mask: divergence(relations(s, heads, mask), relations(t, heads, mask)).mean(
            1
        ),
    )


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients_match_pytorch(name):
    import torch

    (student, teacher), options, mask = CASES[name]
    s, t, real = torch.tensor(student, requires_grad=True), torch.tensor(teacher), torch.tensor(mask) != 0
    values = getattr(torch_losses(), name)(s, t, *options, real)
    weights = [x.reshape(x.shape + (1,) * (values.ndim - x.ndim)) for x in (real.float(), torch.tensor(WEIGHTS))]
    total = (values * weights[0] * weights[1]).sum()
    total.backward()
    for result in (f(name, student, teacher, *options, mask, WEIGHTS) for f in (in_jax, in_keras)):
        assert result[0] == pytest.approx(total.item(), rel=1e-5)
        assert difference(result[2], s.grad.numpy()) < 1e-4


@pytest.mark.parity
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_t_squared_kl_matches_pytorchs_batchmean(temperature):
    import torch
    from torch.nn import functional as F

    student, teacher = TEXTS
    s, t = torch.tensor(student, requires_grad=True), torch.tensor(teacher)
    expected = (
        F.kl_div(F.log_softmax(s / temperature, -1), F.softmax(t / temperature, -1), reduction="batchmean")
        * temperature**2
    )
    expected.backward()
    for result in (f("kl_divergence_sum", student, teacher, temperature) for f in (in_jax, in_keras)):
        assert result[0] / result[1] * temperature**2 == pytest.approx(expected.item(), rel=1e-5)
        assert difference(result[2] / result[1] * temperature**2, s.grad.numpy()) < 1e-4
