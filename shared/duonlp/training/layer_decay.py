"""Layer-wise learning rates: the further a parameter is from the output, the less it moves when a model is fine-tuned."""

import re

from duonlp.config import TransformerConfig
from duonlp.parameters import HEAD_PREFIXES

LAYER = re.compile(r"layer_(\d+)$")


def depth(path: str, config: TransformerConfig) -> tuple[int, int]:
    """How deep a parameter lies, and the depth of what is above all layers.

    Embeddings are at 0, the parameters of layer i at i + 1, and at the top what is above the last layer: its last norm, the
    pooler, the head. An encoder-decoder's decoder goes on where its encoder ends (its own embeddings are at 0 all the same).
    Layers that share their parameters are one layer.

    Args:
        path: of a parameter, such as ``encoder/layer_0/attention/query/kernel`` (duonlp.parameters); one that the model
            does not have, such as a projection that is learnt beside it, is at the top.
        config: of the model.
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
    # A norm after the last layer: of an encoder with a decoder above it, it belongs to that layer.
    return (config.num_layer_weights if stack != "decoder" and config.decoder is not None else top), top


def rate_factor(path: str, config: TransformerConfig, decay: float) -> float:
    """What the learning rate of a parameter is multiplied with: ``decay ** (top - depth)``.

    After ELECTRA's fine-tuning (Clark et al. 2020, https://arxiv.org/abs/2003.10555, section 3.2 and table 7: 0.8 or 0.9), and
    ULMFiT's discriminative one (Howard & Ruder 2018, https://arxiv.org/abs/1801.06146).

    Args:
        path, config: as :func:`depth` takes them.
        decay: above 0 and at most 1, which is the same rate for all.
    """
    at, top = depth(path, config)
    return float(decay) ** (top - at)
