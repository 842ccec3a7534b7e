"""The inputs of RAG models: documents per row, in either of two shapes."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.inputs import check_inputs
from duonlp.labels import array_of
from duonlp.rag.config import RagConfig
from duonlp.typing import Array, Ops

INPUTS = (
    "input_ids", "attention_mask", "context_input_ids", "context_attention_mask", "doc_scores", "doc_embeddings",
    "decoder_input_ids", "decoder_attention_mask", "labels",
)  # fmt: skip
"""Inputs of a RAG model, labels included."""


def flatten_documents(ops: Ops, x: Array | None) -> Array | None:
    """Return [B * K, S] of an array [B, K, S] or [B * K, S]; None stays None."""
    if x is None or len(x.shape) == 2:
        return x
    return ops.reshape(x, (-1, ops.size(x, 2)))


def check_names(names: Iterable[str]) -> None:
    """Raise InputError for a name that is no input of a RAG model."""
    unknown = sorted(set(names) - set(INPUTS))
    if unknown:
        raise InputError(f"unknown input {unknown[0]!r}; the inputs of a RAG model are {', '.join(INPUTS)}")


def check_shapes(config: RagConfig, inputs: Mapping[str, Any], needs_target: bool = True) -> None:
    """Raise InputError for shapes that do not match, as far as they are known; ids are checked by the parts.

    Args:
        config: The model.
        inputs: Arrays or tensors by name; None stands for a missing one.
        needs_target: Whether there must be labels or decoder_input_ids.
    """
    shapes = {name: tuple(value.shape) for name, value in inputs.items() if value is not None}
    if "context_input_ids" not in shapes:
        raise InputError("there is no context_input_ids; pass the documents with their question, int [B, K, S]")
    if "doc_scores" not in shapes and "doc_embeddings" not in shapes:
        raise InputError(
            "there is neither doc_scores, float [B, K], nor doc_embeddings, float [B, K, d]; pass what a retriever found"
        )
    if "doc_scores" not in shapes and "input_ids" not in shapes:
        raise InputError("doc_embeddings needs the questions; pass input_ids, or doc_scores instead")
    ranks = {
        "context_input_ids": (2, 3), "context_attention_mask": (2, 3), "doc_scores": (2,), "doc_embeddings": (3,),
        "input_ids": (2,), "labels": (2,), "decoder_input_ids": (2,),
    }  # fmt: skip
    for name, allowed in ranks.items():
        if name in shapes and len(shapes[name]) not in allowed:
            raise InputError(f"{name} has shape {shapes[name]}; expected {' or '.join(map(str, allowed))} axes")
    given = "doc_scores" if "doc_scores" in shapes else "doc_embeddings"
    rows, documents = shapes[given][:2]
    context = shapes["context_input_ids"]
    matches = context[:2] == (rows, documents) if len(context) == 3 else _equal(context[0], rows, documents)
    if None not in (*context, rows, documents) and not matches:
        raise InputError(
            f"{given} has shape {shapes[given]} and context_input_ids {context}; with {rows} rows and {documents} documents "
            f"each, context_input_ids is [{rows}, {documents}, S] or [{rows * documents}, S]"
        )
    if "context_attention_mask" in shapes and shapes["context_attention_mask"] != context:
        raise InputError(
            f"context_attention_mask has shape {shapes['context_attention_mask']} and context_input_ids {context}; they must "
            "have the same shape"
        )
    for name in ("input_ids", "labels", "decoder_input_ids"):
        if name in shapes and None not in (shapes[name][0], rows) and shapes[name][0] != rows:
            raise InputError(f"{name} has {shapes[name][0]} rows and {given} {rows}; pass one row per question")
    width = shapes["doc_embeddings"][2] if "doc_embeddings" in shapes else None
    if width not in (None, config.vector_size):
        raise InputError(
            f"doc_embeddings has vectors of {width} values, but those of questions have {config.vector_size}; embed documents "
            "with the question encoder's context encoder"
        )
    lengths = [shapes[name][1] for name in ("labels", "decoder_input_ids") if name in shapes]
    if needs_target and not lengths:
        raise InputError(
            "there are neither labels nor decoder_input_ids, int [B, U]; pass one of them, or call generate"
        )
    if None not in lengths and len(set(lengths)) > 1:
        raise InputError(
            f"labels has shape {shapes['labels']} and decoder_input_ids {shapes['decoder_input_ids']}; they must have the same "
            "shape"
        )


def _equal(context: int | None, rows: int | None, documents: int | None) -> bool:
    return context is None or rows is None or documents is None or context == rows * documents


def check_documents(config: RagConfig, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the inputs of ``generate`` as NumPy arrays, documents as [B * K, S]; raise InputError, see check_shapes."""
    arrays = {name: np.asarray(array_of(name, value)) for name, value in inputs.items() if value is not None}
    check_shapes(config, arrays, needs_target=False)
    for name in ("doc_scores", "doc_embeddings"):
        if name in arrays and (arrays[name].dtype.kind not in "iuf" or not np.isfinite(arrays[name]).all()):
            raise InputError(
                f"{name} has values that are not finite numbers, of dtype {arrays[name].dtype}; pass real numbers"
            )
    for name in ("context_input_ids", "context_attention_mask"):
        if name in arrays:
            arrays[name] = arrays[name].reshape(-1, arrays[name].shape[-1])
    return arrays


def check_batch(config: RagConfig, batch: Mapping[str, Any]) -> None:
    """Raise InputError for a batch of NumPy arrays that a RAG model cannot train on.

    Args:
        config: The model.
        batch: Inputs and labels by name, and perhaps a mask of rows.
    """
    check_names(name for name in batch if name != ROW_MASK)
    if batch.get("labels") is None:
        raise InputError("there are no labels to learn from; pass answers, int [B, U]")
    arrays = {name: np.asarray(array_of(name, value)) for name, value in batch.items() if value is not None}
    check_shapes(config, arrays)
    if "input_ids" in arrays:
        question = {name: arrays[name] for name in ("input_ids", "attention_mask") if name in arrays}
        check_inputs(config.question_encoder, "base", question)
    context = {
        name.removeprefix("context_"): arrays[name].reshape(-1, arrays[name].shape[-1])
        for name in ("context_input_ids", "context_attention_mask")
        if name in arrays
    }
    labels = np.where(arrays["labels"] < 0, config.padding, arrays["labels"])
    labels = np.repeat(labels, len(context["input_ids"]) // len(labels), axis=0)
    check_inputs(config.generator, "base", context | {"decoder_input_ids": labels})
