"""XLA flags, set only where every installed XLA knows them.

jaxlib and TensorFlow each bring an XLA of their own. Both read the environment variable XLA_FLAGS, and both end the process
on a flag that they do not know. Flags come and go between releases.
"""

import importlib.util
import mmap
import os
from collections.abc import Mapping, MutableMapping
from functools import cache
from pathlib import Path

PACKAGES = ("jaxlib", "tensorflow")
"""Packages that contain an XLA."""
PLUGINS = "jax_plugins"
"""The namespace of JAX's plugins; those of GPUs contain an XLA as well."""
HOST_DEVICES = "xla_force_host_platform_device_count"
"""The oldest flag that we set. A library that defines it is one that parses XLA_FLAGS."""
SUFFIXES = (".so", ".dylib", ".dll", ".pyd")


def add_xla_flags(
    flags: Mapping[str, str | int], environment: MutableMapping[str, str] | None = None, *, override: bool = False
) -> tuple[str, ...]:
    """Add flags to XLA_FLAGS in an environment, and return the names of those left out because some XLA lacks them.

    Call it before a framework first compiles or lists its devices: XLA reads the variable once.

    Args:
        flags: name, without dashes, to value.
        environment: what is changed, such as the environment of a new process; os.environ by default.
        override: replace the value of a flag that XLA_FLAGS has already; by default it keeps its value.
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
    if words:
        environment["XLA_FLAGS"] = " ".join(words)
    return tuple(missing)


def has_xla_flag(name: str) -> bool:
    """Return whether every installed XLA defines a flag; False if one of them cannot be found to look it up."""
    groups = xla_libraries()
    return bool(groups) and all(group and all(_defines(library, name) for library in group) for group in groups)


def _name(word: str) -> str:
    return word.lstrip("-").partition("=")[0]


@cache
def xla_libraries() -> tuple[tuple[Path, ...], ...]:
    """Return the libraries that parse XLA_FLAGS, for each installed package that has an XLA; no package is imported."""
    groups = []
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None:
            groups.append(_parsers(Path(place) for place in spec.submodule_search_locations or ()))
    spec = importlib.util.find_spec(PLUGINS)
    plugins = [child for place in (spec and spec.submodule_search_locations) or () for child in Path(place).iterdir()]
    groups += [libraries for libraries in map(_parsers, ([plugin] for plugin in plugins)) if libraries]
    return tuple(groups)


def _parsers(folders) -> tuple[Path, ...]:
    """The shared libraries in folders of a package, and in their ``python`` folders, that parse XLA_FLAGS."""
    files = (file for folder in folders for part in ("*", "python/*") for file in sorted(folder.glob(part)))
    libraries = (file for file in files if set(file.suffixes) & set(SUFFIXES) and file.stat().st_size > 2**20)
    return tuple(library for library in libraries if _defines(library, HOST_DEVICES))


@cache
def _defines(library: Path, name: str) -> bool:
    """Look for a flag's name as a C string: the names of protocol buffer fields, which outlive flags, do not end in NUL.

    To read all of TensorFlow and jaxlib takes 0.2 s when the files are in memory, and an import needs them there anyway.
    """
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(name.encode() + b"\0") >= 0
