"""What a model refuses to compute, checked before any of it is traced."""

from collections.abc import Mapping

import numpy as np

from shared.config import TransformerConfig
from shared.errors import InputError

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

LABELS = {
    "question-answering": ("start_positions", "end_positions"),
    "pretraining": ("labels", "next_sentence_label", "sentence_order_label"),
    "base": (),
}
"""What a head learns from; every other head takes ``labels``."""


def check_inputs(cfg: TransformerConfig, head: str, inputs: Mapping, cached: bool = False) -> None:
    """Refuse inputs a lookup would answer with nonsense. Values are looked at only where they are at hand (not traced).

    Raises:
        InputError: an input the head does not know, a wrong number of axes, ids beyond the vocabulary, more tokens
            than positions, token types beyond the table.
    """
    allowed = (*TOKEN_INPUTS, *LABELS.get(head, ("labels",)))
    for name in inputs:
        if name not in allowed:
            raise InputError(f"unknown input {name!r}; a {head} model takes {', '.join(allowed)}")
    input_ids = inputs["input_ids"]
    shape = np.shape(input_ids) if isinstance(input_ids, (list, tuple)) else tuple(input_ids.shape)
    axes = "[batch, choices, length]" if head == "multiple-choice" else "[batch, length]"
    if len(shape) != axes.count(",") + 1:
        raise InputError(f"input_ids has shape {shape}; a {head} model takes {axes}")
    e = cfg.embedding
    if not cached and shape[-1] is not None and shape[-1] > cfg.max_length:
        raise InputError(
            f"a sequence of {shape[-1]} tokens is longer than the {cfg.max_length} positions of this {cfg.model_type}; "
            "shorten it, or pass truncation=True to the tokenizer"
        )
    _check_range("input_ids", input_ids, e.vocab_size, "the vocabulary")
    if inputs.get("token_type_ids") is not None:
        rows = e.type_vocab_size or (e.vocab_size if e.token_types_from_words else 0)
        if rows == 0:
            raise InputError(f"a {cfg.model_type} model has no token types; leave token_type_ids out")
        _check_range("token_type_ids", inputs["token_type_ids"], rows, "the token types")
    if inputs.get("position_ids") is not None:
        _check_range("position_ids", inputs["position_ids"], e.max_positions, "the positions")


def _check_range(name: str, values, size: int, what: str) -> None:
    try:
        values = np.asarray(values)
    except Exception:  # a tracer or a symbolic tensor: its values are not known yet
        return
    if values.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got {values.dtype}")
    if values.size and (values.min() < 0 or values.max() >= size):
        bad = values.max() if values.max() >= size else values.min()
        raise InputError(f"{name} holds {bad}, but {what} of this model ends at {size - 1}; is the tokenizer its own?")
