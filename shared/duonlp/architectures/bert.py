"""BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), MiniLM and the sentence-transformers encoders.

RoBERTa, ALBERT and ELECTRA reuse parts of this module.
"""

from typing import Any

from duonlp.architectures._common import (
    Weight,
    common_hf,
    embedding,
    head_dim,
    linear,
    lm_output,
    norm,
    pop_common,
    pop_options,
)
from duonlp.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LayerConfig,
    LayerPattern,
    LMHeadConfig,
    NormConfig,
    PoolingConfig,
    TransformerConfig,
    activation_name,
)  # fmt: skip
from duonlp.schema import ACTIVATION, BOOL, EPSILON, HEADS, LAYERS, POSITIONS, RATE, VOCABULARY, WIDTH, integer

MODEL_TYPES = ("bert",)
PREFIX = "bert."
OUTPUT_NAME = "cls.predictions.decoder.weight"

DEFAULTS = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "classifier_dropout": None,
    "is_decoder": False,
    "tie_word_embeddings": True,
}
SCHEMA = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "intermediate_size": WIDTH, "hidden_act": ACTIVATION, "hidden_dropout_prob": RATE,
    "attention_probs_dropout_prob": RATE, "max_position_embeddings": POSITIONS, "type_vocab_size": integer(0, 1 << 20),
    "layer_norm_eps": EPSILON, "classifier_dropout": RATE | None, "is_decoder": BOOL, "tie_word_embeddings": BOOL,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "BertModel",
        "masked-lm": "BertForMaskedLM",
        "causal-lm": "BertLMHeadModel",
        "sequence-classification": "BertForSequenceClassification",
        "token-classification": "BertForTokenClassification",
        "question-answering": "BertForQuestionAnswering",
        "multiple-choice": "BertForMultipleChoice",
        "next-sentence-prediction": "BertForNextSentencePrediction",
        "pretraining": "BertForPreTraining",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    return encoder_config("bert", o, pop_common(hf, {"pad_token_id": 0}), extra=hf)


def encoder_config(
    model_type: str, o: dict[str, Any], common: dict[str, Any], extra: dict[str, Any]
) -> TransformerConfig:
    """Return the configuration of a BERT-like encoder; other families replace the fields in which they differ.

    Args:
        model_type: The family.
        o: Options, with at least the keys of DEFAULTS.
        common: Fields of TransformerConfig returned by ``pop_common``.
        extra: Keys of config.json to keep.
    """
    act = activation_name(o["hidden_act"])
    head_dropout = o["hidden_dropout_prob"] if o["classifier_dropout"] is None else o["classifier_dropout"]
    pooler = PoolingConfig(token="first", dense=True, activation="tanh", dropout=head_dropout)
    return TransformerConfig(
        model_type=model_type,
        hidden_size=o["hidden_size"],
        layers=LayerPattern.uniform(
            LayerConfig(
                AttentionConfig(
                    num_heads=o["num_attention_heads"],
                    head_dim=head_dim(o["hidden_size"], o["num_attention_heads"]),
                    dropout=o["attention_probs_dropout_prob"],
                ),
                FeedForwardConfig(size=o["intermediate_size"], activation=act),
            ),
            o["num_hidden_layers"],
        ),
        embedding=EmbeddingConfig(
            vocab_size=o["vocab_size"],
            size=o["hidden_size"],
            max_positions=o["max_position_embeddings"],
            type_vocab_size=o["type_vocab_size"],
            padding_id=common["pad_token_id"],
            dropout=o["hidden_dropout_prob"],
        ),
        norm=NormConfig(epsilon=o["layer_norm_eps"]),
        lm_head=LMHeadConfig(transform=True, activation=act, bias=True, tied=o["tie_word_embeddings"]),
        pooler=pooler,
        classification=pooler,
        multiple_choice=pooler,
        causal=o["is_decoder"],
        hidden_dropout=o["hidden_dropout_prob"],
        token_dropout=head_dropout,
        extra=extra,
        **common,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    head_dropout = cfg.token_dropout
    return common_hf(cfg) | {
        "vocab_size": cfg.embedding.vocab_size,
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.attention.num_heads,
        "intermediate_size": cfg.feed_forward.size,
        "hidden_act": cfg.feed_forward.activation,
        "hidden_dropout_prob": cfg.hidden_dropout,
        "attention_probs_dropout_prob": cfg.attention.dropout,
        "max_position_embeddings": cfg.embedding.max_positions,
        "type_vocab_size": cfg.embedding.type_vocab_size,
        "layer_norm_eps": cfg.norm.epsilon,
        "classifier_dropout": None if head_dropout == cfg.hidden_dropout else head_dropout,
        "is_decoder": cfg.causal,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    rows = body(PREFIX, cfg, OUTPUT_NAME)
    if head in ("masked-lm", "causal-lm", "pretraining"):
        rows += linear("cls.predictions.transform.dense", "lm_head/transform")
        rows += norm("cls.predictions.transform.LayerNorm", "lm_head/norm")
        bias, other = "cls.predictions.decoder.bias", "cls.predictions.bias"
        rows += lm_output(OUTPUT_NAME, bias, cfg.lm_head.tied, bias_copy=other)
    if head in ("base", "sequence-classification", "multiple-choice", "next-sentence-prediction", "pretraining"):
        rows += linear(f"{PREFIX}pooler.dense", "pooler/dense")
    if head in ("next-sentence-prediction", "pretraining"):
        rows += linear("cls.seq_relationship", "next_sentence")
    if head in ("sequence-classification", "token-classification", "multiple-choice"):
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows


def body(prefix: str, cfg: TransformerConfig, output_name: str) -> list[Weight]:
    """Return the rows of a BERT-like encoder: embeddings and layers, without pooler and heads.

    Args:
        prefix: Prefix of the names.
        cfg: The model.
        output_name: Name of the matrix of an LM head, which may be tied to the words.
    """
    words, tied_name = f"{prefix}embeddings.word_embeddings", (output_name,) if cfg.lm_head.tied else ()
    rows = embedding(words, "embeddings/word_embeddings", tied_name)
    rows += embedding(f"{prefix}embeddings.position_embeddings", "embeddings/position_embeddings")
    if cfg.embedding.type_vocab_size:
        rows += embedding(f"{prefix}embeddings.token_type_embeddings", "embeddings/token_type_embeddings")
    rows += norm(f"{prefix}embeddings.LayerNorm", "embeddings/norm")
    for i in range(cfg.num_layer_weights):
        theirs, ours = f"{prefix}encoder.layer.{i}", f"encoder/layer_{i}"
        for name in ("query", "key", "value"):
            rows += linear(f"{theirs}.attention.self.{name}", f"{ours}/attention/{name}")
        rows += linear(f"{theirs}.attention.output.dense", f"{ours}/attention/output")
        rows += norm(f"{theirs}.attention.output.LayerNorm", f"{ours}/attention_norm")
        rows += linear(f"{theirs}.intermediate.dense", f"{ours}/feed_forward/up")
        rows += linear(f"{theirs}.output.dense", f"{ours}/feed_forward/down")
        rows += norm(f"{theirs}.output.LayerNorm", f"{ours}/feed_forward_norm")
    return rows
