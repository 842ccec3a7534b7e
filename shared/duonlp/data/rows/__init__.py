"""Store rows of token ids, and batch and shuffle them by seed and epoch."""

from duonlp.data.rows.length_batches import LengthBatches
from duonlp.data.rows.manifest import Manifest, read_manifest, write_manifest
from duonlp.data.rows.order import permuted
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder

__all__ = ["LengthBatches", "Manifest", "TokenRows", "TokenRowsBuilder", "permuted", "read_manifest", "write_manifest"]
