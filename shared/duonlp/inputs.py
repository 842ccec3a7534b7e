"""Model inputs: their validation, with that of labels, before tracing, and the decoder inputs of encoder-decoders."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS, outputs_of
from duonlp.input_specs import InputSpec
from duonlp.labels import WEIGHTS, Shape, array_of, check_values, check_weight_form, concrete_array, static_shape
from duonlp.typing import Array, Ops

TEACHER = "teacher_"
"""Prefix of the inputs in a batch that only a teacher with its own tokenizer reads."""


LOGIT_POSITIONS = "logit_positions"
"""Optional input of language models, int [B, n]: the only positions to compute logits for, [B, n, V] instead of [B, T, V]."""


def input_specs(cfg: TransformerConfig, head: str) -> tuple[InputSpec, ...]:
    """Return the inputs of a model with a head: ``cfg.inputs``, with an axis of choices if the head has several texts."""
    if not HEADS[head].has_choices:
        return cfg.inputs
    return tuple(replace(spec, axes=(spec.axes[0], "choices", *spec.axes[1:])) for spec in cfg.inputs)


def main_input(cfg: TransformerConfig) -> str:
    """Return the name of the input that a model reads first, such as "input_ids" or "pixel_values"."""
    return cfg.inputs[0].name


def named_inputs(cfg: TransformerConfig, inputs: Any) -> dict[str, Any]:
    """Return inputs as a new dict; a single array is the model's main input."""
    return dict(inputs) if isinstance(inputs, Mapping) else {main_input(cfg): inputs}


def num_tokens(cfg: TransformerConfig, inputs: Mapping[str, Array]) -> int:
    """Return the number of tokens that the model's first stack computes for a batch of concrete arrays."""
    main = inputs[main_input(cfg)]
    patches = cfg.embedding.patches
    return int(np.prod(main.shape)) if patches is None else main.shape[0] * patches.num_tokens


def model_inputs(cfg: TransformerConfig, batch: Mapping[str, Array], *, as_teacher: bool = False) -> dict[str, Array]:
    """Select the inputs, without labels, that a model reads from a batch.

    Args:
        cfg: Model configuration.
        batch: Arrays by name.
        as_teacher: Read ``teacher_input_ids``, ... under their plain names, if the batch has them.

    Raises:
        InputError: The batch lacks the model's main input.
    """
    main = main_input(cfg)
    teacher_batch = {name.removeprefix(TEACHER): value for name, value in batch.items() if name.startswith(TEACHER)}
    source = teacher_batch if as_teacher and main in teacher_batch else batch
    if main not in source:
        raise InputError(f"the batch has {', '.join(source) or 'no inputs'}; a model needs {main}")
    return {name: source[name] for name in (*(spec.name for spec in cfg.inputs), LOGIT_POSITIONS) if name in source}


def check_inputs(cfg: TransformerConfig, head: str, inputs: Mapping[str, Array | None], cached: bool = False) -> None:
    """Raise InputError for inputs on which a lookup would silently compute nonsense.

    Shapes are always checked; values only if they are concrete (not traced or symbolic).

    Args:
        cfg: Model configuration.
        head: Name of the model's head.
        inputs: Inputs and labels by name; None counts as missing.
        cached: Whether a cache holds earlier tokens, so that the attention mask is longer than input_ids.

    Raises:
        InputError: The main input is missing, an input is unknown to the head, shapes have the wrong rank or do
            not match, ids are outside the vocabulary, there are more tokens than positions, or token types
            or labels are out of range.
    """
    specs = {spec.name: spec for spec in input_specs(cfg, head)}
    main = next(iter(specs.values()))
    allowed = (*specs, *HEADS[head].label_names, *([LOGIT_POSITIONS] if HEADS[head].selects_positions else []))
    present = {name: value for name, value in inputs.items() if value is not None}
    for name in present:
        if name not in allowed:
            raise InputError(f"unknown input {name!r}; a {head} model takes {', '.join(allowed)}")
    if main.name not in present:
        raise InputError(f"the inputs are {', '.join(present) or 'empty'}; a model needs {main.name}")
    shape = static_shape(main.name, present[main.name])
    _check_main(cfg, head, main, shape, cached)
    target = _check_decoder(cfg, head, present, shape, cached) if cfg.decoder is not None else {}
    for name in present.keys() - target.keys() - {main.name}:
        follows_main = name in specs or any(o.per_token and o.labels == name for o in HEADS[head].outputs)
        _check_shape(name, static_shape(name, present[name]), main.name, shape, follows_main, head, cached)
    for name, spec in specs.items():
        if name in present and spec.limit is not None:
            _check_range(name, present[name], spec.limit, spec.kind)
    if LOGIT_POSITIONS in present:
        _check_positions(head, present, shape)
    _check_labels(cfg, head, present, shape)


