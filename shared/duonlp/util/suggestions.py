"""Error messages that suggest the nearest valid name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from duonlp.errors import InputError


def nearest(value: str, allowed: Iterable[str]) -> str:
    """Return the end of a message about an unknown name, such as "; did you mean 'jax'?"; "" if no name is close."""
    names = {name.lower(): name for name in allowed}
    close = get_close_matches(value.lower(), list(names), n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def unknown_setting(key: str, allowed: Sequence[str], what: str) -> str:
    """Return the message for an unknown setting, with the allowed ones and the nearest of them."""
    hint = nearest(key.replace("-", "_"), allowed)
    return f"{key!r} is not a setting of {what}; choose from {', '.join(allowed)}{hint}"


def choice(what: str, value: str, allowed: Iterable[str]) -> str:
    """Return `value` if it is allowed; otherwise raise an InputError that suggests the nearest allowed value."""
    if isinstance(value, str) and value in allowed:  # a value from a TOML file may have any type
        return value
    raise InputError(f"{what} {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
