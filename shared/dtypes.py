"""The floating point types both engines compute in."""

from shared.errors import InputError

DTYPES = ("float32", "bfloat16", "float16")


def check_dtype(dtype, argument: str = "dtype") -> str:
    """The name of a dtype; raises InputError when it is none of DTYPES."""
    name = getattr(dtype, "__name__", None) or getattr(dtype, "name", None) or str(dtype)
    if name not in DTYPES:
        raise InputError(f"{argument} {name!r} is not supported; choose one of {', '.join(DTYPES)}")
    return name
