"""Pods that are not there: the devices of a TPU slice, for the compiler alone, on a machine without a TPU.

``jax.experimental.topologies`` asks libtpu to describe a slice; programs are then compiled for it ahead of time, as they
would be on the slice itself, and cannot be run. libtpu is told not to look for a metadata server, and makes no network
calls at all.
"""

import contextlib
import importlib.util
import os
import re
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError, MissingExtraError
from jaxnlp.training.chips import CHIPS, Chip

FAMILIES: dict[str, dict] = {
    "v5e": {"chip_config_name": "default", "chips_per_host_bounds": (2, 2, 1), "num_slices": 1},
    "v6e": {},
    "v5p": {},
    "v4": {"chip_config_name": "megacore"},
}
"""What get_topology_desc needs for each family of chips. v4 and v5p: both cores of a chip are one device."""

EXAMPLES = ("v5e:2x2", "v5e:4x4", "v5e:16x16", "v6e:16x16", "v5p:2x2x1", "v5p:4x4x4", "v4:4x4x4")
LARGEST_SIDE = {"v5e": 16, "v6e": 16}
CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9}
"""Cycles a second: v4's is published (Jouppi et al. 2023), the others make the peak that is from 128 x 128 matrix units."""
CUBE = 4
"""A v4 or v5p slice wraps around along a dimension of so many chips or a multiple (Jouppi et al. 2023, section 2.2)."""

QUIET = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so another process may have it loaded at the same time
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server: on other machines than Google's, waiting for it takes minutes
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",  # what it would have asked it
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_LOG_DIR": "disabled",
}


@dataclass(frozen=True)
class Topology:
    """A slice of a pod.

    name: such as "v5e:16x16".
    chip: the published figures of its chips; one device is one chip.
    shape: chips along each dimension of the torus.
    devices: for a Mesh; nothing can be put on them.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    devices: tuple

    @property
    def clock(self) -> float | None:
        """Cycles a second, where known."""
        return CLOCKS.get(self.chip.name)

    def wraps(self, dimension: int) -> bool:
        """Whether the last chip along a dimension is linked to the first, so that it is a ring."""
        size = self.shape[dimension]
        return size == LARGEST_SIDE[self.chip.name] if self.chip.name in LARGEST_SIDE else size % CUBE == 0

    def group_bandwidth(self, group) -> float:
        """Bytes/s that each chip of a group can send within it, over the links that lie along the group.

        Along each dimension that the group spans a chip has two links, or one where there is no way around: the chips
        of a line pass everything on in both directions, and its ends have one neighbour only.

        Args:
            group: the devices that exchange something.
        """
        places = np.array([device.coords for device in group])
        links = 0
        for dimension in range(len(self.shape)):
            span = len(np.unique(places[:, dimension]))
            if span > 1:
                links += 2 if span == self.shape[dimension] and self.wraps(dimension) else 1
        return max(links, 1) * self.chip.link_bandwidth


def topology(name: str) -> Topology:
    """The devices of a slice, such as "v5e:16x16", "v6e:16x16", "v5p:4x4x4" or "v4:4x4x4".

    Raises:
        InputError: no such chip, or no slice of that shape.
        MissingExtraError: libtpu is not installed.
    """
    chip, shape = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise MissingExtraError(f'describing {name} needs libtpu; pip install "duonlp[topology]"')
    from jax.experimental import topologies

    options = dict(FAMILIES[chip])
    if shape == (1, 1):
        options |= {"chip_config_name": "default", "chips_per_host_bounds": (1, 1, 1), "num_slices": 1}
    with _environment(QUIET):
        try:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=f"{chip}:{'x'.join(map(str, shape))}", **options
            )
        except Exception as error:
            why = " ".join(str(error).split())
            raise InputError(f"there is no topology {name!r}: {why}; some that work: {', '.join(EXAMPLES)}") from error
    return Topology(name, CHIPS[chip], shape, tuple(found.devices))


def parse(name: str) -> tuple[str, tuple[int, ...]]:
    """ "v5e:16x16" as ("v5e", (16, 16)); raises InputError for a name that no topology can have."""
    works = f"give CHIP:SHAPE with a chip of {', '.join(FAMILIES)}, such as {', '.join(EXAMPLES)}"
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", name.strip().lower())
    if match is None or match[1] not in FAMILIES:
        raise InputError(f"the topology {name!r} is not known; {works}")
    shape = tuple(int(size) for size in match[2].split("x"))
    dimensions = CHIPS[match[1]].ici_links // 2
    if len(shape) != dimensions or 0 in shape:
        raise InputError(f"the topology {name!r} has {len(shape)} dimensions, a {match[1]} has {dimensions}; {works}")
    largest = LARGEST_SIDE.get(match[1])
    if largest and max(shape) > largest:
        raise InputError(f"the topology {name!r} is larger than a pod of {match[1]}, {largest}x{largest}; {works}")
    return match[1], shape


@contextlib.contextmanager
def _environment(variables):
    """Environment variables for a while, where they are not set already."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
