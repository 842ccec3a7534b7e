"""Layer-wise learning rate decay: parameters further from the output get smaller learning rates in fine-tuning."""

import re
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import HEAD_PREFIXES

LAYER = re.compile(r"layer_(\d+)$")


def check_layer_decay(config: Any, decay: float) -> None:
    """Raise InputError for a decay other than 1 if a model has several parts with layers of their own, as RAG models do."""
    if decay != 1 and not isinstance(config, TransformerConfig):
        raise InputError(
            f"layer_decay is {decay}, but a {config.model_type} model has several parts with layers of their own; set it to 1"
        )


def depth(path: str, config: TransformerConfig) -> tuple[int, int]:
    """Return the depth of a parameter and the depth of the top, which is above all layers.

    Embeddings have depth 0, layer i has i + 1, and whatever follows the last layer (its final norm, the pooler, the head)
    is at the top. The decoder of an encoder-decoder continues from its encoder, except that its own embeddings have depth 0.
    Layers that share their parameters count as one.

    Args:
        path: Parameter path, such as ``encoder/layer_0/attention/query/kernel`` (duonlp.parameters). A path that is not part
            of the model, such as a projection trained beside it, is at the top.
        config: Configuration of the model.
    """
    stack, _, rest = path.partition("/")
    below = config.num_layer_weights if stack == "decoder" and config.decoder is not None else 0
    top = config.num_layer_weights + 1
    if config.decoder is not None:
        top += config.as_decoder().num_layer_weights
    layer = LAYER.match(rest.partition("/")[0])
    if stack in ("embeddings", "decoder_embeddings") or rest.startswith("relative_attention/"):
        return 0, top
    if stack in HEAD_PREFIXES or stack not in (config.stack, "decoder"):
        return top, top
    if layer is not None:
        return below + int(layer[1]) + 1, top
    # The final norm of a stack. Below a decoder, an encoder's belongs to its last layer.
    return (config.num_layer_weights if stack != "decoder" and config.decoder is not None else top), top


def rate_factor(path: str, config: TransformerConfig, decay: float) -> float:
    """Return the factor on a parameter's learning rate, ``decay ** (top - depth)``.

    Follows ELECTRA's fine-tuning (Clark et al. 2020, https://arxiv.org/abs/2003.10555, section 3.2 and table 7: 0.8 or 0.9)
    and ULMFiT's discriminative fine-tuning (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146).

    Args:
        path: Parameter path, as for :func:`depth`.
        config: Configuration of the model.
        decay: Factor between neighboring layers, in (0, 1]. 1 gives all layers the same rate.
    """
    parameter_depth, top = depth(path, config)
    return float(decay) ** (top - parameter_depth)
