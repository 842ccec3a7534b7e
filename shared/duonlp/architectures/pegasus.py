"""PEGASUS (Zhang et al. 2020, https://arxiv.org/abs/1912.08777): norms before the blocks, sines and cosines for positions."""

from duonlp.architectures import _seq2seq

MODEL_TYPES = ("pegasus",)
PREFIX = _seq2seq.PREFIX


def heads(model_type):
    """Head to Transformers class."""
    return _seq2seq.heads("Pegasus", tasks=False)


def config(hf):
    """config.json to TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 1)
    return _seq2seq.config(
        hf, {"decoder_start_token_id": 0}, {"pad_token_id": 0, "eos_token_id": 1}, norm="pre", positions="sinusoidal"
    )


hf_config = _seq2seq.hf_config


def weights(cfg, head):
    """The weight table; checkpoints hold the positions, though they are fixed."""
    return _seq2seq.weights(cfg, head, positions=("positions", "decoder_positions"))
