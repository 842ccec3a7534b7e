"""BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461): norms after the residuals and after the embeddings."""

from duonlp.architectures import _seq2seq

MODEL_TYPES = ("bart",)
PREFIX = _seq2seq.PREFIX
SPARE_POSITIONS = 2  # fairseq's positions start after its padding id, whichever id that is now


def heads(model_type):
    """Head to Transformers class."""
    return _seq2seq.heads("Bart")


def config(hf):
    """config.json to TransformerConfig."""
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


def hf_config(cfg):
    """TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg, SPARE_POSITIONS) | _seq2seq.hf_classifier(cfg)


weights = _seq2seq.weights
