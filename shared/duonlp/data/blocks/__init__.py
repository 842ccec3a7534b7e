"""Pack tokenized text into fixed-length blocks on disk, and read them in batches."""

from duonlp.data.blocks.batches import Batches, HeldOutBatches, held_out_batches
from duonlp.data.blocks.reader import Blocks, open_blocks
from duonlp.data.blocks.writer import write_blocks

__all__ = ["Batches", "Blocks", "HeldOutBatches", "held_out_batches", "open_blocks", "write_blocks"]
