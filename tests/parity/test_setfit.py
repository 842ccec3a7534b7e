"""SetFit's objectives in both engines against sentence-transformers' losses and setfit's head in PyTorch: loss and gradients."""

import numpy as np
import pytest

from duonlp import architectures
from duonlp.checkpoints import open_checkpoint
from duonlp.checkpoints.layouts import our_layout
from duonlp.training.fit_config import FitConfig
from duonlp.training.objectives.contrastive import EmbeddingLabels, PairSimilarity
from tests.cases import cases
from tests.engines import torch_model

pytestmark = pytest.mark.parity

ROWS, LENGTH, CLASSES = 8, 9, 3


def text_inputs(rng, *shape):
    lengths = rng.integers(4, LENGTH + 1, shape)
    mask = (np.arange(LENGTH) < lengths[..., None]).astype(np.int32)
    ids = np.where(mask, rng.integers(5, 55, mask.shape), 0).astype(np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": rng.integers(0, 2, mask.shape).astype(np.int32)}


def pair_batch(rng):
    """Return pairs, the last row of which counts for nothing."""
    real = (np.arange(ROWS) < 6).astype(np.int32)
    return text_inputs(rng, ROWS, 2) | {"similarity": (np.arange(ROWS) % 3 == 0).astype(np.float32), "row_mask": real}


def label_batch(rng, multi_label):
    labels = np.where(np.arange(ROWS) == 2, -100, np.arange(ROWS) % CLASSES).astype(np.int32)
    if multi_label:
        labels = rng.integers(0, 2, (ROWS, CLASSES)).astype(np.float32)
    return text_inputs(rng, ROWS) | {"labels": labels}


def make(name, size):
    """Return an objective and a batch."""
    rng, multi_label = np.random.default_rng(3), name == "multi-label"
    if name in ("cosine", "contrastive"):
        return PairSimilarity("mean", name, margin=0.9), pair_batch(rng)
    kernel, bias = rng.normal(size=(size, CLASSES)), rng.normal(size=CLASSES)
    objective = EmbeddingLabels("mean", True, multi_label, 0.5, kernel.astype(np.float32), bias.astype(np.float32))
    return objective, label_batch(rng, multi_label)


class Body:
    """What the losses of sentence-transformers call: the model with mean pooling."""

    def __new__(cls, model, normalize=False):
        import torch

        class Module(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, inputs):
                mask = inputs["attention_mask"]
                out = self.model(**{name: value.long() for name, value in inputs.items()}).last_hidden_state
                mean = (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                mean = torch.nn.functional.normalize(mean) if normalize else mean
                return {"sentence_embedding": mean}

        return Module()


def torch_loss(folder, objective, batch):
    """Return the loss, the gradients by path, and those of the linear layer."""
    import torch
    from sentence_transformers.sentence_transformer import losses

    model = torch_model(folder, "base").eval()
    tensors = {name: torch.tensor(value) for name, value in batch.items()}
    names, own = ("input_ids", "attention_mask", "token_type_ids"), {}
    if isinstance(objective, PairSimilarity):
        body = Body(model)
        loss = losses.CosineSimilarityLoss(body) if objective.loss == "cosine" else losses.ContrastiveLoss(
            body, margin=objective.margin)  # fmt: skip
        real = tensors["row_mask"] != 0
        loss = loss([{name: tensors[name][real][:, i] for name in names} for i in (0, 1)], tensors["similarity"][real])
    else:
        own = {name: torch.nn.Parameter(torch.tensor(getattr(objective, name))) for name in ("kernel", "bias")}
        vectors = Body(model, objective.normalize)({name: tensors[name] for name in names})["sentence_embedding"]
        logits = (vectors @ own["kernel"] + own["bias"]) / objective.temperature
        kind = torch.nn.BCEWithLogitsLoss() if objective.multi_label else torch.nn.CrossEntropyLoss()
        loss = kind(logits, tensors["labels"] if objective.multi_label else tensors["labels"].long())
    loss.backward()
    cfg, named = open_checkpoint(folder).transformer_config(), dict(model.named_parameters())
    family = architectures.get(cfg.model_type)
    rows = [row for row in family.weights(cfg, "base") if row.path is not None]
    parameters = {row.path: (named[row.name.removeprefix(family.PREFIX)], row.layout) for row in rows}
    gradients = {
        path: our_layout(layout, (np.zeros(tuple(p.shape), np.float32) if p.grad is None else p.grad.numpy()))
        for path, (p, layout) in parameters.items()
    }
    return loss.item(), gradients | {f"objective/{name}": p.grad.numpy() for name, p in own.items()}


def jax_loss(folder, objective, batch):
    import jax

    from jaxnlp import AutoModel
    from jaxnlp.training.grouped import GroupedStep

    step = GroupedStep(AutoModel.from_pretrained(folder), objective, FitConfig())
    params = step.init_state()["params"]

    def loss(params, batch):
        ((total, count, factor),) = step.plan.terms(params, {}, batch).values()
        return factor * total / count

    step.plan.objective.check(step.trainable, batch)
    value, gradients = jax.jit(jax.value_and_grad(loss))(params, batch)
    leaves = jax.tree_util.tree_leaves_with_path(gradients)
    return float(value), {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in leaves}


def tf_loss(folder, objective, batch):
    import tensorflow as tf

    from tfnlp import AutoModel
    from tfnlp.training.grouped import ObjectiveModel

    trainer = ObjectiveModel(AutoModel.from_pretrained(folder), objective)
    tensors, tree = {name: tf.constant(value) for name, value in batch.items()}, trainer.parameter_tree()
    with tf.GradientTape() as tape:
        ((total, count),) = trainer._terms(tensors, training=False)[0].values()
        loss = total / count
    gradients = tape.gradient(loss, [variable.value for variable in tree.values()])
    dense = [np.zeros(v.shape, np.float32) if g is None else tf.convert_to_tensor(g).numpy() for v, g in zip(
        tree.values(), gradients)]  # fmt: skip
    return float(loss), dict(zip(tree, dense))


@pytest.mark.parametrize("name", ["cosine", "contrastive", "single-label", "multi-label"])
def test_loss_and_gradients(name, tmp_path):
    folder = next(case for case in cases() if case.name == "bert-base").write(tmp_path)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
    objective, batch = make(name, open_checkpoint(folder).transformer_config().hidden_size)
    expected, their_gradients = torch_loss(folder, objective, batch)
    largest = max(np.abs(gradient).max() for gradient in their_gradients.values())
    for run in (jax_loss, tf_loss):
        loss, gradients = run(folder, objective, batch)
        assert abs(loss - expected) < 1e-5 * abs(expected), run
        assert gradients.keys() == their_gradients.keys()
        for path, value in their_gradients.items():
            assert np.abs(gradients[path] - value).max() < 1e-4 * largest, (run, path)
