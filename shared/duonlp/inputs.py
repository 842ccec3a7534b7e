"""Validation of model inputs and labels before tracing."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS, IGNORED, outputs_of
from duonlp.typing import Array

Shape = tuple[int | None, ...]
"""A shape with None for each unknown size."""

TOKEN_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

DECODER_INPUTS = ("decoder_input_ids", "decoder_attention_mask", "decoder_position_ids")
"""Additional inputs of an encoder-decoder."""

TEACHER = "teacher_"
"""Prefix of the inputs in a batch that only a teacher with its own tokenizer reads."""


def model_inputs(cfg: TransformerConfig, batch: Mapping[str, Array], *, as_teacher: bool = False) -> dict[str, Array]:
    """Select the inputs, without labels, that a model reads from a batch; token types only if the model has
    them.

    Args:
        cfg: Model configuration.
        batch: Arrays by name.
        as_teacher: Read ``teacher_input_ids``, ... under their plain names, if the batch has them.

    Raises:
        InputError: The batch has no input_ids.
    """
    teacher_batch = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
    source = teacher_batch if as_teacher and "input_ids" in teacher_batch else batch
    if "input_ids" not in source:
        raise InputError(f"the batch has {', '.join(source) or 'no inputs'}; a model needs input_ids")
    embedding = cfg.embedding
    names = (*TOKEN_INPUTS, *(DECODER_INPUTS if cfg.decoder is not None else ()))
    has_types = embedding.type_vocab_size or embedding.token_types_from_words
    return {name: source[name] for name in names if name in source and (name != "token_type_ids" or has_types)}


def check_inputs(cfg: TransformerConfig, head: str, inputs: Mapping[str, Array | None], cached: bool = False) -> None:
    """Raise InputError for inputs on which a lookup would silently compute nonsense.

    Shapes are always checked; values only if they are concrete (not traced or symbolic).

    Args:
        cfg: Model configuration.
        head: Name of the model's head.
        inputs: Inputs and labels by name; None counts as missing.
        cached: Whether a cache holds earlier tokens, so that the attention mask is longer than input_ids.

    Raises:
        InputError: input_ids is missing, an input is unknown to the head, shapes have the wrong rank or do
            not match, ids are outside the vocabulary, there are more tokens than positions, or token types
            or labels are out of range.
    """
    decoder_names = DECODER_INPUTS if cfg.decoder is not None else ()
    allowed = (*TOKEN_INPUTS, *decoder_names, *HEADS[head].label_names)
    for name, value in inputs.items():
        if name not in allowed and not (name in DECODER_INPUTS and value is None):
            raise InputError(f"unknown input {name!r}; a {head} model takes {', '.join(allowed)}")
    present = {name: value for name, value in inputs.items() if value is not None}
    if "input_ids" not in present:
        raise InputError(f"the inputs are {', '.join(present) or 'empty'}; a model needs input_ids")
    shape = _shape("input_ids", present["input_ids"])
    axes = "[batch, choices, length]" if HEADS[head].has_choices else "[batch, length]"
    if shape is not None and len(shape) != axes.count(",") + 1:
        raise InputError(f"input_ids has shape {shape}; a {head} model takes {axes}")
    length = None if shape is None else shape[-1]
    if not cached and length is not None and length > cfg.max_length:
        raise InputError(
            f"a sequence of {length} tokens is longer than the {cfg.max_length} positions of this {cfg.model_type}; "
            "shorten it, or pass truncation=True to the tokenizer"
        )
    target = _check_decoder(cfg, head, present, shape, cached) if cfg.decoder is not None else {}
    for name in present.keys() - target.keys():
        _check_shape(name, _shape(name, present[name]), shape, head, cached)
    embedding = cfg.embedding
    _check_range("input_ids", present["input_ids"], embedding.vocab_size, "token ids")
    if "token_type_ids" in present:
        rows = embedding.type_vocab_size or (embedding.vocab_size if embedding.token_types_from_words else 0)
        if rows == 0:
            raise InputError(f"a {cfg.model_type} model has no token types; do not pass token_type_ids")
        _check_range("token_type_ids", present["token_type_ids"], rows, "token types")
    if "position_ids" in present and embedding.positions != "none":
        _check_range("position_ids", present["position_ids"], embedding.max_positions, "positions")
    _check_labels(cfg, head, present)


def _check_decoder(
    cfg: TransformerConfig, head: str, inputs: Mapping[str, Array], source: Shape | None, cached: bool
) -> dict[str, Array]:
    """Check and return the inputs and labels that have the target's length."""
    assert cfg.decoder is not None
    if cached:
        raise InputError("an encoder-decoder's cache is created by generate; call the model without a cache")
    names = (*DECODER_INPUTS, *(HEADS[head].label_names if HEADS[head].shifts_labels else ()))
    target = {name: inputs[name] for name in names if name in inputs}
    shapes = {name: _shape(name, value) for name, value in target.items()}
    limit, words = cfg.decoder.max_length, cfg.decoder.embedding
    for name, shape in shapes.items():
        if shape is None:
            continue
        rows = None if source is None else source[0]
        if len(shape) != 2 or (None not in (shape[0], rows) and shape[0] != rows):
            raise InputError(
                f"{name} has shape {shape} and input_ids {source}; pass [batch, target length], one row per source"
            )
        if shape[1] is not None and shape[1] > limit:
            raise InputError(
                f"{name} has {shape[1]} tokens, more than the {limit} positions of this {cfg.model_type}'s decoder; "
                "shorten the targets, or pass truncation=True, max_length=... to the tokenizer"
            )
    lengths = {name: shape[1] for name, shape in shapes.items() if shape is not None and shape[1] is not None}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise InputError(f"decoder inputs and labels differ in length: {listing}; pad them to one length")
    if "decoder_input_ids" in target:
        _check_range("decoder_input_ids", target["decoder_input_ids"], words.vocab_size, "token ids")
    if "decoder_position_ids" in target and words.positions != "none":
        _check_range("decoder_position_ids", target["decoder_position_ids"], words.max_positions, "positions")
    ids = _concrete(inputs["input_ids"])
    if HEADS[head].pooling == "classification" and cfg.classification.token == "last_eos" and ids is not None:
        without_eos = np.flatnonzero(~(ids == cfg.eos_token_id).any(axis=-1))
        if without_eos.size:
            raise InputError(
                f"row {without_eos[0]} of input_ids has no end-of-text token {cfg.eos_token_id}, at which a "
                f"{cfg.model_type} classifies; tokenize with add_special_tokens=True"
            )
    return target


