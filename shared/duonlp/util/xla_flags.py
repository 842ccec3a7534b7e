"""Set XLA flags only if every installed XLA defines them.

jaxlib and TensorFlow each contain an XLA. Both read the environment variable XLA_FLAGS, and both abort the process on an
unknown flag. Flags come and go between releases.
"""

import importlib.util
import mmap
import os
from collections.abc import Iterable, Mapping, MutableMapping
from functools import cache
from pathlib import Path

PACKAGES = ("jaxlib", "tensorflow")
"""Packages that contain an XLA."""
PLUGINS = "jax_plugins"
"""Namespace package of JAX plugins; GPU plugins contain an XLA as well."""
HOST_DEVICES = "xla_force_host_platform_device_count"
"""The oldest flag set here. A library that defines it parses XLA_FLAGS."""
SUFFIXES = (".so", ".dylib", ".dll", ".pyd")


def add_xla_flags(
    flags: Mapping[str, str | int], environment: MutableMapping[str, str] | None = None, *, override: bool = False
) -> tuple[str, ...]:
    """Add flags to XLA_FLAGS in an environment, and return the names of those skipped because some XLA lacks them.

    Call it before a framework first compiles or lists its devices: XLA reads the variable once.

    Args:
        flags: Names, without dashes, to values.
        environment: Environment to change, such as that of a new process; os.environ by default.
        override: Replace the value of a flag that is already set; by default it is kept.
    """
    environment = os.environ if environment is None else environment
    words = environment.get("XLA_FLAGS", "").split()
    if override:
        words = [word for word in words if _name(word) not in flags]
    present = {_name(word) for word in words}
    missing = []
    for name, value in flags.items():
        if name in present:
            continue
        if has_xla_flag(name):
            words.append(f"--{name}={value}")
        else:
            missing.append(name)
    if words or "XLA_FLAGS" in environment:
        environment["XLA_FLAGS"] = " ".join(words)
    return tuple(missing)


def has_xla_flag(name: str) -> bool:
    """Return whether every installed XLA defines a flag; False if the library of one cannot be found."""
    groups = xla_libraries()
    return bool(groups) and all(group and all(_defines(library, name) for library in group) for group in groups)


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]


@cache
def xla_libraries() -> tuple[tuple[Path, ...], ...]:
    """Return the libraries that parse XLA_FLAGS, for each installed package with an XLA, without importing any."""
    groups = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            groups.append(_parsers(Path(place) for place in spec.submodule_search_locations or ()))
    spec = importlib.util.find_spec(PLUGINS)
    plugins = [child for place in (spec and spec.submodule_search_locations) or () for child in Path(place).iterdir()]
    groups += [libraries for libraries in map(_parsers, ([plugin] for plugin in plugins)) if libraries]
    return tuple(groups)


def _parsers(folders: Iterable[Path]) -> tuple[Path, ...]:
    """Return the shared libraries that parse XLA_FLAGS in folders of a package and in their ``python`` folders."""
    files = (file for folder in folders for part in ("*", "python/*") for file in sorted(folder.glob(part)))
    libraries = (file for file in files if set(file.suffixes) & set(SUFFIXES) and file.stat().st_size > 2**20)
    return tuple(library for library in libraries if _defines(library, HOST_DEVICES))


@cache
def _defines(library: Path, name: str) -> bool:
    """Search for a flag's name as a C string. Names of protocol buffer fields, which outlive flags, do not end in NUL.

    Reading all of TensorFlow and jaxlib takes 0.2 s from the page cache, where an import needs them anyway.
    """
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name.encode() + b"\0") >= 0
