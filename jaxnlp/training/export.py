"""From a checkpoint of a run to a model in Hugging Face layout: layers unstacked, optimizer left behind."""

import os
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from duonlp import architectures
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import CheckpointError, InputError
from duonlp.generation import GenerationConfig
from duonlp.training.run_file import read_run
from jaxnlp.training.checkpoints import FOLDER, STATE
from jaxnlp.training.model import ONE_BY_ONE, STACKED


def export(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    step: int | None = None,
    tokenizer=None,
    dtype: str = "float32",
    max_shard_size: int | str = "5GB",
) -> Path:
    """Writes the model of a run's checkpoint in Hugging Face layout: safetensors, config.json and the tokenizer.

    Parameters are read one at a time and none twice: no more than the model's own size is held, and of an unstacked
    checkpoint a tensor at a time. Needs no accelerator.

    Args:
        folder: the run's, as ``pretrain`` was given it.
        output: the folder to write.
        step: which checkpoint; the last by default.
        tokenizer: saved beside the model.
        dtype: what the tensors are stored as.
        max_shard_size: larger models become several files.

    Returns:
        The output folder.

    Raises:
        CheckpointError: no run, no such checkpoint, or it cannot be read.
    """
    folder = Path(folder).expanduser().resolve()
    run = read_run(folder)
    cfg, head = architectures.config_from_hf(run["model"]), run["head"]
    steps = sorted(ocp.utils.checkpoint_steps(folder / FOLDER)) if (folder / FOLDER).is_dir() else []
    if not steps:
        raise CheckpointError(f"{str(folder)!r} has no checkpoint; train at least until the first is saved")
    if step is not None and step not in steps:
        raise InputError(f"there is no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
    generation = GenerationConfig.for_model(cfg).to_dict() if head in ("causal-lm", "seq2seq-lm") else None
    read = _Reader(folder / FOLDER / str(steps[-1] if step is None else step) / STATE)
    save_checkpoint(output, cfg, head, read, np.dtype(jax.numpy.dtype(dtype)), tokenizer, max_shard_size, generation)
    return Path(output)


class _Reader:
    """path -> values, read when they are asked for; a stacked parameter is kept until its last layer was."""

    def __init__(self, folder: Path):
        self.folder, self.kept, self.handler = folder, {}, ocp.PyTreeCheckpointHandler()
        try:
            tree = self.handler.metadata(epath.Path(folder)).tree["params"]
        except Exception as error:  # Orbax and TensorStore raise whatever they meet
            raise CheckpointError(f"the checkpoint {str(folder.parent)!r} cannot be read: {error}") from error
        self.leaves = {"/".join(key.key for key in keys): keys for keys, _ in jax.tree_util.tree_leaves_with_path(tree)}

    def __call__(self, path: str) -> np.ndarray:
        if path in self.leaves:
            return self._leaf(path)
        layer, stacked = int(ONE_BY_ONE.search(path)[1]), ONE_BY_ONE.sub(STACKED, path)
        if stacked not in self.kept:
            self.kept[stacked] = self._leaf(stacked)
        values = self.kept[stacked]
        if layer == len(values) - 1:
            del self.kept[stacked]
        return values[layer]

    def _leaf(self, path: str) -> np.ndarray:
        names = [key.key for key in self.leaves[path]]
        item, restore = 0, ocp.RestoreArgs(restore_type=np.ndarray)
        for name in reversed(["params", *names]):
            item, restore = {name: item}, {name: restore}
        try:
            tree = self.handler.restore(
                epath.Path(self.folder),
                args=ocp.args.PyTreeRestore(item=item, restore_args=restore, partial_restore=True),
            )
        except Exception as error:
            raise CheckpointError(f"{path} of {str(self.folder.parent)!r} cannot be read: {error}") from error
        for name in ("params", *names):
            tree = tree[name]
        return np.asarray(tree)
