"""M2M100 (Fan et al. 2020, https://arxiv.org/abs/2010.11125) and NLLB-200: norms before the blocks, fixed positions that skip
padding."""

from duonlp.architectures import _seq2seq
from duonlp.errors import ConfigError

MODEL_TYPES = ("m2m_100",)
PREFIX = _seq2seq.PREFIX
SPARE_POSITIONS = 2

DEFAULTS = {
    "vocab_size": 128112,
    "activation_function": "relu",
    "attention_dropout": 0.1,
    "scale_embedding": True,
}


def heads(model_type):
    """Head to Transformers class."""
    return _seq2seq.heads("M2M100", tasks=False)


def config(hf):
    """config.json to TransformerConfig."""
    padding = hf.get("pad_token_id", 1)
    if padding is None:
        raise ConfigError("m2m_100 needs a pad_token_id, since its positions start after it; got null")
    return _seq2seq.config(
        hf,
        DEFAULTS,
        {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
        norm="pre",
        positions="tensor2tensor",
        spare_positions=SPARE_POSITIONS,
        position_offset=padding + 1,
        skip_padding=True,
        biased=False,
    )


def hf_config(cfg):
    """TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS)


weights = _seq2seq.weights
