"""Rotary position embeddings in config.json, shared by the family files."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from duonlp.config import UNLIMITED
from duonlp.errors import ConfigError
from duonlp.layer_config import SCALINGS, RotaryConfig, RotaryScaling
from duonlp.schema import ANY, BOOL, POSITIONS, RATE, TEXT, list_of, number, table

NAMES = {"kind": "rope_type", "original_max_positions": "original_max_position_embeddings"}
"""Fields of RotaryScaling whose names differ in config.json."""

REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Keys without which Transformers cannot scale either."""

DEFAULT_BASE = 10_000.0
"""Base of most families, and of Transformers for keys that are missing."""

HAS_ORIGINAL = ("yarn", "llama3", "longrope")
"""Kinds of scaling that depend on the number of positions of pretraining."""


BASE = number(1, 1e30, above=True)
_FACTOR, _ROTATIONS = number(-1e6, 1e6), number(1e-3, 1e6)
_KINDS = {
    "rope_type": TEXT, "type": TEXT, "rope_theta": BASE, "partial_rotary_factor": RATE, "factor": _FACTOR,
    "original_max_position_embeddings": POSITIONS, "attention_factor": number(0, 1e6), "beta_fast": _ROTATIONS,
    "beta_slow": _ROTATIONS, "mscale": number(0, 1e6), "mscale_all_dim": number(0, 1e6), "truncate": BOOL,
    "short_factor": list_of(_FACTOR), "long_factor": list_of(_FACTOR), "low_freq_factor": number(-1e6, 1e6),
    "high_freq_factor": number(-1e6, 1e6), "mrope_section": ANY,
}  # fmt: skip
_PARAMETERS = table({key: kind | None for key, kind in _KINDS.items()}) | None
ROTARY_SCHEMA = {
    "rope_scaling": _PARAMETERS, "rope_parameters": _PARAMETERS, "rope_theta": BASE | None, "partial_rotary_factor": RATE | None,
    "original_max_position_embeddings": POSITIONS | None,
}  # fmt: skip
"""Kinds of the keys that :func:`pop_rotary` reads."""


def pop_rotary(
    hf: dict[str, Any], head_dim: int, max_positions: int, base: float = DEFAULT_BASE, partial: bool = False
) -> RotaryConfig:
    """Remove the keys of a rotary position embedding from ``hf`` and return what they say.

    Reads ``rope_parameters`` of Transformers 5, and ``rope_theta`` and ``rope_scaling`` of earlier versions, which win as
    they do there.

    Args:
        hf: Contents of config.json, modified in place.
        head_dim: Width of one attention head.
        max_positions: Number of positions of the model, ``max_position_embeddings``.
        base: The family's default base.
        partial: Whether the family can rotate a part of each head.

    Raises:
        ConfigError: See :func:`rotary`.
    """
    scaling, parameters = hf.pop("rope_scaling", None), hf.pop("rope_parameters", None)
    others = {key: hf.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in hf}
    values = others | dict(scaling or parameters or {})
    factor = values.get("partial_rotary_factor")
    if not partial and factor not in (None, 1.0):
        raise ConfigError(f"config option partial_rotary_factor={factor} is not supported; only 1.0 is")
    original = NAMES["original_max_positions"]
    if hf.get(original) is not None:
        values[original] = hf.pop(original)
    return rotary(values, head_dim, max_positions, base)


