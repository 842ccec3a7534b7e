"""Decoder inputs of encoder-decoders: targets shifted one position to the right."""

from collections.abc import Mapping

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.typing import Array, Ops


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
