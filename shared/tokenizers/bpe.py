"""Where `train_byte_level_bpe` was before it went into `shared.tokenizers.train`."""

from shared.tokenizers.train import train_byte_level_bpe

__all__ = ["train_byte_level_bpe"]
