"""M2M100 (Fan et al. 2020, https://arxiv.org/abs/2010.11125) and NLLB-200.

Pre-norm blocks, and fixed positions that skip padding.
"""

from typing import Any

from duonlp.architectures import _seq2seq
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import TOKEN

MODEL_TYPES = ("m2m_100",)
PREFIX = _seq2seq.PREFIX
SPARE_POSITIONS = 2

DEFAULTS = {
    "vocab_size": 128112,
    "activation_function": "relu",
    "attention_dropout": 0.1,
    "scale_embedding": True,
}
SCHEMA = _seq2seq.SCHEMA | {"pad_token_id": TOKEN | None}


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return _seq2seq.heads("M2M100", tasks=False)


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    pad_token_id = hf.get("pad_token_id", 1)
    if pad_token_id is None:
        raise ConfigError("pad_token_id of m2m_100 is null; set it, since positions start after it")
    return _seq2seq.config(
        hf,
        DEFAULTS,
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        norm="pre",
        positions="tensor2tensor",
        spare_positions=SPARE_POSITIONS,
        position_offset=pad_token_id + 1,
        skip_padding=True,
        biased=False,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS)


weights = _seq2seq.weights
