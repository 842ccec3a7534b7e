"""ViT (Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929): an encoder that reads image patches as tokens."""

from collections.abc import Sequence
from typing import Any

from duonlp.architectures._common import (
    Weight,
    check_supported,
    common_hf,
    head_dim,
    linear,
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
    PatchConfig,
    PoolingConfig,
    TransformerConfig,
    activation_name,
)  # fmt: skip
from duonlp.schema import ACTIVATION, BOOL, EPSILON, HEADS, LAYERS, RATE, WIDTH, integer, list_of

MODEL_TYPES = ("vit",)
PREFIX = "vit."

DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
    "num_channels": 3,
    "qkv_bias": True,
    "pooler_output_size": None,
    "pooler_act": "tanh",
}
SIZES = WIDTH | list_of(WIDTH, 2, 2)
SCHEMA = {
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": WIDTH,
    "hidden_act": ACTIVATION, "hidden_dropout_prob": RATE, "attention_probs_dropout_prob": RATE, "layer_norm_eps": EPSILON,
    "image_size": SIZES, "patch_size": SIZES, "num_channels": integer(1, 1000), "qkv_bias": BOOL,
    "pooler_output_size": WIDTH | None, "pooler_act": ACTIVATION,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {"base": "ViTModel", "image-classification": "ViTForImageClassification"}


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    size = o["hidden_size"]
    check_supported({"model_type": "vit", "pooler_output_size": o["pooler_output_size"]}, {"pooler_output_size": size})
    patches = PatchConfig(_pair(o["image_size"]), _pair(o["patch_size"]), o["num_channels"])
    first = PoolingConfig(dense=False, activation="linear")
    return TransformerConfig(
        model_type="vit",
        hidden_size=size,
        layers=LayerPattern.uniform(
            LayerConfig(
                AttentionConfig(
                    num_heads=o["num_attention_heads"],
                    head_dim=head_dim(size, o["num_attention_heads"]),
                    bias=o["qkv_bias"],
                    output_bias=True,
                    dropout=o["attention_probs_dropout_prob"],
                ),
                FeedForwardConfig(size=o["intermediate_size"], activation=activation_name(o["hidden_act"])),
            ),
            o["num_hidden_layers"],
        ),
        embedding=EmbeddingConfig(
            vocab_size=0, size=size, max_positions=patches.num_tokens, norm=False, dropout=o["hidden_dropout_prob"],
            patches=patches,
        ),
        norm=NormConfig(epsilon=o["layer_norm_eps"], position="pre", final=True, final_in_hidden_states=False),
        lm_head=LMHeadConfig(),
        pooler=PoolingConfig(activation=activation_name(o["pooler_act"])),
        classification=first,
        multiple_choice=first,
        hidden_dropout=o["hidden_dropout_prob"],
        extra=hf,
        **pop_common(hf, {}),
    )  # fmt: skip


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    patches, common = cfg.embedding.patches, common_hf(cfg)
    assert patches is not None
    del common["tie_word_embeddings"]
    return common | {
        "hidden_size": cfg.hidden_size,
        "num_hidden_layers": cfg.num_layers,
        "num_attention_heads": cfg.attention.num_heads,
        "intermediate_size": cfg.feed_forward.size,
        "hidden_act": cfg.feed_forward.activation,
        "hidden_dropout_prob": cfg.hidden_dropout,
        "attention_probs_dropout_prob": cfg.attention.dropout,
        "layer_norm_eps": cfg.norm.epsilon,
        "image_size": _unpair(patches.image_size),
        "patch_size": _unpair(patches.patch_size),
        "num_channels": patches.channels,
        "qkv_bias": cfg.attention.bias,
        "pooler_output_size": cfg.hidden_size,
        "pooler_act": cfg.pooler.activation if cfg.pooler is not None else "tanh",
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    e, patches = "vit.embeddings", cfg.embedding.patches
    assert patches is not None
    kernel = (cfg.hidden_size, patches.channels, *patches.patch_size)
    rows = [
        Weight(f"{e}.cls_token", "embeddings/patches/class_token", "row"),
        Weight(f"{e}.patch_embeddings.projection.weight", "embeddings/patches/projection/kernel", "patches", shape=kernel),
        Weight(f"{e}.patch_embeddings.projection.bias", "embeddings/patches/projection/bias", "vector"),
        Weight(
            f"{e}.position_embeddings", "embeddings/position_embeddings/embedding", "image_positions", shape=patches.grid
        ),
    ]  # fmt: skip
    for i in range(cfg.num_layers):
        path, name, new = f"encoder/layer_{i}", f"vit.encoder.layer.{i}", f"vit.layers.{i}"  # new: since Transformers 5
        for part in ("query", "key", "value"):
            names = f"{name}.attention.attention.{part}", f"{new}.attention.{part[0]}_proj"
            rows += linear(names[0], f"{path}/attention/{part}", cfg.attention.bias, names[1])
        rows += linear(f"{name}.attention.output.dense", f"{path}/attention/output", alias=f"{new}.attention.o_proj")
        rows += linear(f"{name}.intermediate.dense", f"{path}/feed_forward/up", alias=f"{new}.mlp.fc1")
        rows += linear(f"{name}.output.dense", f"{path}/feed_forward/down", alias=f"{new}.mlp.fc2")
        rows += norm(f"{name}.layernorm_before", f"{path}/attention_norm", alias=f"{new}.layernorm_before")
        rows += norm(f"{name}.layernorm_after", f"{path}/feed_forward_norm", alias=f"{new}.layernorm_after")
    rows += norm("vit.layernorm", "encoder/final_norm")
    if head == "base" and cfg.pooler is not None:
        rows += linear("vit.pooler.dense", "pooler/dense")
    if head == "image-classification":
        rows += linear("classifier", "classifier")
    return rows


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Return a size as (height, width)."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def _unpair(size: tuple[int, int]) -> int | list[int]:
    """Return (height, width) as config.json has it: a number for a square."""
    return size[0] if size[0] == size[1] else list(size)
