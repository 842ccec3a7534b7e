"""Published figures of TPU chips, the peaks that measured and predicted speeds are compared with."""

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """Published figures of a TPU chip.

    Attributes:
        name: Name in a topology or an accelerator type: "v5e" in "v5e:16x16".
        peak_flops_bf16: FLOP/s of matrix products with bfloat16 operands, over all cores of the chip.
        hbm_bytes: High-bandwidth memory in bytes.
        hbm_bandwidth: Bytes/s between that memory and the cores.
        ici_bandwidth: Bytes/s the chip can send to its neighbors over all its links together, one way. A slice that does
            not wrap around, or has fewer dimensions, uses fewer links.
        ici_links: Links to neighboring chips: 4 in a two-dimensional torus, 6 in a three-dimensional one.
        cores: TensorCores, 1 or 2. JAX shows the two of a v4 or v5p as one device ("megacore").
        source: Source of the figures.
    """

    name: str
    peak_flops_bf16: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    ici_links: int
    cores: int
    source: str

    @property
    def link_bandwidth(self) -> float:
        """Bytes/s of one link, one way."""
        return self.ici_bandwidth / self.ici_links


_CHIPS = (
    Chip(
        name="v3",
        peak_flops_bf16=123e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=900e9,
        ici_bandwidth=4 * 70e9,
        ici_links=4,
        cores=2,
        source="cloud.google.com/tpu/docs/v3; links: Jouppi et al. 2023 (TPU v4), table 4",
    ),
    Chip(
        name="v4",
        peak_flops_bf16=275e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1200e9,
        ici_bandwidth=6 * 50e9,
        ici_links=6,
        cores=2,
        source="cloud.google.com/tpu/docs/v4; links: Jouppi et al. 2023 (TPU v4), table 4",
    ),
    Chip(
        name="v5e",
        peak_flops_bf16=197e12,
        hbm_bytes=16 * GIB,
        hbm_bandwidth=819e9,
        ici_bandwidth=200e9,  # published as 1600 Gbit/s, and as 400 GB/s both ways
        ici_links=4,
        cores=1,
        source="cloud.google.com/tpu/docs/v5e",
    ),
    Chip(
        name="v5p",
        peak_flops_bf16=459e12,
        hbm_bytes=95 * GIB,
        hbm_bandwidth=2765e9,
        ici_bandwidth=600e9,  # published as 4800 Gbit/s, and as 1200 GB/s both ways
        ici_links=6,
        cores=2,
        source="cloud.google.com/tpu/docs/v5p",
    ),
    Chip(
        name="v6e",
        peak_flops_bf16=918e12,
        hbm_bytes=32 * GIB,
        hbm_bandwidth=1638e9,
        ici_bandwidth=400e9,  # published as 800 GB/s both ways
        ici_links=4,
        cores=1,
        source="cloud.google.com/tpu/docs/v6e",
    ),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""Chips by name."""

DEVICE_KINDS: dict[str, str] = {
    "TPU v3": "v3",
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}
"""JAX device kind -> name of the chip. Each of the two cores of a v3 is a device."""


def device_peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of a JAX device kind; None if it is not published here, such as for a CPU."""
    name = DEVICE_KINDS.get(device_kind)
    if name is None:
        return None
    return CHIPS[name].peak_flops_bf16 / (2 if name == "v3" else 1)
