"""DistilBERT (Sanh et al. 2019, https://arxiv.org/abs/1910.01108): BERT without token types or pooler."""

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
from duonlp.schema import ACTIVATION, BOOL, HEADS, LAYERS, POSITIONS, RATE, VOCABULARY, WIDTH

MODEL_TYPES = ("distilbert",)
PREFIX = "distilbert."

DEFAULTS = {
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "sinusoidal_pos_embds": False,
    "n_layers": 6,
    "n_heads": 12,
    "dim": 768,
    "hidden_dim": 3072,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation": "gelu",
    "qa_dropout": 0.1,
    "seq_classif_dropout": 0.2,
    "tie_word_embeddings": True,
}
SCHEMA = {
    "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "sinusoidal_pos_embds": BOOL, "n_layers": LAYERS,
    "n_heads": HEADS, "dim": WIDTH, "hidden_dim": WIDTH, "dropout": RATE, "attention_dropout": RATE,
    "activation": ACTIVATION, "qa_dropout": RATE, "seq_classif_dropout": RATE, "tie_word_embeddings": BOOL,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "DistilBertModel",
        "masked-lm": "DistilBertForMaskedLM",
        "sequence-classification": "DistilBertForSequenceClassification",
        "token-classification": "DistilBertForTokenClassification",
        "question-answering": "DistilBertForQuestionAnswering",
        "multiple-choice": "DistilBertForMultipleChoice",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    act = activation_name(o["activation"])
    common = pop_common(hf, {"pad_token_id": 0})
    pooling = PoolingConfig(activation="relu", dropout=o["seq_classif_dropout"])
    return TransformerConfig(
        model_type="distilbert",
        hidden_size=o["dim"],
        layers=LayerPattern.uniform(
            LayerConfig(
                AttentionConfig(o["n_heads"], head_dim(o["dim"], o["n_heads"]), dropout=o["attention_dropout"]),
                FeedForwardConfig(size=o["hidden_dim"], activation=act),
            ),
            o["n_layers"],
        ),
        embedding=EmbeddingConfig(
            vocab_size=o["vocab_size"],
            size=o["dim"],
            max_positions=o["max_position_embeddings"],
            sinusoidal_init=o["sinusoidal_pos_embds"],
            padding_id=common["pad_token_id"],
            dropout=o["dropout"],
        ),
        norm=NormConfig(epsilon=1e-12),
        lm_head=LMHeadConfig(transform=True, activation=act, bias=True, tied=o["tie_word_embeddings"]),
        pooler=None,
        classification=pooling,
        multiple_choice=pooling,
        hidden_dropout=o["dropout"],
        token_dropout=o["dropout"],
        qa_dropout=o["qa_dropout"],
        extra=hf,
        **common,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    return common_hf(cfg) | {
        "vocab_size": cfg.embedding.vocab_size,
        "max_position_embeddings": cfg.embedding.max_positions,
        "sinusoidal_pos_embds": cfg.embedding.sinusoidal_init,
        "n_layers": cfg.num_layers,
        "n_heads": cfg.attention.num_heads,
        "dim": cfg.hidden_size,
        "hidden_dim": cfg.feed_forward.size,
        "dropout": cfg.hidden_dropout,
        "attention_dropout": cfg.attention.dropout,
        "activation": cfg.feed_forward.activation,
        "qa_dropout": cfg.qa_dropout,
        "seq_classif_dropout": cfg.classification.dropout,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    tied_name = ("vocab_projector.weight",) if cfg.lm_head.tied else ()
    rows = embedding(f"{PREFIX}embeddings.word_embeddings", "embeddings/word_embeddings", tied_name)
    rows += embedding(f"{PREFIX}embeddings.position_embeddings", "embeddings/position_embeddings")
    rows += norm(f"{PREFIX}embeddings.LayerNorm", "embeddings/norm")
    for i in range(cfg.num_layer_weights):
        theirs, ours = f"{PREFIX}transformer.layer.{i}", f"encoder/layer_{i}"
        for name, short in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out")):
            rows += linear(f"{theirs}.attention.{short}_lin", f"{ours}/attention/{name}")
        rows += norm(f"{theirs}.sa_layer_norm", f"{ours}/attention_norm")
        rows += linear(f"{theirs}.ffn.lin1", f"{ours}/feed_forward/up")
        rows += linear(f"{theirs}.ffn.lin2", f"{ours}/feed_forward/down")
        rows += norm(f"{theirs}.output_layer_norm", f"{ours}/feed_forward_norm")
    if head == "masked-lm":
        rows += linear("vocab_transform", "lm_head/transform")
        rows += norm("vocab_layer_norm", "lm_head/norm")
        rows += lm_output("vocab_projector.weight", "vocab_projector.bias", cfg.lm_head.tied)
    if head in ("sequence-classification", "multiple-choice"):
        rows += linear("pre_classifier", "pooler/dense")
    if head in ("sequence-classification", "multiple-choice", "token-classification"):
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows
