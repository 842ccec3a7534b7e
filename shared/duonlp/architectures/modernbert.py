"""ModernBERT (Warner et al. 2024, https://arxiv.org/abs/2412.13663): an encoder with rotary positions and gated feed-forward
blocks, whose layers alternate between global and local attention."""

from dataclasses import replace
from typing import Any

from duonlp.architectures._common import (
    Weight,
    check_supported,
    common_hf,
    embedding,
    fused_linear,
    head_dim,
    linear,
    norm,
    output,
    pop_common,
    pop_options,
)
from duonlp.architectures._rotary import BASE
from duonlp.config import (
    AttentionConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LayerConfig,
    LayerPattern,
    LMHeadConfig,
    NormConfig,
    PoolingConfig,
    RotaryConfig,
    TransformerConfig,
    activation_name,
)  # fmt: skip
from duonlp.errors import ConfigError
from duonlp.schema import (
    ACTIVATION,
    BOOL,
    EPSILON,
    HEADS,
    MOST_LAYERS,
    POSITIONS,
    RATE,
    TEXT,
    VOCABULARY,
    WIDTH,
    integer,
    list_of,
    shorten,
    table,
)

MODEL_TYPES = ("modernbert",)
PREFIX = "model."

DEFAULTS = {
    "vocab_size": 50368,
    "hidden_size": 768,
    "intermediate_size": 1152,
    "num_hidden_layers": 22,
    "num_attention_heads": 12,
    "hidden_activation": "gelu",
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "norm_bias": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "layer_types": None,
    "rope_parameters": None,
    "local_attention": 128,
    "embedding_dropout": 0.0,
    "mlp_bias": False,
    "mlp_dropout": 0.0,
    "decoder_bias": True,
    "classifier_pooling": "cls",
    "classifier_dropout": 0.0,
    "classifier_bias": False,
    "classifier_activation": "gelu",
    "tie_word_embeddings": True,
}
ROPE_SCHEMA = table({"rope_type": TEXT, "rope_theta": BASE}) | None
SCHEMA = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": integer(0, MOST_LAYERS),
    "num_attention_heads": HEADS, "hidden_activation": ACTIVATION, "max_position_embeddings": POSITIONS, "norm_eps": EPSILON,
    "norm_bias": BOOL, "attention_bias": BOOL, "attention_dropout": RATE,
    "layer_types": list_of(TEXT, longest=MOST_LAYERS) | None,
    "rope_parameters": table({"full_attention": ROPE_SCHEMA, "sliding_attention": ROPE_SCHEMA}) | None,
    "local_attention": integer(-(1 << 27), 1 << 27), "embedding_dropout": RATE, "mlp_bias": BOOL,
    "mlp_dropout": RATE, "decoder_bias": BOOL,
    "classifier_pooling": TEXT, "classifier_dropout": RATE, "classifier_bias": BOOL, "classifier_activation": ACTIVATION,
    "tie_word_embeddings": BOOL, "global_attn_every_n_layers": integer(-(1 << 31), 1 << 31), "global_rope_theta": BASE,
    "local_rope_theta": BASE, "sparse_prediction": BOOL | None,
}  # fmt: skip
OLD_KEYS = {"global_attn_every_n_layers": 3, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0}
"""Keys that ``layer_types`` and ``rope_parameters`` replaced in Transformers 5, and their defaults."""

GLOBAL, LOCAL = "full_attention", "sliding_attention"
POOLING_TOKENS = {"cls": "first", "mean": "mean"}


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "ModernBertModel",
        "masked-lm": "ModernBertForMaskedLM",
        "sequence-classification": "ModernBertForSequenceClassification",
        "token-classification": "ModernBertForTokenClassification",
        "question-answering": "ModernBertForQuestionAnswering",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o, old = pop_options(hf, DEFAULTS), pop_options(hf, OLD_KEYS)
    common = pop_common(hf, {"pad_token_id": 50283, "bos_token_id": 50281, "eos_token_id": 50282})
    # With sparse_prediction, a loss comes with the logits of the labeled tokens only.
    check_supported(hf, {"sparse_prediction": False, "rope_scaling": None})
    if o["classifier_pooling"] not in POOLING_TOKENS:
        allowed = " or ".join(POOLING_TOKENS)
        raise ConfigError(
            f"classifier_pooling={o['classifier_pooling']!r} of modernbert is not supported; use {allowed}"
        )
    pooling = PoolingConfig(
        token=POOLING_TOKENS[o["classifier_pooling"]],
        dense_bias=o["classifier_bias"],
        activation=activation_name(o["classifier_activation"]),
        norm=True,
        dropout=o["classifier_dropout"],
    )
    return TransformerConfig(
        model_type="modernbert",
        hidden_size=o["hidden_size"],
        layers=_layers(o, old),
        embedding=EmbeddingConfig(
            vocab_size=o["vocab_size"],
            size=o["hidden_size"],
            max_positions=o["max_position_embeddings"],
            positions="rotary",
            padding_id=common["pad_token_id"],
            dropout=o["embedding_dropout"],
        ),
        norm=NormConfig(epsilon=o["norm_eps"], bias=o["norm_bias"], position="pre", final=True),
        lm_head=LMHeadConfig(
            transform=True,
            transform_bias=pooling.dense_bias,
            activation=pooling.activation,
            bias=o["decoder_bias"],
            tied=o["tie_word_embeddings"],
        ),
        pooler=None,
        classification=pooling,
        multiple_choice=pooling,
        token_transform=replace(pooling, token="all"),
        token_dropout=o["classifier_dropout"],
        qa_dropout=o["classifier_dropout"],
        scaled_residual_init=True,
        extra=hf,
        **common,
    )


