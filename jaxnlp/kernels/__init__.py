"""Products whose implementation depends on the processor, and what is chosen for this one."""

from jaxnlp.kernels.choice import kernels
from jaxnlp.kernels.int8 import int8_product

__all__ = ["int8_product", "kernels"]
