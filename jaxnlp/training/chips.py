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


TPU_V4 = "Jouppi et al. 2023 (TPU v4), table 4"
DOCS = "cloud.google.com/tpu/docs/"

_CHIPS = (
    Chip("v3", 123e12, 32 * GIB, 900e9, 4 * 70e9, 4, 2, f"{DOCS}v3; links: {TPU_V4}"),
    Chip("v4", 275e12, 32 * GIB, 1200e9, 6 * 50e9, 6, 2, f"{DOCS}v4; links: {TPU_V4}"),
    # Published as 1600 Gbit/s, 4800 Gbit/s and 800 GB/s between chips; the v5e also as 400 GB/s, and the v6e's are, both ways.
    Chip("v5e", 197e12, 16 * GIB, 819e9, 200e9, 4, 1, f"{DOCS}v5e"),
    Chip("v5p", 459e12, 95 * GIB, 2765e9, 600e9, 6, 2, f"{DOCS}v5p"),
    Chip("v6e", 918e12, 32 * GIB, 1638e9, 400e9, 4, 1, f"{DOCS}v6e"),
)

CHIPS: dict[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""Chips by name."""

DEVICE_KINDS: dict[str, str] = {
    "TPU v3": "v3", "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p",
    "TPU v6 lite": "v6e", "TPU v6e": "v6e",
}  # fmt: skip
"""JAX device kind -> name of the chip. Each of the two cores of a v3 is a device."""


def device_peak_flops(device_kind: str) -> float | None:
    """Return the peak bfloat16 FLOP/s of a JAX device kind; None if it is not published here, such as for a CPU."""
    name = DEVICE_KINDS.get(device_kind)
    if name is None:
        return None
    return CHIPS[name].peak_flops_bf16 / (2 if name == "v3" else 1)