def _layers(o: dict[str, Any], old: dict[str, Any]) -> LayerPattern:
    """Return the layers: those with global and with local attention have a rotary base each, and the first has no attention
    norm, since the norm of the embeddings precedes it."""
    depth, every = o["num_hidden_layers"], old["global_attn_every_n_layers"]
    if every < 1:
        raise ConfigError(f"global_attn_every_n_layers={every} of modernbert is not supported; use at least 1")
    types = o["layer_types"] or [LOCAL if i % every else GLOBAL for i in range(depth)]
    if len(types) != depth or set(types) - {GLOBAL, LOCAL}:
        raise ConfigError(
            f"layer_types={shorten(types)} of modernbert is not supported; list {GLOBAL} or {LOCAL} for {depth} layers"
        )
    thetas = {GLOBAL: old["global_rope_theta"], LOCAL: old["local_rope_theta"]}
    size = head_dim(o["hidden_size"], o["num_attention_heads"])

    def attention(kind: str) -> AttentionConfig:
        rope = (o["rope_parameters"] or {}).get(kind) or {}
        if rope.get("rope_type", "default") != "default":
            raise ConfigError(
                f"rope_parameters of modernbert with the rope_type {rope['rope_type']!r} is not supported; only 'default' is"
            )
        rotary = RotaryConfig(size, rope.get("rope_theta", thetas[kind]), max_positions=o["max_position_embeddings"])
        return AttentionConfig(
            num_heads=o["num_attention_heads"],
            head_dim=size,
            bias=o["attention_bias"],
            dropout=o["attention_dropout"],
            output_dropout=o["attention_dropout"],
            window=o["local_attention"] // 2 + 1 if kind == LOCAL else None,
            rotary=rotary,
        )

    activation = activation_name(o["hidden_activation"])
    block = FeedForwardConfig(o["intermediate_size"], activation, o["mlp_bias"], gated=True, dropout=o["mlp_dropout"])
    attentions = {kind: attention(kind) for kind in (GLOBAL, LOCAL)}
    return LayerPattern.of([LayerConfig(attentions[kind], block, attention_norm=i > 0) for i, kind in enumerate(types)])


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    attention, block, pooling = cfg.attention, cfg.feed_forward, cfg.classification
    types = [GLOBAL if layer.attention.window is None else LOCAL for layer in cfg.layers]
    attentions = dict(zip(types, (layer.attention for layer in cfg.layers)))
    bases = {GLOBAL: OLD_KEYS["global_rope_theta"], LOCAL: OLD_KEYS["local_rope_theta"]}
    bases |= {kind: c.rotary.base for kind, c in attentions.items() if c.rotary is not None}
    window = attentions[LOCAL].window if LOCAL in attentions else None
    return common_hf(cfg) | {
        "vocab_size": cfg.embedding.vocab_size,
        "hidden_size": cfg.hidden_size,
        "intermediate_size": block.size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": attention.num_heads,
        "hidden_activation": block.activation,
        "max_position_embeddings": cfg.embedding.max_positions,
        "norm_eps": cfg.norm.epsilon,
        "norm_bias": cfg.norm.bias,
        "attention_bias": attention.bias,
        "attention_dropout": attention.dropout,
        "layer_types": types,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": base} for kind, base in bases.items()},
        "local_attention": DEFAULTS["local_attention"] if window is None else 2 * (window - 1),
        "embedding_dropout": cfg.embedding.dropout,
        "mlp_bias": block.bias,
        "mlp_dropout": block.dropout,
        "decoder_bias": cfg.lm_head.bias,
        "classifier_pooling": next(name for name, token in POOLING_TOKENS.items() if token == pooling.token),
        "classifier_dropout": pooling.dropout,
        "classifier_bias": pooling.dense_bias,
        "classifier_activation": pooling.activation,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    bias = cfg.norm.bias
    tied_name = ("decoder.weight",) if cfg.lm_head.tied else ()
    rows = embedding(f"{PREFIX}embeddings.tok_embeddings", "embeddings/word_embeddings", tied_name)
    rows += norm(f"{PREFIX}embeddings.norm", "embeddings/norm", bias)
    for i, layer in enumerate(cfg.layers):
        theirs, ours, attention, block = (
            f"{PREFIX}layers.{i}",
            f"encoder/layer_{i}",
            layer.attention,
            layer.feed_forward,
        )
        rows += norm(f"{theirs}.attn_norm", f"{ours}/attention_norm", bias) if layer.attention_norm else []
        parts = [f"{ours}/attention/{name}" for name in ("query", "key", "value")]
        rows += fused_linear(f"{theirs}.attn.Wqkv", parts, attention.bias)
        rows += linear(f"{theirs}.attn.Wo", f"{ours}/attention/output", attention.bias)
        rows += norm(f"{theirs}.mlp_norm", f"{ours}/feed_forward_norm", bias)
        rows += fused_linear(f"{theirs}.mlp.Wi", [f"{ours}/feed_forward/{name}" for name in ("gate", "up")], block.bias)
        rows += linear(f"{theirs}.mlp.Wo", f"{ours}/feed_forward/down", block.bias)
    rows += norm(f"{PREFIX}final_norm", "encoder/final_norm", bias)
    if head == "masked-lm":
        lm = cfg.lm_head
        rows += linear("head.dense", "lm_head/transform", lm.transform_bias) + norm("head.norm", "lm_head/norm", bias)
        rows += output("decoder.weight", lm.tied)
        rows += [Weight("decoder.bias", "lm_head/bias", "vector")] * lm.bias
    elif head != "base":
        dense_bias = cfg.classification.dense_bias
        rows += linear("head.dense", "pooler/dense", dense_bias) + norm("head.norm", "pooler/norm", bias)
        rows += linear("classifier", "qa_outputs" if head == "question-answering" else "classifier")
    return rows
