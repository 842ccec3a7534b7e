"""Marian (Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344), as the OPUS-MT models have it: norms after the
residuals, sines and cosines for positions, and one vocabulary for both languages or one each."""

from duonlp.architectures import _seq2seq
from duonlp.errors import ConfigError

MODEL_TYPES = ("marian",)
PREFIX = _seq2seq.PREFIX


def heads(model_type):
    """Head to Transformers class."""
    return {"base": "MarianModel", "seq2seq-lm": "MarianMTModel"}


def config(hf):
    """config.json to TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 0)
    shared = hf.pop("share_encoder_decoder_embeddings", True) is not False
    words = hf.get("vocab_size", 58101)
    decoder_words = hf.pop("decoder_vocab_size", None) or words
    if shared and decoder_words != words:
        raise ConfigError(
            f"decoder_vocab_size={decoder_words!r} is not vocab_size={words!r}, though the stacks share their words; "
            "set share_encoder_decoder_embeddings to false"
        )
    return _seq2seq.config(
        hf,
        {"vocab_size": 58101, "decoder_start_token_id": 58100},
        {"pad_token_id": 58100, "eos_token_id": 0},
        norm="post",
        positions="sinusoidal",
        decoder_vocab_size=decoder_words,
        shares_words=shared,
    )


def hf_config(cfg):
    """TransformerConfig to config.json."""
    return _seq2seq.hf_config(cfg) | {
        # Words that are not tied are not shared either: Transformers computes the same by both.
        "share_encoder_decoder_embeddings": cfg.decoder.shares_words,
        "decoder_vocab_size": cfg.decoder.embedding.vocab_size,
    }


def weights(cfg, head):
    """The weight table. Positions are fixed, and written where Transformers would miss them."""
    positions = ("positions", "decoder_positions") if head == "base" else (None, None)
    return _seq2seq.weights(cfg, head, positions, always_shared=False)
