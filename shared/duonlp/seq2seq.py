"""What an encoder-decoder needs besides its two stacks: the targets moved one to the right."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError


def shift_right(ops: ModuleType, labels, config: TransformerConfig):
    """What the decoder is fed for targets: a start token, then all targets but the last.

    The start is ``decoder_start_token_id``; or each target's own last token that is not padding, where the family has it so
    (mBART, whose targets end in the language; Liu et al. 2020, https://arxiv.org/abs/2001.08210).

    Args:
        ops: duonlp.numpy_ops, or an engine's module of the same functions.
        labels: int [B, T], -100 on what the loss leaves out, which becomes padding.

    Returns:
        int [B, T].

    Raises:
        InputError: the model has no start token, or no padding token.
    """
    if config.pad_token_id is None:
        raise InputError("the model has no pad_token_id, which targets are filled up with; set it in config.json")
    ids = ops.where(labels < 0, config.pad_token_id, labels)
    if config.decoder.starts_with_last:
        real = ops.cast(ids != config.pad_token_id, "int32")
        last = ops.maximum(ops.sum(real, axis=1, keepdims=True) - 1, 0)
        start = ops.take_along(ids, last, 1)
    elif config.decoder.start_token_id is None:
        raise InputError(
            "the model has no decoder_start_token_id, which targets begin with; set it in config.json, or pass decoder_input_ids"
        )
    else:
        start = ids[:, :1] * 0 + config.decoder.start_token_id
    return ops.concat([start, ids[:, :-1]], 1)


def decoder_input_ids(ops: ModuleType, inputs: Mapping[str, Any], config: TransformerConfig, head: str):
    """What the decoder reads: what it is given, or targets moved to the right, or the source so (BART).

    Args:
        inputs: the model's, by name; what is missing may be None.

    Returns:
        int [B, T].

    Raises:
        InputError: there is nothing to read; and as shift_right.
    """
    if inputs.get("decoder_input_ids") is not None:
        return inputs["decoder_input_ids"]
    if head == "seq2seq-lm" and inputs.get("labels") is not None:
        return shift_right(ops, inputs["labels"], config)
    if config.decoder.reads_source:
        return shift_right(ops, inputs["input_ids"], config)
    raise InputError(
        f"the decoder of a {config.model_type} has nothing to read; pass decoder_input_ids"
        + (", or labels" if head == "seq2seq-lm" else "")
    )