def rotary(
    parameters: Mapping[str, Any], head_dim: int, max_positions: int, base: float = DEFAULT_BASE
) -> RotaryConfig:
    """Return the rotary position embedding that Transformers' ``rope_parameters`` describe.

    Args:
        parameters: The parameters, of all layers or of one kind of layers.
        head_dim: Width of one attention head.
        max_positions: Number of positions of the model.
        base: The family's default base.

    Raises:
        ConfigError: The kind of scaling is unsupported, or a parameter is missing or out of range.
    """
    values: dict[str, Any] = {
        key: tuple(x) if isinstance(x, list) else x for key, x in parameters.items() if x is not None
    }
    kind = values.get("rope_type", values.get("type", "default"))
    size, scaling = int(head_dim * values.get("partial_rotary_factor", 1.0)), None
    if "mrope_section" in values:
        raise ConfigError(
            "rotary positions with several axes (mrope_section) are not supported; only text positions are"
        )
    if kind not in ("default", *SCALINGS):
        raise ConfigError(f"rope_type {kind!r} is not supported; use one of default, {', '.join(SCALINGS)}")
    if kind != "default":
        names = {f.name: NAMES.get(f.name, f.name) for f in fields(RotaryScaling)}
        options: dict[str, Any] = {name: values[key] for name, key in names.items() if key in values}
        options["kind"] = kind
        options.setdefault("original_max_positions", max_positions if kind in HAS_ORIGINAL else None)
        if "factor" not in options and kind in ("yarn", "longrope") and ("factor" in parameters or kind == "longrope"):
            options["factor"] = max_positions / options["original_max_positions"]
        _check(kind, options, size)
        scaling = RotaryScaling(**options)
    return RotaryConfig(size, float(values.get("rope_theta", base)), scaling, max_positions=max_positions)


def _check(kind: str, options: Mapping[str, Any], size: int) -> None:
    """Raise ConfigError if options of a RotaryScaling are missing or out of range."""
    for name in REQUIRED[kind]:
        if name not in options:
            raise ConfigError(f"rope_type {kind!r} needs {name}; add it to rope_parameters")
    if not options["factor"] >= 1e-3:
        raise ConfigError(f"the factor of rope_type {kind!r} is {options['factor']}; use at least 0.001")
    for name in ("short_factor", "long_factor"):
        if kind == "longrope" and min(options[name], default=1) < 1e-3:
            raise ConfigError(f"{name} holds {min(options[name])}; use numbers of at least 0.001")
        if kind == "longrope" and len(options[name]) != size // 2:
            raise ConfigError(f"{name} has {len(options[name])} numbers; use {size // 2}, one per rotated pair")
    if kind == "llama3" and not 0 < options["low_freq_factor"] < options["high_freq_factor"]:
        raise ConfigError(
            f"low_freq_factor is {options['low_freq_factor']} and high_freq_factor {options['high_freq_factor']}; the former "
            "must be positive and the latter above it"
        )
    if kind == "longrope" and options["original_max_positions"] < 2:
        raise ConfigError("rope_type 'longrope' needs at least 2 original_max_position_embeddings; this model has 1")
    if kind == "dynamic" and size < 4:
        raise ConfigError(f"rope_type 'dynamic' needs at least 4 rotated dimensions, but this model has {size}")


def rotary_hf(rotary: RotaryConfig, head_dim: int) -> dict[str, Any]:
    """Return the keys of config.json; the inverse of :func:`pop_rotary`, for Transformers 5 and earlier versions."""
    parameters: dict[str, Any] = {"rope_type": "default"}
    if rotary.scaling is not None:
        options = {f.name: getattr(rotary.scaling, f.name) for f in fields(RotaryScaling)}
        options = {name: list(x) if isinstance(x, tuple) else x for name, x in options.items() if x is not None}
        if rotary.scaling.kind != "yarn":
            del options["truncate"]
        parameters = {NAMES.get(name, name): x for name, x in options.items()}
    partial = {} if rotary.size == head_dim else {"partial_rotary_factor": rotary.size / head_dim}
    keys = {"rope_parameters": parameters | {"rope_theta": rotary.base} | partial}
    if rotary.scaling is None and rotary.base == DEFAULT_BASE and not partial:
        return keys  # earlier versions need no key for this
    return keys | {"rope_scaling": rotary.scaling and parameters, "rope_theta": rotary.base} | partial


def longest_input(rotary: RotaryConfig) -> int:
    """Return the length of the longest text of a model: its positions, or as many as its scaling extends them to."""
    assert rotary.max_positions is not None
    if rotary.scaling is None:
        return rotary.max_positions
    original = rotary.scaling.original_max_positions or rotary.max_positions
    return max(rotary.max_positions, min(int(rotary.scaling.factor * original), UNLIMITED))
