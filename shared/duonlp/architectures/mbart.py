"""mBART (Liu et al. 2020, https://arxiv.org/abs/2001.08210) and mBART-50: pre-norm BART with a final norm.

Decoder inputs start with the target's last token, its language code.
"""

from typing import Any

from duonlp.architectures import _seq2seq
from duonlp.architectures.bart import SPARE_POSITIONS
from duonlp.config import TransformerConfig

MODEL_TYPES = ("mbart",)
PREFIX = _seq2seq.PREFIX
SCHEMA = _seq2seq.SCHEMA


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return _seq2seq.heads("MBart")


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 2)
    return _seq2seq.config(
        hf,
        _seq2seq.CLASSIFIER_DEFAULTS | {"decoder_start_token_id": None},
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        norm="pre",
        spare_positions=SPARE_POSITIONS,
        position_offset=SPARE_POSITIONS,
        embedding_norm=True,
        reads_source=True,
        starts_with_last=True,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS) | _seq2seq.hf_classifier(cfg)


weights = _seq2seq.weights
