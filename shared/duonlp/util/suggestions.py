"""Error messages that suggest the nearest valid name."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

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


def check_patterns(name: str, patterns: Any) -> tuple[str, ...]:
    """Return patterns of paths as a tuple, or raise an InputError that names the setting unless they are a list of texts."""
    if isinstance(patterns, str) or not all(isinstance(pattern, str) for pattern in patterns):
        raise InputError(f"{name} is {patterns!r}; pass a list of patterns, such as ['*/feed_forward/*']")
    return tuple(patterns)


def select_layers(paths: Sequence[str], layers: Sequence[str], skip: Sequence[str]) -> list[str]:
    """Return the paths of layers that match a pattern of ``layers``, as of fnmatch, and none of ``skip``.

    Raises:
        InputError: A pattern matches no path.
    """
    for name, patterns in (("layers", layers), ("skip", skip)):
        for pattern in patterns:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise InputError(
                    f"{name} has the pattern {pattern!r}, which matches no layer of the model{nearest(pattern, paths)}; its "
                    f"layers are {', '.join(paths[:4])} ..."
                )

    def matches(path: str, patterns: Sequence[str]) -> bool:
        return any(fnmatchcase(path, pattern) for pattern in patterns)

    return [path for path in paths if matches(path, layers) and not matches(path, skip)]
