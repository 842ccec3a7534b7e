"""Which layers of a model settings quantize."""

from dataclasses import replace

from duonlp.architectures import weights
from duonlp.config import LayerQuantization, QuantizationConfig, TransformerConfig
from duonlp.errors import InputError
from duonlp.heads import HEADS
from duonlp.parameters import parameters
from duonlp.quantization.settings import SCHEMES, QuantizationSettings
from duonlp.util.suggestions import select_layers

WORDS = "embeddings/word_embeddings"
"""Path of the word table of a model or, with a prefix, of a decoder."""

OUTPUTS = "lm_head/output", "classifier", "qa_outputs", "next_sentence", "sentence_order", "discriminator/output"
"""Paths of the layers that map to labels or the vocabulary."""


def resolve(settings: QuantizationSettings, cfg: TransformerConfig, head: str) -> QuantizationConfig:
    """Return which layers of a model are quantized, and how.

    Args:
        settings: What to quantize.
        cfg: The model.
        head: Its head.

    Raises:
        ConfigError: Layers that a checkpoint stores as one tensor are not quantized alike.
        InputError: A pattern matches no layer, no layer is left, or the model is already quantized.
    """
    if cfg.quantization is not None and not cfg.quantization.simulated:
        raise InputError(
            "the model is already quantized; call dequantize(model) first, or load the original checkpoint"
        )
    linear, tables = quantizable(cfg, head)
    chosen = select_layers(linear + tables, settings.layers, settings.skip)
    words, spec = output_table(cfg, head), parameters(cfg.replace(quantization=None), head)

    quantization = SCHEMES[settings.scheme]
    if settings.group_size is not None and quantization.activations != "float":
        raise InputError(f"group_size is for schemes that quantize only weights; {settings.scheme!r} has no groups")
    if settings.rounding == "awq":
        quantization = replace(quantization, channel_scaled=True)
    layers: list[tuple[str, LayerQuantization]] = []
    for path in linear:
        if path in chosen and (settings.output or path not in OUTPUTS):
            size = spec[f"{path}/kernel"].shape[0]
            layers.append((path, replace(quantization, group_size=_group_size(settings, size))))
    if settings.embeddings:
        # The product of a tied output has no calibrated scale of its own: its inputs are quantized per row.
        activations = "dynamic" if settings.output and quantization.activations != "float" else "float"
        layers += [
            (path, LayerQuantization(activations=activations if path == words else "float"))
            for path in tables
            if path in chosen
        ]
    if not layers:
        raise InputError("the settings quantize no layer of the model; choose other layers, embeddings or output")
    quantization_config = QuantizationConfig(tuple(layers))
    weights(cfg.replace(quantization=quantization_config), head)  # raises if no checkpoint could hold it
    return quantization_config


def _group_size(settings: QuantizationSettings, size: int) -> int | None:
    """Return the group size of a kernel with ``size`` inputs: the setting, or the scheme's, halved until it divides them."""
    largest = SCHEMES[settings.scheme].group_size
    if settings.group_size is not None or largest is None:
        return settings.group_size
    return next((group for group in (largest >> i for i in range(4)) if size % group == 0), None)


def quantizable(cfg: TransformerConfig, head: str) -> tuple[list[str], list[str]]:
    """Return the paths of a model's linear layers and of its embedding tables, in the order of the parameter tree."""
    linear, tables = [], []
    for path in parameters(cfg.replace(quantization=None), head):
        layer, _, leaf = path.rpartition("/")
        if leaf == "kernel":
            linear.append(layer)
        elif leaf == "embedding" and not layer.endswith("relative_attention"):
            tables.append(layer)
    return linear, tables


def output_table(cfg: TransformerConfig, head: str) -> str | None:
    """Return the path of the word table that a tied LM head multiplies with; None if there is none."""
    if "lm_head" not in HEADS[head].layers or not cfg.lm_head.tied:
        return None
    has_own = cfg.decoder is not None and not cfg.decoder.shares_words
    return f"decoder_{WORDS}" if has_own else WORDS
