"""Export the checkpoint of a run as a model in Hugging Face layout: layers unstacked, optimizer state dropped."""

import os
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from duonlp import architectures
from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.checkpoints.save import save_checkpoint
from duonlp.errors import CheckpointError, InputError
from duonlp.heads import HEADS
from duonlp.pruning import expand
from duonlp.training.run_file import read_run
from duonlp.typing import Tokenizer
from jaxnlp.pruning.step_masks import SCORES
from jaxnlp.training.checkpoints import FOLDER, STATE
from jaxnlp.training.model import STACKED, layer_paths


def export(
    folder: str | os.PathLike,
    output: str | os.PathLike,
    *,
    step: int | None = None,
    tokenizer: Tokenizer | None = None,
    dtype: str = "float32",
    max_shard_size: int | str = "5GB",
) -> Path:
    """Write the model of a run's checkpoint in Hugging Face layout: safetensors, config.json and the tokenizer.

    Each parameter is read once: memory holds one tensor at a time of an unstacked checkpoint, and at most the whole model of a
    stacked one. No accelerator is needed.

    Args:
        folder: Folder of the run, as passed to ``pretrain``.
        output: Folder to write.
        step: Step of the checkpoint; the last one by default.
        tokenizer: Tokenizer to save with the model.
        dtype: Dtype to store the tensors in.
        max_shard_size: Largest size of one safetensors file; larger models are split.

    Returns:
        The output folder.

    Raises:
        CheckpointError: The folder holds no run or no checkpoint, or the checkpoint cannot be read.
        InputError: There is no checkpoint of `step`.
    """
    folder = Path(folder).expanduser().resolve()
    run = read_run(folder)
    cfg, head = architectures.config_from_hf(run["model"]), run["head"]
    steps = sorted(ocp.utils.checkpoint_steps(folder / FOLDER)) if (folder / FOLDER).is_dir() else []
    if not steps:
        raise CheckpointError(f"{str(folder)!r} has no checkpoint; train at least until the first one is saved")
    if step is not None and step not in steps:
        raise InputError(f"there is no checkpoint of step {step}; choose from {', '.join(map(str, steps))}")
    generation = None
    if HEADS[head].generates:
        generation = run.get("generation_config") or default_generation_config(cfg).to_dict()
    read = _ParameterReader(folder / FOLDER / str(steps[-1] if step is None else step) / STATE)
    save_checkpoint(output, cfg, head, read, np.dtype(jax.numpy.dtype(dtype)), tokenizer, max_shard_size, generation)
    return Path(output)


class _ParameterReader:
    """Callable path -> values that reads on demand, and prunes where the run does.

    A stacked parameter stays in memory until its last layer is read.
    """

    def __init__(self, folder: Path):
        self.folder, self.handler = folder, ocp.PyTreeCheckpointHandler()
        self.stacked: dict[str, np.ndarray] = {}
        try:
            state = self.handler.metadata(epath.Path(folder)).tree
            tree, self.masks = state["params"], set(state[SCORES]["masks"]) if SCORES in state else set()
        except Exception as error:  # Orbax and TensorStore raise errors of many types
            raise CheckpointError(f"the checkpoint {str(folder.parent)!r} cannot be read: {error}") from error
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        self.names: dict[str, list[str]] = {}
        self.layers: dict[str, tuple[str, int]] = {}  # path of a layer's parameter -> path of its stack, index
        for keys, leaf in leaves:
            path = "/".join(key.key for key in keys)
            self.names[path] = [key.key for key in keys]
            if STACKED.search(path):
                self.layers |= {name: (path, i) for i, name in enumerate(layer_paths(path, leaf.shape[0]))}

    def __call__(self, path: str) -> np.ndarray:
        if path in self.names:
            return self._read(path)
        if path not in self.layers:
            raise CheckpointError(f"{str(self.folder.parent)!r} has no parameter {path}")
        stacked_path, index = self.layers[path]
        if stacked_path not in self.stacked:
            self.stacked[stacked_path] = self._read(stacked_path)
        values = self.stacked[stacked_path]  # [L, ...]
        if index == len(values) - 1:
            del self.stacked[stacked_path]
        return values[index]

    def _read(self, path: str) -> np.ndarray:
        values = self._restore(path, ("params", *self.names[path]))
        if path not in self.masks:
            return values
        return values * expand(self._restore(path, (SCORES, "masks", path)), values.shape)

    def _restore(self, path: str, names: Sequence[str]) -> np.ndarray:
        target = ocp.args.PyTreeRestore(
            item=_nest(0, names),
            restore_args=_nest(ocp.RestoreArgs(restore_type=np.ndarray), names),
            partial_restore=True,
        )
        try:
            tree = self.handler.restore(epath.Path(self.folder), args=target)
        except Exception as error:
            raise CheckpointError(f"{path} of {str(self.folder.parent)!r} cannot be read: {error}") from error
        return np.asarray(reduce(lambda subtree, name: subtree[name], names, tree))


def _nest(leaf: Any, names: Sequence[str]) -> Any:
    """Return nested dicts with a single leaf, at the end of `names`."""
    return reduce(lambda tree, name: {name: tree}, reversed(names), leaf)
