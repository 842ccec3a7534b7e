"""Llama (Touvron et al. 2023): a causal decoder with rotary positions, grouped queries, RMS norms and gated feed-forward."""

from dataclasses import replace
from typing import Any

from duonlp.architectures._common import (
    Weight,
    check_supported,
    common_hf,
    embedding,
    head_dim,
    linear,
    norm,
    output,
    pop_common,
    pop_options,
)
from duonlp.architectures._rotary import ROTARY_SCHEMA, longest_input, pop_rotary, rotary_hf
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

MODEL_TYPES = ("llama",)
PREFIX = "model."

DEFAULTS = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
SCHEMA = ROTARY_SCHEMA | {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": HEADS | None, "head_dim": WIDTH | None, "hidden_act": ACTIVATION,
    "max_position_embeddings": POSITIONS, "rms_norm_eps": EPSILON, "attention_bias": BOOL, "attention_dropout": RATE | None,
    "mlp_bias": BOOL, "tie_word_embeddings": BOOL, "classifier_dropout": RATE | None, "hidden_dropout": RATE | None,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "LlamaModel",
        "causal-lm": "LlamaForCausalLM",
        "sequence-classification": "LlamaForSequenceClassification",
        "token-classification": "LlamaForTokenClassification",
        "question-answering": "LlamaForQuestionAnswering",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    check_supported(hf | {"model_type": "llama"}, {"token_classification_bias": True})
    common = pop_common(hf, {"bos_token_id": 1, "eos_token_id": 2})
    num_heads, num_kv_heads = o["num_attention_heads"], o["num_key_value_heads"]
    width = o["head_dim"] or head_dim(o["hidden_size"], num_heads)
    rotary = pop_rotary(hf, width, o["max_position_embeddings"])
    # Same precedence as LlamaForTokenClassification.
    token_dropout = next((hf[k] for k in ("classifier_dropout", "hidden_dropout") if hf.get(k) is not None), 0.1)
    last = PoolingConfig(token="last_non_padding", dense=False, activation="linear", classifier_bias=False)
    return TransformerConfig(
        model_type="llama",
        stack="decoder",
        causal=True,
        hidden_size=o["hidden_size"],
        layers=LayerPattern.uniform(
            LayerConfig(
                AttentionConfig(
                    num_heads=num_heads,
                    num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
                    head_dim=width,
                    bias=o["attention_bias"],
                    dropout=o["attention_dropout"] or 0.0,
                    rotary=rotary,
                ),
                FeedForwardConfig(
                    size=o["intermediate_size"],
                    activation=activation_name(o["hidden_act"]),
                    bias=o["mlp_bias"],
                    gated=True,
                ),
            ),
            o["num_hidden_layers"],
        ),
        embedding=EmbeddingConfig(
            vocab_size=o["vocab_size"],
            size=o["hidden_size"],
            max_positions=longest_input(rotary),
            positions="rotary",
            padding_id=common["pad_token_id"],
            norm=False,
        ),
        norm=NormConfig(epsilon=o["rms_norm_eps"], rms=True, position="pre", final=True),
        lm_head=LMHeadConfig(tied=o["tie_word_embeddings"]),
        pooler=None,
        classification=last,
        multiple_choice=last,
        token_dropout=token_dropout,
        extra=hf,
        **common,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    attention, feed_forward = cfg.attention, cfg.feed_forward
    assert attention.rotary is not None
    return (
        common_hf(cfg)
        | {
            "vocab_size": cfg.embedding.vocab_size,
            "hidden_size": cfg.hidden_size,
            "intermediate_size": feed_forward.size,
            "num_hidden_layers": cfg.num_layers,
            "num_attention_heads": attention.num_heads,
            "num_key_value_heads": attention.kv_heads,
            "head_dim": attention.head_dim,
            "hidden_act": feed_forward.activation,
            "max_position_embeddings": attention.rotary.max_positions,
            "rms_norm_eps": cfg.norm.epsilon,
            "attention_bias": attention.bias,
            "attention_dropout": attention.dropout,
            "mlp_bias": feed_forward.bias,
        }
        | rotary_hf(attention.rotary, attention.head_dim)
    )


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    # A checkpoint of a tied model may hold the shared matrix only as lm_head.weight.
    tied_name = ("lm_head.weight",) if cfg.lm_head.tied else ()
    rows = embedding(f"{PREFIX}embed_tokens", "embeddings/word_embeddings", aliases=tied_name)
    for i, layer in enumerate(cfg.layers.weights):
        theirs, ours = f"{PREFIX}layers.{i}", f"decoder/layer_{i}"
        rows += norm(f"{theirs}.input_layernorm", f"{ours}/attention_norm", bias=False)
        for name, part in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "output")):
            rows += linear(
                f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{part}", layer.attention.has_bias(part)
            )
        rows += norm(f"{theirs}.post_attention_layernorm", f"{ours}/feed_forward_norm", bias=False)
        for name in ("gate", "up", "down"):
            rows += linear(f"{theirs}.mlp.{name}_proj", f"{ours}/feed_forward/{name}", layer.feed_forward.bias)
    rows += norm(f"{PREFIX}norm", "decoder/final_norm", bias=False)
    if head == "causal-lm":
        rows += output("lm_head.weight", cfg.lm_head.tied)
    if head == "sequence-classification":
        rows += linear("score", "classifier", bias=False)
    if head == "token-classification":
        rows += linear("score", "classifier")
    if head == "question-answering":
        # LlamaForQuestionAnswering names its base model "transformer".
        rows = [
            replace(row, name=f"transformer.{row.name.removeprefix(PREFIX)}", aliases=(row.name, *row.aliases))
            for row in rows
        ]
        rows += linear("qa_outputs", "qa_outputs")
    return rows