def _shape(name: str, values: Any) -> Shape | None:
    """Return the shape with None for each unknown size; None if even the rank is unknown."""
    if not hasattr(values, "shape"):
        try:
            return np.shape(values)
        except ValueError:
            raise InputError(f"{name}: rows differ in length; pass padding=True to the tokenizer") from None
    if getattr(values.shape, "rank", 0) is None:
        return None
    return tuple(size if isinstance(size, int) else None for size in values.shape)


def _check_shape(name: str, shape: Shape | None, ids: Shape | None, head: str, cached: bool) -> None:
    """Raise InputError if an input's or label's shape does not match that of input_ids."""
    if name == "input_ids" or shape is None or ids is None:
        return
    actual, expected = shape, ids
    if name == "attention_mask":
        keys = None if cached else ids[-1]
        per_query = len(shape) == len(ids) + 1 and HEADS[head].mask_per_query
        expected = (*ids, keys) if per_query else (*ids[:-1], keys)
    elif name == "position_ids" and shape[:-1] == (1,) * (len(ids) - 1):
        expected = (*shape[:-1], ids[-1])
    elif name not in TOKEN_INPUTS and not any(o.per_token and o.labels == name for o in HEADS[head].outputs):
        actual, expected = shape[:1], ids[:1]
    if len(actual) != len(expected) or any(None not in pair and pair[0] != pair[1] for pair in zip(actual, expected)):
        requirement = "have the same number of rows" if len(expected) < len(ids) else "match"
        raise InputError(f"{name} has shape {shape} and input_ids {ids}; they must {requirement}")


def _check_labels(cfg: TransformerConfig, head: str, inputs: Mapping[str, Array]) -> None:
    """Raise InputError if class or token ids among the labels are out of range."""
    for output in outputs_of(head, cfg):
        labels, classes = _concrete(inputs.get(output.labels)), output.classes(cfg)
        if labels is None or classes is None or output.over in ("pair", "order"):
            continue
        if output.kind_for(cfg, labels) == "softmax":
            kind = "token ids" if output.over == "vocabulary" else "class ids"
            _check_range(output.labels, labels, classes, kind, IGNORED)


def _concrete(values: Any) -> np.ndarray | None:
    """Return the values as an array; None if they are missing, traced, symbolic, or on other processes' devices."""
    if values is None:
        return None
    kinds = {kind.__name__ for kind in type(values).__mro__}
    if kinds & {"Tracer", "KerasTensor", "SymbolicTensor"} or not getattr(values, "is_fully_addressable", True):
        return None
    try:
        return np.asarray(values)
    except NotImplementedError:  # a TensorFlow variable inside a graph
        return None


def _check_range(name: str, values: Any, size: int, kind: str, ignored: int | None = None) -> None:
    """Raise InputError unless all concrete values are integers from 0 to ``size`` - 1, or ``ignored``."""
    array = _concrete(values)
    if array is None:
        return
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got {array.dtype}")
    if ignored is not None:
        array = array[array != ignored]
    if array.size and (array.min() < 0 or array.max() >= size):
        invalid = array.max() if array.max() >= size else array.min()
        if name == "labels":
            advice = f"use {ignored} where there is no label"
        elif kind == "positions":
            advice = "pass positions in this range"
        else:
            advice = "check that the tokenizer belongs to the model"
        raise InputError(f"{name} contains {invalid}, but this model's {kind} are 0 to {size - 1}; {advice}")
