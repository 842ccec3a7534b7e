"""PEGASUS (Zhang et al. 2020, https://arxiv.org/abs/1912.08777): pre-norm blocks and sinusoidal positions."""

from typing import Any

from duonlp.architectures import _seq2seq
from duonlp.architectures._common import Weight
from duonlp.config import TransformerConfig

MODEL_TYPES = ("pegasus",)
PREFIX = _seq2seq.PREFIX
SCHEMA = _seq2seq.SCHEMA


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return _seq2seq.heads("Pegasus", tasks=False)


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 1)
    return _seq2seq.config(
        hf, {"decoder_start_token_id": 0}, {"pad_token_id": 0, "eos_token_id": 1}, norm="pre", positions="sinusoidal"
    )


hf_config = _seq2seq.hf_config


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table; checkpoints include the positions although they are fixed."""
    return _seq2seq.weights(cfg, head, positions=("positions", "decoder_positions"))
