"""Floating-point compute dtypes that both engines support."""

from typing import Any

from duonlp.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")

TRAINING_DTYPES = ("float32", "bfloat16")
"""Dtypes of a training run. float16 underflows in gradients unless losses are scaled, as Keras' own fit does."""


FLOAT16_BOUND = 64504.0
"""Magnitude to which layers clamp their states in float16 where LayerConfig says so: 1000 below the largest number, as in
Transformers."""


def without_float16(dtype: Any) -> Any:
    """Return float32 in place of float16, and any other dtype, of any framework, unchanged."""
    return "float32" if check_dtype(dtype) == "float16" else dtype


def check_dtype(dtype: Any, argument: str = "dtype", allowed: tuple[str, ...] = DTYPES) -> str:
    """Return the name of a dtype.

    Args:
        dtype: A name, or a dtype of any framework.
        argument: Name of the argument, for the error message.
        allowed: Names to accept.

    Raises:
        InputError: The dtype is not among those allowed.
    """
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    if name not in allowed:
        raise InputError(f"{argument} {name!r} is not supported; choose one of {', '.join(allowed)}")
    return name
