"""Marian (Junczys-Dowmunt et al. 2018, https://arxiv.org/abs/1804.00344), as in the OPUS-MT models.

Post-norm blocks, sinusoidal positions, and either one vocabulary for both languages or one for each.
"""

from typing import Any

from duonlp.architectures import _seq2seq
from duonlp.architectures._common import Weight
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import BOOL, VOCABULARY

MODEL_TYPES = ("marian",)
PREFIX = _seq2seq.PREFIX
SCHEMA = _seq2seq.SCHEMA | {
    "decoder_vocab_size": VOCABULARY | None, "share_encoder_decoder_embeddings": BOOL | None,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {"base": "MarianModel", "seq2seq-lm": "MarianMTModel"}


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    hf.setdefault("forced_eos_token_id", 0)
    shared = hf.pop("share_encoder_decoder_embeddings", True) is not False
    vocab_size = hf.get("vocab_size", 58101)
    decoder_vocab_size = hf.pop("decoder_vocab_size", None) or vocab_size
    if shared and decoder_vocab_size != vocab_size:
        raise ConfigError(
            f"decoder_vocab_size={decoder_vocab_size!r} differs from vocab_size={vocab_size!r}, but the embeddings are "
            "shared; set share_encoder_decoder_embeddings to false"
        )
    return _seq2seq.config(
        hf,
        {"vocab_size": 58101, "decoder_start_token_id": 58100},
        {"pad_token_id": 58100, "eos_token_id": 0},
        norm="post",
        positions="sinusoidal",
        decoder_vocab_size=decoder_vocab_size,
        shares_words=shared,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    decoder = cfg.decoder
    assert decoder is not None
    out = _seq2seq.hf_config(cfg)
    if not decoder.shares_words:
        out.pop("shared_word_embeddings", None)  # share_encoder_decoder_embeddings holds it
    return out | {
        # Untied embeddings are never shared here; Transformers computes the same with either value.
        "share_encoder_decoder_embeddings": decoder.shares_words,
        "decoder_vocab_size": decoder.embedding.vocab_size,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table; fixed positions are written only for the head for which Transformers expects them."""
    positions = ("positions", "decoder_positions") if head == "base" else (None, None)
    return _seq2seq.weights(cfg, head, positions, always_shared=False)
