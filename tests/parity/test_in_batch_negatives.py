"""In-batch negatives in both engines against PyTorch: loss and gradients of two DPR towers, and of one sentence encoder."""

import numpy as np
import pytest

from duonlp import architectures
from duonlp.checkpoints import open_checkpoint
from duonlp.checkpoints.layouts import our_layout
from duonlp.training.fit_config import FitConfig
from duonlp.training.in_batch_negatives import InBatchNegatives
from tests.cases import cases
from tests.engines import torch_model

pytestmark = pytest.mark.parity

ROWS, PLACES, LENGTH = 4, 2, 9
SETTINGS = {"dpr": InBatchNegatives("pooler", normalize=False, scale=1.0), "bert": InBatchNegatives()}
MODELS = {
    "dpr": ("dpr-base", "dpr-base[architectures=['DPRContextEncoder'],hidden_act=relu]"),
    "bert": ("bert-base",),
}


def retrieval_batch(rng):
    """Return a batch in which passages are shared, missing and known to be positive, and whose last row counts for nothing."""

    def inputs(*shape):
        lengths = rng.integers(4, LENGTH + 1, shape)
        mask = (np.arange(LENGTH) < lengths[..., None]).astype(np.int32)
        ids = np.where(mask, rng.integers(5, 55, mask.shape), 0).astype(np.int32)
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": rng.integers(0, 2, mask.shape).astype(np.int32),
        }

    passages = {f"passage_{name}": value for name, value in inputs(ROWS, PLACES).items()}
    candidates = np.array([[0, 1], [2, -1], [3, 0], [4, 5]], np.int32)
    positives = np.array([[0, -1], [2, 3], [3, -1], [4, -1]], np.int32)
    rest = {"candidates": candidates, "positives": positives, "row_mask": np.array([1, 1, 1, 0], np.int32)}
    return inputs(ROWS) | passages | rest | {"sample_weight": np.array([1, 1, 2, 0], np.float32)}


ALLOWED = np.array([[1, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 1], [1, 1, 1, 0, 1, 1]], bool)
"""Passages, without those of the last row, that may count for each question: not the missing one, nor other positives."""


def torch_loss(folders, settings, batch):
    """Return the loss, and the gradients by model and path."""
    import torch

    models = [torch_model(folder, "base").eval() for folder in folders]
    tensors = {name: torch.tensor(value) for name, value in batch.items()}

    def vectors(model, inputs):
        mask = inputs["attention_mask"]
        out = model(**{name: value.long() for name, value in inputs.items()})
        if settings.pooling == "pooler":
            return out.pooler_output
        mean = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.nn.functional.normalize(mean)

    names = ("input_ids", "attention_mask", "token_type_ids")
    questions = vectors(models[0], {name: tensors[name] for name in names})
    flat = {name: tensors[f"passage_{name}"].reshape(-1, LENGTH) for name in names}
    passages = vectors(models[-1], flat)
    scores = settings.scale * questions[:3] @ passages[:6].T
    scores = scores.masked_fill(~torch.tensor(ALLOWED), -torch.inf)
    losses = torch.nn.functional.cross_entropy(scores, torch.arange(3) * PLACES, reduction="none")
    loss = (losses * tensors["sample_weight"][:3]).sum() / 3
    loss.backward()
    gradients = []
    for model, folder in zip(models, folders):
        cfg, named = open_checkpoint(folder).transformer_config(), dict(model.named_parameters())
        family = architectures.get(cfg.model_type)
        rows = [row for row in family.weights(cfg, "base") if row.path is not None]
        parameters = {row.path: (named[row.name.removeprefix(family.PREFIX)], row.layout) for row in rows}
        zero = {path: np.zeros(parameter.shape, np.float32) for path, (parameter, _) in parameters.items()}
        values = {path: zero[path] if p.grad is None else p.grad.numpy() for path, (p, _) in parameters.items()}
        gradients.append({path: our_layout(parameters[path][1], value) for path, value in values.items()})
    return loss.item(), gradients


def jax_loss(folders, settings, batch):
    import jax

    from jaxnlp.heads import HEADS
    from jaxnlp.retrieval import BiEncoder, BiEncoderStep
    from jaxnlp.retrieval.biencoder import PASSAGE_MODEL

    models = [HEADS["base"].from_pretrained(folder) for folder in folders]
    step = BiEncoderStep(BiEncoder(models[0], *models[1:], settings=settings), FitConfig())

    def loss(params):
        ((total, count, factor),) = step.plan.terms(params, {}, batch).values()
        return factor * total / count

    params = step.init_state()["params"]
    step.plan.objective.check(step.trainable, batch)
    value, tree = jax.jit(jax.value_and_grad(loss))(params)
    trees = [{k: v for k, v in tree.items() if k != PASSAGE_MODEL}, *([tree[PASSAGE_MODEL]] if len(models) > 1 else [])]
    flat = [jax.tree_util.tree_leaves_with_path(tree) for tree in trees]
    return float(value), [{"/".join(k.key for k in path): np.asarray(v) for path, v in leaves} for leaves in flat]


def tf_loss(folders, settings, batch):
    import tensorflow as tf

    from tfnlp.heads import HEADS
    from tfnlp.pretrained import parameter_tree
    from tfnlp.retrieval import BiEncoder
    from tfnlp.steps.terms import total_loss

    models = [HEADS["base"].from_pretrained(folder) for folder in folders]
    biencoder = BiEncoder(models[0], *models[1:], settings=settings)
    biencoder.check_batch(batch)
    with tf.GradientTape(persistent=True) as tape:
        terms, _ = biencoder._terms({name: tf.constant(value) for name, value in batch.items()}, training=True)
        loss = total_loss(terms)
    trees = [parameter_tree(model) for model in models]
    gradients = [
        tape.gradient(loss, {p: v.value for p, v in tree.items()}, unconnected_gradients="zero") for tree in trees
    ]
    return float(loss), [{p: tf.convert_to_tensor(g).numpy() for p, g in tree.items()} for tree in gradients]


@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradients(name, tmp_path):
    by_name = {case.name: case for case in cases()}
    folders = []
    for i, case in enumerate(MODELS[name]):
        folder = by_name[case].write(tmp_path / str(i))
        config = (folder / "config.json").read_text()
        (folder / "config.json").write_text(config.replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
        folders.append(folder)
    batch = retrieval_batch(np.random.default_rng(0))
    expected, their_gradients = torch_loss(folders, SETTINGS[name], batch)
    largest = max(np.abs(g).max() for tree in their_gradients for g in tree.values())
    for run in (jax_loss, tf_loss):
        loss, gradients = run(folders, SETTINGS[name], batch)
        assert abs(loss - expected) < 1e-5 * abs(expected), run
        assert len(gradients) == len(their_gradients) == len(folders)
        for ours, theirs in zip(gradients, their_gradients):
            assert ours.keys() == theirs.keys()
            for path, value in theirs.items():
                assert np.abs(ours[path] - value).max() < 1e-4 * largest, (run, path)
