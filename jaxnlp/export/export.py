"""Export a Flax model to StableHLO."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from jax import export

from duonlp.errors import InputError
from duonlp.export import ExportSettings, Graph, write_exported
from duonlp.export.graphs import STEMS
from jaxnlp.export.graphs import graph_function
from jaxnlp.export.session import RUNTIMES
from jaxnlp.inference import compiled

if TYPE_CHECKING:
    from jaxnlp.model import Model

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""Platforms that the StableHLO runs on."""


def export_model(
    model: "Model", output: str | os.PathLike[str], to: str = "stablehlo", *, tokenizer: Any = None, batches: Any = None,
    overwrite: bool = False, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """Write a model for another runtime, with its configuration and tokenizer, and compare it with the original.

    Args:
        model: A model with float32 weights and compute dtype.
        output: Folder to write.
        to: "stablehlo"; tfnlp, which loads the same checkpoints, writes "onnx", "litert" and "savedmodel".
        tokenizer: Tokenizer or image processor to save; by default that of the checkpoint that the model was loaded from.
        batches: Typical inputs, as dicts of arrays, for int8="static".
        overwrite: Whether the folder may hold files.
        settings: Further fields of duonlp.export.ExportSettings: batch_size, length, cache, tolerance, ...

    Returns:
        The report, see duonlp.export.write_exported.

    Raises:
        InputError: A setting is invalid or does not fit the model, or outputs differ from the model's; nothing is written.
    """
    options = ExportSettings(to, **settings)
    if to != "stablehlo":
        raise InputError(
            f"jaxnlp does not export to {to}; save the model with save_pretrained, then run duonlp export FOLDER --to {to}"
        )
    if model.dtype != "float32":
        raise InputError(f"this model computes in {model.dtype}; load it with dtype='float32' to export it")

    def write(folder: Path, graphs: tuple[Graph, ...]) -> None:
        for graph in graphs:
            exported = export.export(graph_function(model, graph), platforms=PLATFORMS)(_arguments(graph))
            (folder / f"{STEMS[graph.name]}.stablehlo").write_bytes(exported.serialize())

    return write_exported(
        model, output, options, write, compiled(model), RUNTIMES, tokenizer=tokenizer, overwrite=overwrite
    )


def _arguments(graph: Graph) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes of a graph's inputs, with a symbolic dimension for each axis of any size."""
    axes = {axis for spec in graph.inputs for axis in spec.axes}
    # The slots have room for the tokens.
    scope = export.SymbolicScope([f"{axis} >= tokens" for axis in sorted(axes) if axis.startswith("slots")])
    arguments = {}
    for spec in graph.inputs:
        sizes = zip(spec.axes, spec.shape, strict=True)
        dimensions = ", ".join(axis if size is None else str(size) for axis, size in sizes)
        shape = export.symbolic_shape(dimensions, scope=scope) if dimensions else ()
        arguments[spec.name] = jax.ShapeDtypeStruct(shape, spec.dtype)
    return arguments
