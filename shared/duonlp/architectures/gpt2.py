"""GPT-2 (Radford et al. 2019): a causal decoder with pre-norm blocks and fused query-key-value Conv1D weights."""

from typing import Any

from duonlp.architectures._common import (
    Weight,
    common_hf,
    conv1d,
    embedding,
    head_dim,
    linear,
    norm,
    output,
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
from duonlp.schema import ACTIVATION, BOOL, EPSILON, HEADS, LAYERS, POSITIONS, RATE, VOCABULARY, WIDTH

MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."

DEFAULTS = {
    "vocab_size": 50257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "resid_pdrop": 0.1,
    "embd_pdrop": 0.1,
    "attn_pdrop": 0.1,
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "tie_word_embeddings": True,
}
SCHEMA = {
    "vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS,
    "n_inner": WIDTH | None, "activation_function": ACTIVATION, "resid_pdrop": RATE, "embd_pdrop": RATE, "attn_pdrop": RATE,
    "layer_norm_epsilon": EPSILON, "scale_attn_weights": BOOL, "scale_attn_by_inverse_layer_idx": BOOL,
    "reorder_and_upcast_attn": BOOL, "tie_word_embeddings": BOOL, "classifier_dropout": RATE | None,
    "hidden_dropout": RATE | None,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "GPT2Model",
        "causal-lm": "GPT2LMHeadModel",
        "sequence-classification": "GPT2ForSequenceClassification",
        "token-classification": "GPT2ForTokenClassification",
        "question-answering": "GPT2ForQuestionAnswering",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    common = pop_common(hf, {"bos_token_id": 50256, "eos_token_id": 50256})
    # Same precedence as GPT2ForTokenClassification.
    token_dropout = next((hf[k] for k in ("classifier_dropout", "hidden_dropout") if hf.get(k) is not None), 0.1)
    last = PoolingConfig(token="last_non_padding", dense=False, activation="linear", classifier_bias=False)
    return TransformerConfig(
        model_type="gpt2",
        stack="decoder",
        causal=True,
        hidden_size=o["n_embd"],
        layers=LayerPattern.uniform(
            LayerConfig(
                AttentionConfig(
                    num_heads=o["n_head"],
                    head_dim=head_dim(o["n_embd"], o["n_head"]),
                    dropout=o["attn_pdrop"],
                    scale_by_head_dim=o["scale_attn_weights"],
                    scale_by_layer=o["scale_attn_by_inverse_layer_idx"],
                    float32_scores=o["reorder_and_upcast_attn"],
                ),
                FeedForwardConfig(
                    size=4 * o["n_embd"] if o["n_inner"] is None else o["n_inner"],
                    activation=activation_name(o["activation_function"]),
                ),
            ),
            o["n_layer"],
        ),
        embedding=EmbeddingConfig(
            vocab_size=o["vocab_size"],
            size=o["n_embd"],
            max_positions=o["n_positions"],
            token_types_from_words=True,
            norm=False,
            dropout=o["embd_pdrop"],
        ),
        norm=NormConfig(epsilon=o["layer_norm_epsilon"], position="pre", final=True),
        lm_head=LMHeadConfig(tied=o["tie_word_embeddings"]),
        pooler=None,
        classification=last,
        multiple_choice=last,
        hidden_dropout=o["resid_pdrop"],
        token_dropout=token_dropout,
        scaled_residual_init=True,
        extra=hf,
        **common,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    return common_hf(cfg) | {
        "vocab_size": cfg.embedding.vocab_size,
        "n_positions": cfg.embedding.max_positions,
        "n_embd": cfg.hidden_size,
        "n_layer": cfg.num_layers,
        "n_head": cfg.attention.num_heads,
        "n_inner": None if cfg.feed_forward.size == 4 * cfg.hidden_size else cfg.feed_forward.size,
        "activation_function": cfg.feed_forward.activation,
        "resid_pdrop": cfg.hidden_dropout,
        "embd_pdrop": cfg.embedding.dropout,
        "attn_pdrop": cfg.attention.dropout,
        "layer_norm_epsilon": cfg.norm.epsilon,
        "scale_attn_weights": cfg.attention.scale_by_head_dim,
        "scale_attn_by_inverse_layer_idx": cfg.attention.scale_by_layer,
        "reorder_and_upcast_attn": cfg.attention.float32_scores,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    # A checkpoint of a tied model may hold the shared matrix only as lm_head.weight.
    tied_name = ("lm_head.weight",) if cfg.lm_head.tied else ()
    rows = embedding(f"{PREFIX}wte", "embeddings/word_embeddings", aliases=tied_name)
    rows += embedding(f"{PREFIX}wpe", "embeddings/position_embeddings")
    for i in range(cfg.num_layer_weights):
        theirs, ours = f"{PREFIX}h.{i}", f"decoder/layer_{i}"
        rows += norm(f"{theirs}.ln_1", f"{ours}/attention_norm")
        rows += conv1d(f"{theirs}.attn.c_attn", [f"{ours}/attention/{name}" for name in ("query", "key", "value")])
        rows += conv1d(f"{theirs}.attn.c_proj", [f"{ours}/attention/output"])
        rows += norm(f"{theirs}.ln_2", f"{ours}/feed_forward_norm")
        rows += conv1d(f"{theirs}.mlp.c_fc", [f"{ours}/feed_forward/up"])
        rows += conv1d(f"{theirs}.mlp.c_proj", [f"{ours}/feed_forward/down"])
    rows += norm(f"{PREFIX}ln_f", "decoder/final_norm")
    if head == "causal-lm":
        rows += output("lm_head.weight", cfg.lm_head.tied)
    if head == "sequence-classification":
        rows += linear("score", "classifier", bias=False)
    if head == "token-classification":
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows
