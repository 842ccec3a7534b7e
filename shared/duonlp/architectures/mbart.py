"""mBART (Liu et al. 2020, https://arxiv.org/abs/2001.08210) and mBART-50: BART with norms before the blocks and at the end.

A target begins with the language that it ends in.
"""

from duonlp.architectures import _seq2seq
from duonlp.architectures.bart import SPARE_POSITIONS

MODEL_TYPES = ("mbart",)
PREFIX = _seq2seq.PREFIX


def heads(model_type):
    """Head to Transformers class."""
    return _seq2seq.heads("MBart")


def config(hf):
    """config.json to TransformerConfig."""
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


def hf_config(cfg):
    """TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS) | _seq2seq.hf_classifier(cfg)


weights = _seq2seq.weights
