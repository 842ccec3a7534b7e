"""Quantize a model's parameters: from its floating-point values to the values of the quantized model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Protocol

import numpy as np

from duonlp.config import LayerQuantization, QuantizationConfig, TransformerConfig
from duonlp.errors import InputError
from duonlp.parameters import parameters
from duonlp.quantization.arithmetic import (
    check_finite,
    dequantize_kernel,
    dequantize_table,
    kernel_scales,
    pack_int4,
    quantize_kernel,
    quantize_table,
    unpack_int4,
)
from duonlp.quantization.awq import awq
from duonlp.quantization.gptq import gptq
from duonlp.quantization.resolve import resolve
from duonlp.quantization.settings import QuantizationSettings
from duonlp.quantization.statistics import InputStatistics
from duonlp.util.console import Progress

Read = Callable[[str], np.ndarray]
"""Returns a parameter by its path."""


class Record(Protocol):
    """Runs a model on the calibration data and observes the inputs of layers; each engine has its own."""

    def __call__(
        self, paths: Sequence[str], observe: Callable[[str, np.ndarray], Any], values: Mapping[str, np.ndarray]
    ) -> None:
        """Run the model.

        Args:
            paths: Paths of the linear layers to observe.
            observe: Called with a path and the layer's inputs float32 [rows, n] of each batch, without padding.
            values: Kernels by path that replace the model's own.
        """
        ...


def quantized_values(
    read: Read, cfg: TransformerConfig, head: str, settings: QuantizationSettings | None = None, record: Record | None = None
) -> tuple[TransformerConfig, dict[str, np.ndarray]]:  # fmt: skip
    """Return the configuration of a quantized model and the values of its quantized layers by path.

    Args:
        read: Returns the floating-point parameters.
        cfg: The model.
        head: Its head.
        settings: What to quantize, and how. None: what the model was prepared for by quantization-aware training.
        record: Runs the model on calibration data, for settings that need it.

    Raises:
        InputError: The settings do not fit the model or need calibration data, the model is already quantized, or a weight is
            not finite.
    """
    quantization, settings = _plan(cfg, head, settings)
    _check_data(settings, record)
    spec = parameters(cfg.replace(quantization=None), head)
    values: dict[str, np.ndarray] = {}
    kernels: list[tuple[str, LayerQuantization]] = []
    for path in spec:  # from the inputs to the outputs
        layer, _, leaf = path.rpartition("/")
        layer_quantization = quantization.of(layer)
        if leaf == "embedding" and layer_quantization is not None:
            values[path], values[f"{path}_scale"] = quantize_table(_read_finite(read, path))
        elif leaf == "kernel" and layer_quantization is not None:
            kernels.append((layer, layer_quantization))
    rounded: dict[str, np.ndarray] = {}  # kernels of the stages so far, as the quantized layers have them
    is_trained = cfg.quantization is not None and cfg.quantization.simulated
    final = QuantizationConfig(tuple((path, replace(layer, input_scale=None)) for path, layer in quantization.layers))
    with Progress(len(kernels), None, "quantizing layers") as bar:
        for stage in _stages(kernels, settings):
            new = _quantize_kernels(read, stage, settings, record, rounded, not is_trained, bar)
            values |= new
            if settings.rounding == "gptq":
                for layer, layer_quantization in stage:
                    path = f"{layer}/kernel"
                    rounded[path] = dequantized_value(new.__getitem__, path, spec[path].shape, layer_quantization)
    return cfg.replace(quantization=final), values


def simulated_config(
    read: Read, cfg: TransformerConfig, head: str, settings: QuantizationSettings | None = None, record: Record | None = None
) -> TransformerConfig:  # fmt: skip
    """Return the configuration of a model for quantization-aware training.

    Scales of static activations are calibrated now and stay as they are in training (Wu et al. 2020,
    https://arxiv.org/abs/2004.09602, section 5).

    Args:
        read: Returns the model's parameters.
        cfg: The model.
        head: Its head.
        settings: What will be quantized, and how.
        record: Runs the model on calibration data, for static activations.

    Raises:
        InputError: The settings do not fit the model, need calibration data or are only for trained models, or the model is
            already quantized.
    """
    settings = settings or QuantizationSettings()
    if settings.rounding != "nearest":
        raise InputError(
            f"quantization-aware training rounds weights to the nearest, not with {settings.rounding!r}; prepare the model "
            f"without rounding=, or quantize the trained model with rounding={settings.rounding!r}"
        )
    quantization = resolve(settings, cfg, head)
    _check_data(settings, record)
    layers = dict(quantization.layers)
    kernels = {
        path: _read_finite(read, f"{path}/kernel") for path, layer in layers.items() if layer.activations == "static"
    }
    for path, inputs in _statistics(kernels, settings, record, {}).items():
        scale = inputs.input_scale(settings.calibration, settings.percentile)
        layers[path] = replace(layers[path], input_scale=float(scale))
    return cfg.replace(quantization=QuantizationConfig(tuple(layers.items()), simulated=True))


def check_trainable(cfg: TransformerConfig) -> None:
    """Raise InputError if a model's weights are integers, which cannot be trained."""
    if cfg.quantization is not None and not cfg.quantization.simulated:
        raise InputError(
            "the model is quantized, and integers cannot be trained; train the original with prepare_qat(model), or train "
            "dequantize(model) and quantize it again"
        )


def dequantized_values(
    read: Read, cfg: TransformerConfig, head: str
) -> tuple[TransformerConfig, dict[str, np.ndarray]]:
    """Return the configuration of a model without quantization, and the float32 values of all its quantized layers by path."""
    quantization = cfg.quantization
    if quantization is None or quantization.simulated:
        return cfg.replace(quantization=None), {}
    plain = cfg.replace(quantization=None)
    values = {}
    for path, parameter in parameters(plain, head).items():
        layer, _, leaf = path.rpartition("/")
        layer_quantization = quantization.of(layer) if leaf in ("kernel", "embedding") else None
        if layer_quantization is not None:
            values[path] = dequantized_value(read, path, parameter.shape, layer_quantization)
    return plain, values


def dequantized_value(read: Read, path: str, shape: tuple[int, ...], quantization: LayerQuantization) -> np.ndarray:
    """Return the float32 values of one quantized kernel or table.

    Args:
        read: Returns the quantized model's parameters.
        path: Path of the kernel or table.
        shape: Its shape in floating point.
        quantization: How it is quantized.
    """
    integers, scales = np.asarray(read(path)), np.asarray(read(f"{path}_scale"), np.float32)
    if path.endswith("/embedding"):
        return dequantize_table(integers, scales)
    integers = unpack_int4(integers, shape[0]) if quantization.bits == 4 else integers
    kernel = dequantize_kernel(integers, scales, quantization)
    if quantization.channel_scaled:
        channel_scale = np.asarray(read(f"{path.rpartition('/')[0]}/channel_scale"), np.float32)
        kernel = kernel * (np.float32(1) / channel_scale)[:, None]
    return kernel


def _plan(
    cfg: TransformerConfig, head: str, settings: QuantizationSettings | None
) -> tuple[QuantizationConfig, QuantizationSettings]:
    if settings is None and cfg.quantization is not None and cfg.quantization.simulated:
        return cfg.quantization, QuantizationSettings()
    settings = settings or QuantizationSettings()
    return resolve(settings, cfg, head), settings


def _stages(
    kernels: Sequence[tuple[str, LayerQuantization]], settings: QuantizationSettings
) -> list[list[tuple[str, LayerQuantization]]]:
    """Return the layers to quantize one after the other: block by block for GPTQ, whose later layers see the earlier errors.

    Within a block, all layers see the block as it was: one run of the calibration data per block instead of four or more.
    """
    if settings.rounding != "gptq":
        return [list(kernels)]
    return [list(group) for _, group in groupby(kernels, key=lambda item: "/".join(item[0].split("/")[:2]))]


def _quantize_kernels(
    read: Read, layers: Sequence[tuple[str, LayerQuantization]], settings: QuantizationSettings, record: Record | None,
    rounded: Mapping[str, np.ndarray], searches: bool, bar: Progress,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return the values of some linear layers; ``rounded`` has the kernels of the layers before them.

    With ``searches``, scales of 4 bits are searched; those of a model that was trained for its quantization are not.
    """
    kernels = {layer: _read_finite(read, f"{layer}/kernel") for layer, _ in layers}
    statistics = _statistics(kernels, settings, record, rounded)
    values = {}
    for layer, quantization in layers:
        seen = statistics.get(layer)
        values |= _quantize_kernel(layer, kernels[layer], quantization, settings, seen, searches)
        bar.advance(1)
    return values


def _check_data(settings: QuantizationSettings, record: Record | None) -> None:
    if settings.needs_data and record is None:
        need = "static activations" if settings.rounding == "nearest" else settings.rounding
        raise InputError(f"{need} need calibration data; pass batches= of typical inputs, a few hundred texts suffice")


def _statistics(
    kernels: Mapping[str, np.ndarray], settings: QuantizationSettings, record: Record | None, rounded: Mapping[str, np.ndarray]
) -> dict[str, InputStatistics]:  # fmt: skip
    """Return statistics of the inputs of linear layers; none if the settings need none. ``kernels`` are by layer."""
    if not settings.needs_data:
        return {}
    assert record is not None
    statistics = {
        layer: InputStatistics(len(kernel), settings.rounding == "gptq", settings.rounding == "awq", layer)
        for layer, kernel in kernels.items()
    }
    record(list(kernels), lambda path, rows: statistics[path].add(rows), rounded)
    unseen = [layer for layer, seen in statistics.items() if not seen.rows]
    if unseen:
        raise InputError(
            f"the calibration data never reached {unseen[0]!r}; pass inputs of the whole model, or skip it"
        )
    return statistics


def _quantize_kernel(
    layer: str, kernel: np.ndarray, quantization: LayerQuantization, settings: QuantizationSettings,
    seen: InputStatistics | None, searches: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    values: dict[str, Any] = {}
    if quantization.channel_scaled:
        assert seen is not None
        integers, scales, values[f"{layer}/channel_scale"] = awq(kernel, quantization, seen)
    elif settings.rounding == "gptq":
        assert seen is not None and seen.hessian is not None
        integers, scales = gptq(kernel, quantization, seen.hessian / seen.rows)
    else:
        integers, scales = quantize_kernel(kernel, quantization, kernel_scales(kernel, quantization, searches))
    values[f"{layer}/kernel"] = pack_int4(integers) if quantization.bits == 4 else integers
    values[f"{layer}/kernel_scale"] = scales
    if quantization.input_scale is not None:  # that the model was trained with
        values[f"{layer}/input_scale"] = np.float32(quantization.input_scale)
    elif quantization.activations == "static":
        assert seen is not None
        values[f"{layer}/input_scale"] = seen.input_scale(settings.calibration, settings.percentile)
    return values


def _read_finite(read: Read, path: str) -> np.ndarray:
    values = np.asarray(read(path), np.float32)
    check_finite(path, values)
    return values
