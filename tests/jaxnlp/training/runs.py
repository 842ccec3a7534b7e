"""A tiny model, counting blocks, and runs over them, shared by the tests of training."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import CausalLM
from duonlp.distillation.settings import Attentions, Distillation, HiddenStates, Relations
from jaxnlp.distillation.distiller import distill
from jaxnlp.training import FitConfig, LazyModel, PretrainingConfig, fit, make_mesh, make_step, pretrain
from jaxnlp.training.model import parameter_reader

GPT2 = {
    "model_type": "gpt2", "vocab_size": 32, "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip
ROWS, LENGTH = 8, 16


@dataclass(frozen=True)
class Manifest:
    """Stand-in for duonlp.data.rows.manifest.Manifest with the fields that a run reads."""

    block_length: int = LENGTH
    blocks: int = 64
    documents_sha256: str = "counting"
    tokenizer_hash: str = "none"
    segment_ids: bool = False


@dataclass(frozen=True)
class CountingBlocks:
    """Blocks in memory: each token is the one before plus a stride that depends on the block."""

    manifest: Manifest = field(default_factory=Manifest)
    block_length: int = LENGTH

    def __len__(self):
        return self.manifest.blocks

    def read(self, indices):
        indices = np.asarray(indices)[:, None]
        return {"input_ids": ((indices + np.arange(LENGTH) * (1 + indices % 3)) % 32).astype(np.int32)}


def batches(**options) -> Batches:
    return Batches(CountingBlocks(), CausalLM(), ROWS, **options)


def settings(**changes) -> PretrainingConfig:
    return PretrainingConfig(**({"steps": 20, "batch_size": ROWS, "learning_rate": 1e-2, "log_every": 1} | changes))


def curve(model=None, devices=None, steps=20, objective_batches=None, **changes) -> np.ndarray:
    """Losses of a run without files."""
    config = settings(steps=steps, **changes)
    mesh = None if devices is None else make_mesh(config.mesh, jax.devices()[:devices])
    model = LazyModel.from_config(GPT2, seed=1) if model is None else model
    step = make_step(model, config, mesh)
    state, losses = step.init_state(parameter_reader(model)), []
    for number in range(steps):
        batch = (objective_batches or batches())[number]
        state, metrics = step(state, step.put(batch), config.learning_rate_at((number + 0.5) / steps))
        losses.append(float(metrics["loss"]))
    return np.array(losses)


def summed_loss(step):
    """Return ``(params, batch, key) -> (summed loss, labeled tokens)`` of a step."""
    return lambda params, batch, key=None: step.plan.terms(params, {}, batch, key)["loss"][:2]


def run(folder: Path, model=None, mesh=None, **changes):
    """A run with files, evaluated on the same blocks."""
    config = settings(**changes)
    hosts = {"host_index": jax.process_index(), "host_count": jax.process_count()}
    return pretrain(
        LazyModel.from_config(GPT2, seed=1) if model is None else model,
        batches(**hosts), config, folder, mesh=mesh, log={"console": False},
        held_out=held_out_batches(CountingBlocks(), CausalLM(), ROWS, **hosts),
    )  # fmt: skip


BERT = {
    "model_type": "bert", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2, "num_labels": 3,
}  # fmt: skip


class Sentences:
    """Padded rows whose first id determines the label; the last batch of an epoch is smaller."""

    def __init__(self, rows=21, size=8):
        rng = np.random.default_rng(0)
        self.ids, self.lengths, self.size = rng.integers(5, 32, (rows, 6)), rng.integers(3, 7, (rows, 1)), size

    def __len__(self):
        return -(-len(self.ids) // self.size)

    def epoch(self, number, first=0):
        order = np.random.default_rng(number).permutation(len(self.ids))
        for start in range(first * self.size, len(order), self.size):
            rows = order[start : start + self.size]
            ids, mask = self.ids[rows], np.arange(6) < self.lengths[rows]
            yield {
                "input_ids": np.where(mask, ids, 0).astype(np.int32), "attention_mask": mask.astype(np.int32),
                "labels": (ids[:, 0] % 3).astype(np.int32),
            }  # fmt: skip


def classifier(seed, **changes):
    return LazyModel.from_config(BERT | changes, head="sequence-classification", seed=seed)


def fine_tune(folder: Path, kind: str, mesh=None, dropout=0.0, **changes):
    """A run of ``fit`` ("fit") or ``distill`` ("distill") with files."""
    config = FitConfig(**({"epochs": 2, "learning_rate": 1e-2, "log_every": 1} | changes))
    student = classifier(1, hidden_dropout_prob=dropout, num_hidden_layers=2 if kind == "fit" else 1)
    options = {"validation": Sentences(), "mesh": mesh, "log": {"console": False}}
    if kind == "fit":
        return fit(
            student, Sentences(), config, folder, evaluate=lambda model: {"layers": len(layers_of(model))}, **options
        )
    losses = (HiddenStates(0.2), Attentions(0.1, layers=((-1, -1),)), Relations(0.1, layers=((-1, -1),)))
    distillation = Distillation(alpha=0.5, losses=losses)
    return distill(student, classifier(2), Sentences(), config, distillation, folder, **options)


def layers_of(model):
    return [name for name in vars(model.encoder) if name.startswith("layer_")]


if __name__ == "__main__":  # arguments: folder, then settings as Python literals; kind="fit" or "distill" fine-tunes
    import ast

    from jaxnlp import training

    options = dict(pair.split("=", 1) for pair in sys.argv[2:])
    options = {name: ast.literal_eval(value) for name, value in options.items()}
    training.start(options.pop("coordinator", None), options.pop("processes", None), options.pop("process", None))
    axes = options.pop("mesh", None)
    work = fine_tune if "kind" in options else run
    result = work(Path(sys.argv[1]), mesh=None if axes is None else make_mesh(axes), **options)
    print("preempted" if result.preempted else "done", result.steps)
