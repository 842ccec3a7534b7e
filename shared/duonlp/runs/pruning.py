"""Prune a checkpoint at once, and remove what is zero: from a folder to a folder, with a report on sparsity and size."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.benchmark.performance import model_files
from duonlp.checkpoints.checkpoint import open_checkpoint
from duonlp.checkpoints.conversion import check_output, copy_files, small_files
from duonlp.errors import InputError
from duonlp.parity import AUTO_CLASSES
from duonlp.pruning import Pruning, mask_shapes, sparsity_report, total_sparsity
from duonlp.typing import Engine


def prune_checkpoint(
    package: Engine, model: str, output: str | os.PathLike[str], settings: Pruning | None = None, *,
    remove: bool = False, head: str | None = None, overwrite: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Prune a checkpoint, and write it with its tokenizer and other small files.

    Args:
        package: tfnlp or jaxnlp.
        model: The checkpoint: a folder or a Hub id.
        output: Folder to write.
        settings: Which weights to prune, by magnitude; None prunes none.
        remove: Whether to remove the heads and feed-forward rows that are zero.
        head: Head to load; by default the one the checkpoint was saved with.
        overwrite: Whether ``output`` may hold files; those that are not written are kept.

    Returns:
        "source", "output", "head", "settings", "sparsity" (of all kernels), "kernels" (see
        :func:`duonlp.pruning.sparsity_report`), "parameters" and "size", each "before" and "after".

    Raises:
        InputError: There is nothing to do, the output holds files, or a setting does not fit the model.
        CheckpointError: The checkpoint cannot be read.
    """
    if settings is None and not remove:
        raise InputError("there is nothing to prune; give a sparsity, or remove heads and rows that are zero")
    output = Path(output).expanduser()
    check_output(output, overwrite)
    checkpoint = open_checkpoint(model)
    if output.resolve() == checkpoint.folder.resolve():
        raise InputError(f"{str(output)!r} is the checkpoint itself; give another folder to write")
    head = checkpoint.head if head is None else head
    if settings is not None:
        mask_shapes(settings, checkpoint.transformer_config(head), head)  # raises before weights are read
    dense = getattr(package, AUTO_CLASSES[head]).from_pretrained(checkpoint)
    pruned = dense if settings is None else package.prune(dense, settings)
    rows = sparsity_report({path: np.asarray(value) for path, value in package.parameter_tree(pruned).items()})
    written = package.shrink(pruned) if remove else pruned
    written.save_pretrained(output)
    copy_files(checkpoint.folder, output, [n for n in small_files(checkpoint.folder) if not (output / n).exists()])
    return {
        "source": model, "output": str(output), "head": head, "settings": settings and settings.to_dict(),
        "sparsity": total_sparsity(rows), "kernels": [asdict(row) for row in rows],
        "parameters": {"before": dense.num_parameters(), "after": written.num_parameters()},
        "size": {"before": _bytes(checkpoint.folder), "after": _bytes(output)},
    }  # fmt: skip


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in model_files(folder))
