"""The floating point types both engines compute in."""

from duonlp.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


TRAINED_IN = ("float32", "bfloat16")
"""What a run computes in: float16 has no room for gradients, unless losses are scaled, as Keras' own fit does."""


def check_dtype(dtype, argument: str = "dtype", allowed: tuple[str, ...] = DTYPES) -> str:
    """The name of a dtype; raises InputError when it is none of those that are allowed."""
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    if name not in allowed:
        raise InputError(f"{argument} {name!r} is not supported; choose one of {', '.join(allowed)}")
    return name
