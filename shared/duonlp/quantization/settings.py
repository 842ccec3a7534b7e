"""What a user says about a quantization."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from duonlp.config import LayerQuantization
from duonlp.errors import InputError
from duonlp.util.suggestions import check_patterns, choice, unknown_setting

SCHEMES = {
    "int8": LayerQuantization(activations="dynamic"),
    "int8-static": LayerQuantization(activations="static"),
    "int8-weights": LayerQuantization(),
    "int4": LayerQuantization(bits=4, group_size=64),
}
"""Quantization of the linear layers by the name of a scheme."""

ROUNDINGS = "nearest", "gptq", "awq"
"""How weights become integers: each to the nearest; GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323); or AWQ (Lin et
al. 2023, https://arxiv.org/abs/2306.00978)."""

CALIBRATIONS = "min-max", "percentile", "mse"
"""How the range of a static scale is chosen from the inputs seen in calibration."""


@dataclass(frozen=True)
class QuantizationSettings:
    """What to quantize in a model, and how.

    Attributes:
        scheme: "int8" quantizes weights per output channel and activations per row while the model runs; "int8-static" uses one
            calibrated scale per layer for the activations; "int8-weights" and "int4" quantize only the weights.
        layers: Patterns of paths of linear layers, such as ``*/feed_forward/*``, as of fnmatch; all by default.
        skip: Patterns of paths to leave in floating point.
        embeddings: Whether to store the rows of word, position and token type tables in 8 bits.
        output: Whether to quantize the output layers of heads, which map to labels or the vocabulary. A vocabulary that is tied
            to the word table is quantized with it.
        rounding: One of ROUNDINGS. "gptq" and "awq" need calibration data.
        calibration: One of CALIBRATIONS, for static scales.
        percentile: Percentage of the inputs that the range covers, for "percentile".
        group_size: Inputs per scale of a scheme that quantizes only weights; by default that of the scheme.
    """

    scheme: str = "int8"
    layers: Sequence[str] = ("*",)
    skip: Sequence[str] = ()
    embeddings: bool = True
    output: bool = True
    rounding: str = "nearest"
    calibration: str = "min-max"
    percentile: float = 99.99
    group_size: int | None = None

    def __post_init__(self):
        choice("scheme", self.scheme, SCHEMES)
        choice("rounding", self.rounding, ROUNDINGS)
        choice("calibration", self.calibration, CALIBRATIONS)
        for name in ("embeddings", "output"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}; expected True or False")
        size = self.group_size
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise InputError(f"group_size is {size!r}; expected a positive integer or None")
        for name in ("layers", "skip"):
            object.__setattr__(self, name, check_patterns(name, getattr(self, name)))
        if self.rounding == "awq" and SCHEMES[self.scheme].activations != "float":
            raise InputError(f"AWQ quantizes only weights; use it with 'int8-weights' or 'int4', not {self.scheme!r}")
        if not 50 < self.percentile <= 100:
            raise InputError(f"percentile is {self.percentile!r}; it must be above 50 and at most 100")

    @property
    def needs_data(self) -> bool:
        """Whether the settings need calibration data."""
        return self.scheme == "int8-static" or self.rounding != "nearest"

    @classmethod
    def of(cls, scheme: str | None, settings: Mapping[str, Any]) -> "QuantizationSettings | None":
        """Return the settings of a call; None if it gives none.

        Args:
            scheme: Name of the scheme, or None.
            settings: Other fields.

        Raises:
            InputError: A setting is unknown or invalid.
        """
        names = [field.name for field in fields(cls)]
        for name in settings:
            if name not in names:
                raise InputError(unknown_setting(name, names, "quantization"))
        if scheme is None and not settings:
            return None
        options: dict[str, Any] = {} if scheme is None else {"scheme": scheme}
        return cls(**options, **settings)
