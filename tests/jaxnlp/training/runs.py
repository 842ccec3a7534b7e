"""A tiny model, counting blocks, and runs over them, shared by the tests of training."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np

from duonlp.data.blocks.batches import Batches, held_out_batches
from duonlp.data.objectives.language_modelling import CausalLM
from jaxnlp.training import LazyModel, PretrainingConfig, make_mesh, make_step, pretrain
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


if __name__ == "__main__":  # arguments: folder, then settings as Python literals
    import ast

    from jaxnlp import training

    options = dict(pair.split("=", 1) for pair in sys.argv[2:])
    options = {name: ast.literal_eval(value) for name, value in options.items()}
    training.start(options.pop("coordinator", None), options.pop("processes", None), options.pop("process", None))
    axes = options.pop("mesh", None)
    result = run(Path(sys.argv[1]), mesh=None if axes is None else make_mesh(axes), **options)
    print("preempted" if result.preempted else "done", result.steps)
