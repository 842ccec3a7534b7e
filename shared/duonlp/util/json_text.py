"""Write JSON that every parser reads."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def to_json(value: Any, **options: Any) -> str:
    """Return a value as valid JSON, in which NaN and infinities, which JSON lacks, are null.

    Args:
        value: Numbers, texts, None, mappings and sequences; NumPy values and paths are converted.
        options: Further arguments of ``json.dumps``, such as ``indent``.

    Raises:
        TypeError: A value is of another type.
    """
    options = {"ensure_ascii": False, "default": _plain_value, "allow_nan": False, **options}
    try:
        text = json.dumps(value, **options)
    except ValueError:  # a number that is not finite
        value = _without_non_finite(value)
        text = json.dumps(value, **options)
    try:
        text.encode()
    except UnicodeEncodeError:  # an unpaired surrogate, which JSON can only escape
        return json.dumps(value, **options | {"ensure_ascii": True})
    return text


def _plain_value(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return _without_non_finite(value.tolist())
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON serializable")


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {_key(key): _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(item) for item in value]
    return value


def _key(key: Any) -> Any:
    return str(key) if isinstance(key, float) else key
