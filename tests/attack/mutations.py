"""Small mutations of valid files: hostile values in JSON, JSON Lines and TOML, and damaged bytes.

A mutation is a pair (what was done, the new contents). Contents are bytes, or the number of NUL bytes of a file too large to
hold in memory twice.
"""

import json
import math
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np

from duonlp.training.settings_file import _format_value

NULS = 300 << 20
"""Size of the file of NUL bytes."""

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, -(2**31), 2**20, 10**6, 10**9, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, -(10**18),
    0.0, 0.5, 1.5, -0.5, 1e-320, 1e39, 1e308, math.nan, math.inf, -math.inf,
    "", " ", "0", "7", "1e9", "-1", "none", "null", "gelu", "float99", "\0", "\ud800", "é" * 40, "x" * 100_000, "[red]:smile:[/]",
    "../../../etc/passwd", "/dev/zero", "a\nb", "${HOME}", "{0.__class__}", "%s%n",
    [], [0], [None], [[]], [[[[]]]], [1, 2, 3], [10**9, 10**9], ["a", 1], [True], [math.nan], [0] * 5000, {}, {"": ""},
    {"a": None}, {"0": "a"}, {"1": "a"}, {"-1": "a"}, {"x": {"y": {"z": []}}}, {"rope_type": "yarn"},
    {"rope_type": ["linear"], "factor": "2"}, {"type": "dynamic", "factor": -1e308},
)  # fmt: skip
"""Values to put in the place of any other."""

Mutation = tuple[str, bytes | int]
Encoder = Callable[[Any], bytes]


def mutate(kind: str, data: bytes, rng: np.random.Generator) -> Mutation:
    """Return a mutation of a file's contents.

    Args:
        kind: "json", "jsonl", "toml" or "bytes".
        data: Valid contents.
        rng: Source of the random choices.
    """
    if kind == "bytes" or rng.random() < 0.15:
        return mutate_bytes(data, rng)
    if kind == "jsonl":
        lines = data.splitlines()
        number = int(rng.integers(len(lines)))
        what, line = mutate_tree(json.loads(lines[number]), rng, _json)
        return f"line {number + 1}: {what}", b"\n".join([*lines[:number], line, *lines[number + 1 :]]) + b"\n"
    if kind == "toml":
        return mutate_tree(tomllib.loads(data.decode()), rng, _toml)
    return mutate_tree(json.loads(data), rng, _json)


def mutate_tree(value: Any, rng: np.random.Generator, encode: Encoder) -> tuple[str, bytes]:
    """Return a mutation of a JSON or TOML value."""
    places = list(_places(value))
    if not places or rng.random() < 0.03:
        other = HOSTILE[rng.integers(len(HOSTILE))]
        return f"whole = {_short(other)}", encode(other)
    parent, key, path = places[rng.integers(len(places))]
    way = rng.random()
    if way < 0.72:
        other = HOSTILE[rng.integers(len(HOSTILE))]
        _set(parent, key, other)
        return f"{path} = {_short(other)}", encode(value)
    if way < 0.80:
        del parent[key]
        return f"without {path}", encode(value)
    if way < 0.86:
        depth = int(rng.choice([60, 900, 100_000]))
        opening, closing = [(b"[", b"]"), (b'{"a":', b"}")][rng.integers(2)]
        _set(parent, key, "@deep@")
        deep = opening * depth + b"1" + closing * depth
        return f"{path} nested {depth} deep", encode(value).replace(b'"@deep@"', deep)
    if way < 0.91:
        _set(parent, key, "@digits@")
        return f"{path} of 5000 digits", encode(value).replace(b'"@digits@"', b"9" * 5000)
    if way < 0.95 and isinstance(parent, dict):
        other = HOSTILE[rng.integers(len(HOSTILE))]
        parent[f"{key}@twice@"] = other
        return f"{path} twice, then {_short(other)}", encode(value).replace(b"@twice@", b"")
    if isinstance(parent, dict):
        parent[["", "__class__", "nope", "a" * 5000, "\ud800", "[/]"][rng.integers(6)]] = parent.pop(key)
        return f"{path} renamed", encode(value)
    parent.extend([parent[key]] * 3000)
    return f"{path} repeated 3000 times", encode(value)


def mutate_bytes(data: bytes, rng: np.random.Generator) -> Mutation:
    """Return a mutation of any file."""
    way, at = int(rng.integers(100)), int(rng.integers(max(1, len(data))))
    if way < 30:
        flipped = bytearray(data or b"\0")
        for place in rng.integers(len(flipped), size=rng.integers(1, 5)):
            flipped[place] ^= 1 << int(rng.integers(8))
        return f"bits flipped near {at}", bytes(flipped)
    if way < 55:
        return f"cut at byte {at}", data[:at]
    if way < 65:
        return f"8 random bytes at {at}", data[:at] + rng.bytes(8) + data[at + 8 :]
    if way < 72:
        return f"NULs at {at}", data[:at] + b"\0" * 64 + data[at:]
    if way < 78:
        return f"8 bytes of 0xff at {at}", data[:at] + b"\xff" * 8 + data[at + 8 :]
    if way < 83:
        return "byte order mark", b"\xef\xbb\xbf" + data
    if way < 88:
        return "UTF-16", data.decode("utf-8", "replace").encode("utf-16")
    if way < 91:
        return "twice", data * 2
    if way < 94:
        return "empty", b""
    if way < 96:
        return "100,000 brackets", b"[" * 100_000
    if way < 99:
        return f"{at} random bytes", rng.bytes(at)
    return "300 MB of NULs", NULS


def _places(value: Any, path: str = "", levels: int = 8) -> Any:
    """Yield (container, key, path) of everything in a tree, containers too."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:200]:
        yield value, key, f"{path}[{key!r}]"
        if levels:
            yield from _places(item, f"{path}[{key!r}]", levels - 1)


def _set(parent: Any, key: Any, value: Any) -> None:
    parent[key] = value


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _toml(value: Any) -> bytes:
    """Encode as TOML as far as it can be: what TOML lacks, such as null, makes the file invalid, which is a case, too."""
    if not isinstance(value, dict):
        return _toml_value(value).encode("utf-8", "surrogatepass")
    lines = [f"{_toml_value(key)} = {_toml_value(item)}" for key, item in value.items()]
    return "\n".join(lines).encode("utf-8", "surrogatepass") + b"\n"


def _toml_value(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(key)} = {_toml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml_value, value)) + "]"
    return _format_value(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:40]}... ({len(text)} characters)"
