"""Products whose implementation depends on the processor, and what is chosen for this one."""

from tfnlp.kernels.choice import kernels
from tfnlp.kernels.int8 import int8_product

__all__ = ["int8_product", "kernels"]
