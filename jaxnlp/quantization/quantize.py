"""Quantize a model, and restore its floating-point weights."""

from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import numpy as np

from duonlp.quantization import QuantizationSettings, dequantized_values, quantized_values, simulated_config
from duonlp.quantization.calibration import batches_of
from jaxnlp.pretrained import Pretrained, parameter_tree, rebuilt
from jaxnlp.quantization.recording import record_inputs

P = TypeVar("P", bound=Pretrained)


def quantize(model: P, scheme: str | None = None, batches: Any = None, **settings: Any) -> P:
    """Return a model whose weights are integers; the given one is not changed.

    It is called, compiled, saved, loaded and generated with like any other model, but it cannot be trained.

    Args:
        model: A model with floating-point weights, or one prepared by :func:`prepare_qat`, whose quantization is then the
            default.
        scheme: "int8" (the default), "int8-static", "int8-weights" or "int4"; see QuantizationSettings.
        batches: Typical inputs, as dicts of arrays or as training takes them, for static activations, GPTQ and AWQ; see
            duonlp.quantization.calibration_batches.
        settings: Further fields of QuantizationSettings: layers, skip, embeddings, output, rounding, ...

    Raises:
        InputError: A setting is unknown or does not fit the model, calibration data is missing or not the model's, the model is
            already quantized, or a weight is not finite.
    """
    return rebuilt(model, *quantized_values(*_parts(model, scheme, batches, settings)))


def dequantize(model: P) -> P:
    """Return a model with floating-point weights: those that the integers of a quantized model stand for.

    Args:
        model: A quantized model, or one prepared by :func:`prepare_qat`; it is not changed.
    """
    values = parameter_tree(model)
    cfg, new = dequantized_values(lambda path: np.asarray(values[path]), model.config, model.head)
    return rebuilt(model, cfg, new)


def prepare_qat(model: P, scheme: str = "int8", batches: Any = None, **settings: Any) -> P:
    """Return a model for quantization-aware training; the given one is not changed.

    It has the same parameters, but each forward pass rounds them, and the activations, as :func:`quantize` will. Train it like
    any other model, with ``fit``, ``distill`` or, in tfnlp, Keras' ``compile`` and ``fit``; then call ``quantize(model)``.

    Args:
        model: A model with floating-point weights.
        scheme: "int8", "int8-static", "int8-weights" or "int4".
        batches: Typical inputs as in :func:`quantize`, for static activations: their scales are calibrated before the training.
        settings: Further fields of QuantizationSettings: layers, skip, embeddings, output, calibration, group_size, ...

    Raises:
        InputError: A setting is unknown or does not fit the model, calibration data is missing or not the model's, or the model
            is already quantized.
    """
    return rebuilt(model, simulated_config(*_parts(model, scheme, batches, settings)), {})


def _parts(model: Pretrained, scheme: str | None, batches: Any, settings: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the arguments of the functions of duonlp.quantization that decide what is quantized."""
    values = parameter_tree(model)
    record = None if batches is None else partial(record_inputs, model, batches_of(batches, model.config, model.head))
    settings_of_call = QuantizationSettings.of(scheme, settings)
    return lambda path: np.asarray(values[path], np.float32), model.config, model.head, settings_of_call, record
