"""What to export: the format, the shapes, and whether weights are integers."""

from dataclasses import dataclass, replace

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.input_specs import InputSpec
from duonlp.tasks.base import check_choice, check_int

TOLERANCES = {"onnx": 1e-5, "litert": 1e-4, "savedmodel": 1e-5, "stablehlo": 1e-5}
"""Formats, and the largest difference from the engine's outputs, relative to the largest output."""

INT8 = ("dynamic", "static")
"""Kinds of int8 graphs: activations are quantized while the graph runs, or with ranges that were calibrated before."""

OPSETS = range(13, 19)
"""Opsets of ONNX that tf2onnx writes and that have every operation of the models."""

DEFAULT_OPSET = 18

SIZES = {"batch_size": "batch", "length": "length", "target_length": "target_length"}
"""Settings of static shapes, and the axes whose size they fix."""


@dataclass(frozen=True)
class ExportSettings:
    """Settings of an export.

    Attributes:
        to: "onnx", "litert", "savedmodel" or "stablehlo".
        opset: Opset of ONNX; None for the newest that is supported.
        batch_size: Number of rows that the graph takes; None for any.
        length: Number of tokens that it takes; None for any.
        target_length: Number of tokens of an encoder-decoder's targets; None for any.
        int8: "dynamic" quantizes the weights of matrix products to int8 per channel, and activations while the graph runs;
            "static" (ONNX) activations with calibrated ranges. None for float32.
        cache: Whether models that generate text are exported as steps with past keys and values, which ``generate`` runs,
            instead of one pass over whole texts.
        tolerance: Largest difference from the engine's outputs, relative to the largest output; None for that of
            :data:`TOLERANCES`, and for no limit with `int8`.

    Raises:
        InputError: A value is invalid, or a setting does not apply to the format.
    """

    to: str = "onnx"
    opset: int | None = None
    batch_size: int | None = None
    length: int | None = None
    target_length: int | None = None
    int8: str | None = None
    cache: bool = True
    tolerance: float | None = None

    def __post_init__(self):
        check_choice("to", self.to, tuple(TOLERANCES))
        check_choice("int8", self.int8, (None, *INT8))
        for name in SIZES:
            check_int(name, getattr(self, name), minimum=1, optional=True)
        if self.tolerance is not None and not self.tolerance > 0:
            raise InputError(f"tolerance is {self.tolerance}; it must be positive")
        if self.opset is not None and self.to != "onnx":
            raise InputError(f"opset={self.opset} is of ONNX and has no effect on {self.to}; omit it")
        if self.opset is not None and self.opset not in OPSETS:
            raise InputError(f"opset is {self.opset}; it must be from {OPSETS[0]} to {OPSETS[-1]}")
        if self.int8 and (self.to, self.int8) not in (("onnx", "dynamic"), ("onnx", "static"), ("litert", "dynamic")):
            raise InputError(f"{self.int8} int8 is not supported for {self.to}; use onnx, or dynamic int8 with litert")

    @property
    def limit(self) -> float | None:
        """Largest relative difference that is accepted; None for no limit."""
        if self.tolerance is not None:
            return self.tolerance
        return None if self.int8 else TOLERANCES[self.to]

    def fix_sizes(self, specs: tuple[InputSpec, ...], config: TransformerConfig) -> tuple[InputSpec, ...]:
        """Return inputs whose axes have the static sizes.

        Raises:
            InputError: No input has such an axis, or the model has fewer positions.
        """
        sizes = {axis: size for name, axis in SIZES.items() if (size := getattr(self, name)) is not None}
        for name, axis in SIZES.items():
            if axis in sizes and not any(axis in spec.axes for spec in specs):
                raise InputError(f"{name}={sizes[axis]} fixes an axis that no input of this graph has; omit it")
        if sizes.get("length", 0) > config.max_length:
            raise InputError(
                f"length is {sizes['length']}, but this {config.model_type} has {config.max_length} positions; shorten it"
            )
        return tuple(
            replace(spec, sizes=(*spec.sizes, *((a, n) for a, n in sizes.items() if a in spec.axes))) for spec in specs
        )
