"""Devices of a TPU slice to compile for, on a machine without a TPU.

``jax.experimental.topologies`` lets libtpu describe a slice. Programs are compiled for it ahead of time as they would be on
the slice itself; they cannot be run. libtpu is set to skip the metadata server and makes no network calls.
"""

import contextlib
import importlib.util
import os
import re
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from jaxnlp.training.chips import CHIPS, Chip

FAMILIES: dict[str, dict[str, Any]] = {
    "v5e": {"chip_config_name": "default", "chips_per_host_bounds": (2, 2, 1), "num_slices": 1},
    "v6e": {},
    "v5p": {},
    "v4": {"chip_config_name": "megacore"},
}
"""Options of get_topology_desc by chip. On v4 and v5p, both cores of a chip are one device."""

EXAMPLES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v4:4x4x4")
LARGEST_SIDE = {"v5e": 16, "v6e": 16}
"""Chips along one side of a full pod, where that is what wraps around."""

CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9}
"""Cycles per second. That of v4 is published (Jouppi et al. 2023); the others follow from peak FLOP/s and 128 x 128 units."""

CUBE = 4
"""A v4 or v5p slice wraps around along dimensions that are a multiple of this (Jouppi et al. 2023, section 2.2)."""

QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so another process may have loaded it
    "TPU_SKIP_MDS_QUERY": "1",  # outside Google Cloud, waiting for the metadata server takes minutes
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # what that server would answer
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod.

    Attributes:
        name: Name such as "v5e:16x16".
        chip: Published figures of its chips; one device is one chip.
        shape: Chips along each dimension of the torus.
        devices: Devices for a Mesh; they cannot hold arrays.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple[Any, ...]

    @property
    def clock(self) -> float | None:
        """Cycles per second; None if unknown."""
        return CLOCKS.get(self.chip.name)

    def wraps(self, dimension: int) -> bool:
        """Return whether the last chip along a dimension is linked to the first, which makes it a ring."""
        size = self.shape[dimension]
        return size == LARGEST_SIDE[self.chip.name] if self.chip.name in LARGEST_SIDE else size % CUBE == 0

    def group_bandwidth(self, group: Sequence[Any]) -> float:
        """Return the bytes/s that each chip of a group can send within it, over the links along the group.

        A chip has two links along each dimension that the group spans. Only one of them counts if the dimension does not wrap
        around, because the ends of a line have a single neighbor.

        Args:
            group: Devices of the group.
        """
        places = np.array([device.coords for device in group])
        links = 0
        for dimension in range(len(self.shape)):
            span = len(np.unique(places[:, dimension]))
            if span > 1:
                links += 2 if span == self.shape[dimension] and self.wraps(dimension) else 1
        return max(links, 1) * self.chip.link_bandwidth


def topology(name: str) -> Topology:
    """Return the slice of a name such as "v5e:16x16", "v6e:16x16", "v5p:4x4x4" or "v4:4x4x4".

    Raises:
        InputError: The chip is unknown, or has no slice of that shape.
        MissingExtraError: libtpu is not installed.
    """
    chip, shape = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise MissingExtraError(f'compiling for {name} requires libtpu; install it with pip install "duonlp[topology]"')
    from jax.experimental import topologies

    options = dict(FAMILIES[chip])
    if shape == (1, 1):
        options |= {"chip_config_name": "default", "chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    with _environment(QUIET):
        try:
            description = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip}:{'x'.join(map(str, shape))}", **options
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"the topology {name!r} is unsupported ({reason}); use one such as {', '.join(EXAMPLES)}"
            ) from error
    return Topology(name, CHIPS[chip], shape, tuple(description.devices))


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """Parse a name: "v5e:16x16" -> ("v5e", (16, 16)).

    Raises:
        InputError: The name is malformed, the chip unknown, or the shape impossible for the chip.
    """
    expected = f"use CHIP:SHAPE with one of the chips {', '.join(FAMILIES)}, such as {', '.join(EXAMPLES)}"
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name.strip().lower())
    if match is None or match[1] not in FAMILIES:
        raise InputError(f"unknown topology {name!r}; {expected}")
    shape = tuple(int(size) for size in match[2].split("x"))
    dimensions = CHIPS[match[1]].ici_links // 2
    if len(shape) != dimensions or 0 in shape:
        raise InputError(
            f"the topology {name!r} has the shape {match[2]}, but a {match[1]} slice has {dimensions} dimensions, each at "
            f"least 1; {expected}"
        )
    largest = LARGEST_SIDE.get(match[1])
    if largest and max(shape) > largest:
        raise InputError(f"the topology {name!r} is larger than a {match[1]} pod, {largest}x{largest}; {expected}")
    return match[1], shape


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Generator[None, None, None]:
    """Set environment variables that are not set already, and unset them on exit."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
