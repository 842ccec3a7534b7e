"""What a person may have meant: the end of a message about a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(value: str, allowed: Iterable[str]) -> str:
    """ "; did you mean 'jax'?" for "jaxx", and nothing where no name is near."""
    names = {name.lower(): name for name in allowed}
    close = get_close_matches(value.lower(), list(names), n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""
