"""What a person may have meant: messages about a name that there is not."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from duonlp.errors import InputError


def nearest(value: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'jax'?" for "jaxx", the end of a message, and nothing where no name is near."""
    names = {name.lower(): name for name in allowed}
    close = get_close_matches(value.lower(), list(names), n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def unknown_setting(key: str, known: Sequence[str], what: str) -> str:
    """The message for a key that is no setting of what: those that there are, and the nearest."""
    return f"{key!r} is no setting of {what}; there are {', '.join(known)}{nearest(key.replace('-', '_'), known)}"


def choice(what: str, value: str, allowed: Iterable[str]) -> str:
    """`value` if it is allowed; else an InputError that names the nearest."""
    if isinstance(value, str) and value in allowed:  # a TOML file has any kind
        return value
    raise InputError(f"{what} {value!r} is not one of {', '.join(allowed)}{nearest(str(value), allowed)}")
