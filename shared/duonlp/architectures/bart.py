"""BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461): post-norm blocks and a norm after the embeddings."""

from typing import Any

from duonlp.architectures import _seq2seq
from duonlp.config import TransformerConfig

MODEL_TYPES = ("bart",)
PREFIX = _seq2seq.PREFIX
SPARE_POSITIONS = 2  # fairseq's positions start after its padding id, 1, whatever the padding id is now
SCHEMA = _seq2seq.SCHEMA


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return _seq2seq.heads("Bart")


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 2)
    return _seq2seq.config(
        hf,
        _seq2seq.CLASSIFIER_DEFAULTS,
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        norm="post",
        spare_positions=SPARE_POSITIONS,
        position_offset=SPARE_POSITIONS,
        embedding_norm=True,
        num_labels=3,
        reads_source=True,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS) | _seq2seq.hf_classifier(cfg)


weights = _seq2seq.weights
