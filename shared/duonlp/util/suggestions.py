"""What a person may have meant: messages about a name that there is not."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


def nearest(value: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'jax'?" for "jaxx", the end of a message, and nothing where no name is near."""
    names = {name.lower(): name for name in allowed}
    close = get_close_matches(value.lower(), list(names), n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def unknown_setting(key: str, known: Sequence[str], what: str) -> str:
    """The message for a key that is no setting of what: those that there are, and the nearest."""
    return f"{key!r} is no setting of {what}; there are {', '.join(known)}{nearest(key.replace('-', '_'), known)}"