def _check_positions(head: str, inputs: Mapping[str, Array], main: Shape | None) -> None:
    """Raise InputError unless the positions to compute logits for are int [B, n], below the length, and without labels."""
    positions = static_shape(LOGIT_POSITIONS, inputs[LOGIT_POSITIONS])
    if positions is not None and len(positions) != 2:
        raise InputError(f"{LOGIT_POSITIONS} has shape {positions}; pass int [batch, positions]")
    if main is not None and main[-1] is not None:
        _check_range(LOGIT_POSITIONS, inputs[LOGIT_POSITIONS], main[-1], "positions")
    if labels := next((name for name in HEADS[head].label_names if name in inputs), None):
        raise InputError(
            f"{LOGIT_POSITIONS} leaves out the logits that {labels} would be compared with; pass one of them"
        )


def _check_main(cfg: TransformerConfig, head: str, spec: InputSpec, shape: Shape | None, cached: bool) -> None:
    """Raise InputError if the main input has the wrong rank or size, or more tokens than the model has positions."""
    if shape is None:
        return
    if len(shape) != len(spec.axes):
        raise InputError(f"{spec.name} has shape {shape}; a {head} model takes {spec}")
    if any(None not in pair and pair[0] != pair[1] for pair in zip(shape, spec.shape)):
        raise InputError(
            f"{spec.name} has shape {shape}, but this {cfg.model_type} takes {spec}; prepare images with its image "
            "processor, or load it for another size with image_size="
        )
    length = shape[-1] if spec.axes[-1] == "length" else None
    if not cached and length is not None and length > cfg.max_length:
        raise InputError(
            f"a sequence of {length} tokens is longer than the {cfg.max_length} positions of this {cfg.model_type}; "
            "shorten it, or pass truncation=True to the tokenizer"
        )


