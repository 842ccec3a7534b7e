"""Merge named results, so that none of them silently replaces another."""

from collections.abc import Mapping
from typing import Any

from duonlp.errors import InputError


def merge_named(first: Mapping[str, Any], second: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return both mappings as one dict.

    Args:
        first: Values by name.
        second: More values by other names.
        what: What has the names, for the error message, such as "the run and the latency function".

    Raises:
        InputError: A name is in both.
    """
    if both := [name for name in second if name in first]:
        raise InputError(f"{what} both have {', '.join(map(repr, both))}; rename one of them")
    return {**first, **second}
