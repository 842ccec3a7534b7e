"""Run a graph of static shapes on smaller batches: pad inputs, and cut outputs."""

from collections.abc import Mapping

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.export.sessions import Session, check_shapes
from duonlp.heads import outputs_of

HIDDEN = ("last_hidden_state", "encoder_last_hidden_state")
"""Outputs with one vector per token that are no logits."""


def run_padded(
    session: Session, inputs: Mapping[str, np.ndarray], config: TransformerConfig, head: str
) -> dict[str, np.ndarray]:
    """Return the outputs of a graph for inputs of its shapes, or with fewer tokens, or another number of rows.

    Args:
        session: The graph.
        inputs: Its inputs, [batch, length] or [batch, choices, length]; or images.
        config: Configuration of the model.
        head: Its head.

    Raises:
        InputError: An input has more tokens than the graph takes.
    """
    arrays = {name: inputs[name] for name in session.inputs if name in inputs}
    main = next(iter(config.inputs)).name
    rows, size = len(inputs[main]), session.inputs[main][0]
    padded = {name: _pad_tokens(name, value, session.inputs[name], config) for name, value in arrays.items()}
    parts = []
    for start in range(0, rows, size or rows):
        part = {name: value[start : start + (size or rows)] for name, value in padded.items()}
        part = {name: _pad(value, 0, size or len(value), 0) for name, value in part.items()}
        check_shapes(session.inputs, part)
        parts.append(session(part))
    outputs = {name: np.concatenate([part[name] for part in parts])[:rows] for name in session.outputs}
    lengths = {name: np.shape(value)[-1] for name, value in inputs.items()}
    per_token = {o.logits for o in outputs_of(head, config) if o.per_token or o.over == "positions"} | {*HIDDEN}
    target = "decoder_input_ids" if "decoder_input_ids" in session.inputs else main
    for name in per_token & outputs.keys() if config.embedding.patches is None else ():
        outputs[name] = outputs[name][:, : lengths[main if name == "encoder_last_hidden_state" else target]]
    return outputs


def _pad_tokens(name: str, array: np.ndarray, shape: tuple[int | None, ...], config: TransformerConfig) -> np.ndarray:
    """Pad the last axis of token ids, masks and types on the right to a static length."""
    if array.dtype.kind not in "iu" or shape[-1] is None:
        return array
    value = (config.pad_token_id or 0) if name.endswith("input_ids") else 0
    return _pad(array, array.ndim - 1, shape[-1], value)


def _pad(array: np.ndarray, axis: int, size: int, value: int) -> np.ndarray:
    missing = max(0, size - array.shape[axis])
    pads = [(0, missing if i == axis else 0) for i in range(array.ndim)]
    return np.pad(array, pads, constant_values=value) if missing else array