def _check_decoder(
    cfg: TransformerConfig, head: str, inputs: Mapping[str, Array], source: Shape | None, cached: bool
) -> dict[str, Array]:
    """Check and return the inputs and labels that have the target's length."""
    assert cfg.decoder is not None
    if cached:
        raise InputError("an encoder-decoder's cache is created by generate; call the model without a cache")
    names = [spec.name for spec in cfg.inputs if "target_length" in spec.axes]
    names += HEADS[head].label_names if HEADS[head].shifts_labels else ()
    target = {name: inputs[name] for name in names if name in inputs}
    shapes = {name: static_shape(name, value) for name, value in target.items()}
    main, limit = main_input(cfg), cfg.decoder.max_length
    for name, shape in shapes.items():
        if shape is None:
            continue
        rows = None if source is None else source[0]
        if len(shape) != 2 or (None not in (shape[0], rows) and shape[0] != rows):
            raise InputError(
                f"{name} has shape {shape} and {main} {source}; pass [batch, target length], one row per source"
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
    ids = concrete_array(inputs[main])
    if HEADS[head].pooling == "classification" and cfg.classification.token == "last_eos" and ids is not None:
        without_eos = np.flatnonzero(~(ids == cfg.eos_token_id).any(axis=-1))
        if without_eos.size:
            raise InputError(
                f"row {without_eos[0]} of {main} has no end-of-text token {cfg.eos_token_id}, at which a "
                f"{cfg.model_type} classifies; tokenize with add_special_tokens=True"
            )
    return target


def _check_shape(
    name: str, shape: Shape | None, main: str, main_shape: Shape | None, follows_main: bool, head: str, cached: bool
) -> None:
    """Raise InputError if the shape of an input or label does not match that of the main input.

    Args:
        name: Name of the input or label.
        shape: Its shape.
        main: Name of the main input.
        main_shape: Shape of the main input.
        follows_main: Whether it has the axes of the main input; otherwise only its number of rows is checked.
        head: Name of the model's head.
        cached: Whether the attention mask is longer than the main input.
    """
    if shape is None or main_shape is None:
        return
    actual, expected = shape, main_shape
    if not follows_main:
        actual, expected = shape[:1], main_shape[:1]
    elif name == "attention_mask":
        keys = None if cached else main_shape[-1]
        per_query = len(shape) == len(main_shape) + 1 and HEADS[head].mask_per_query
        expected = (*main_shape, keys) if per_query else (*main_shape[:-1], keys)
    elif name == "position_ids" and shape[:-1] == (1,) * (len(main_shape) - 1):
        expected = (*shape[:-1], main_shape[-1])
    if len(actual) != len(expected) or any(None not in pair and pair[0] != pair[1] for pair in zip(actual, expected)):
        requirement = "have the same number of rows" if len(expected) < len(main_shape) else "match"
        raise InputError(f"{name} has shape {shape} and {main} {main_shape}; they must {requirement}")


def _check_labels(cfg: TransformerConfig, head: str, inputs: Mapping[str, Array], main: Shape | None) -> None:
    """Raise InputError for labels whose form or values the head's loss does not take."""
    choices = main[1] if HEADS[head].has_choices and main is not None else None
    for output in outputs_of(head, cfg):
        if output.labels in inputs:
            check_values(output, cfg, inputs[output.labels], choices, inputs.get("attention_mask"))


def check_weights(cfg: TransformerConfig, head: str, batch: Mapping[str, Any]) -> None:
    """Raise InputError unless a batch's ``sample_weight``, if it has one, fits its rows or its labels.

    Args:
        cfg: Model configuration.
        head: Name of the model's head.
        batch: Inputs, labels and weights by name.
    """
    weights = batch.get(WEIGHTS)
    if weights is None:
        return
    labels = {o: batch[o.labels] for o in outputs_of(head, cfg) if batch.get(o.labels) is not None}
    if isinstance(weights, Mapping):
        names = {name for output in outputs_of(head, cfg) for name in (output.labels, output.logits)}
        if unknown := weights.keys() - names:
            raise InputError(f"{WEIGHTS} has {sorted(unknown)}; it may have {', '.join(sorted(names))}")
    for output, values in labels.items():
        own = weights.get(output.labels, weights.get(output.logits)) if isinstance(weights, Mapping) else weights
        if own is not None:
            check_weight_form(output, array_of(output.labels, values), own)


def _check_range(name: str, values: Any, size: int, kind: str) -> None:
    """Raise InputError unless all concrete values are integers from 0 to ``size`` - 1."""
    array = concrete_array(values)
    if array is None:
        return
    if array.dtype.kind not in "iu":
        raise InputError(f"{name} must be integers, got {array.dtype}")
    if array.size and (array.min() < 0 or array.max() >= size):
        invalid = array.max() if array.max() >= size else array.min()
        if kind == "positions":
            advice = "pass positions in this range"
        else:
            advice = "check that the tokenizer belongs to the model"
        raise InputError(f"{name} contains {invalid}, but this model's {kind} are 0 to {size - 1}; {advice}")


def shift_right(ops: Ops, labels: Array, config: TransformerConfig) -> Array:
    """Return the decoder inputs for targets: a start token, then every target token but the last.

    The start token is ``decoder_start_token_id``, or, for families such as mBART, whose targets end with
    the language code, each target's own last non-padding token (Liu et al. 2020,
    https://arxiv.org/abs/2001.08210).

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        labels: int [B, T]; -100 marks tokens that the loss ignores and becomes padding.
        config: Configuration of an encoder-decoder.

    Returns:
        int [B, T].

    Raises:
        InputError: The model is not an encoder-decoder, or has no start token or no padding token.
    """
    decoder = config.decoder
    if decoder is None:
        raise InputError(f"a {config.model_type} has no decoder whose inputs could be shifted; use an encoder-decoder")
    if config.pad_token_id is None:
        raise InputError("the model has no pad_token_id to pad targets with; set it in config.json")
    labels = ops.cast(labels, "int32")  # a start token may not fit into the labels' dtype
    ids = ops.where(labels < 0, config.pad_token_id, labels)
    if decoder.starts_with_last:
        real = ops.cast(ids != config.pad_token_id, "int32")
        last = ops.maximum(ops.sum(real, axis=1, keepdims=True) - 1, 0)
        start = ops.take_along(ids, last, 1)
    elif decoder.start_token_id is None:
        raise InputError(
            "the model has no decoder_start_token_id to start targets with; set it in config.json, or pass decoder_input_ids"
        )
    else:
        start = ids[:, :1] * 0 + decoder.start_token_id
    return ops.concat([start, ids[:, :-1]], 1)


def decoder_input_ids(ops: Ops, inputs: Mapping[str, Array | None], config: TransformerConfig, head: str) -> Array:
    """Return the decoder inputs: those passed in, or the shifted labels, or the shifted source (BART).

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        inputs: Model inputs and labels by name; missing ones may be None.
        config: Configuration of an encoder-decoder.
        head: Name of the model's head.

    Returns:
        int [B, T].

    Raises:
        InputError: The inputs determine no decoder inputs; also as in :func:`shift_right`.
    """
    if inputs.get("decoder_input_ids") is not None:
        return inputs["decoder_input_ids"]
    if HEADS[head].shifts_labels and inputs.get("labels") is not None:
        return shift_right(ops, inputs["labels"], config)
    if config.decoder is not None and config.decoder.reads_source:
        return shift_right(ops, inputs["input_ids"], config)
    raise InputError(
        f"the decoder of this {config.model_type} has no inputs; pass decoder_input_ids"
        + (", or labels" if HEADS[head].shifts_labels else "")
    )
