"""T5 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683): v1.0, and v1.1 and FLAN with gated
feed-forward layers and an untied output."""

from dataclasses import replace
from typing import Any

from duonlp.architectures._common import (
    OUTPUT,
    Weight,
    common_hf,
    embedding,
    linear,
    pop_common,
    pop_options,
    word_tables,
)
from duonlp.config import (
    AttentionConfig,
    DecoderConfig,
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
from duonlp.errors import ConfigError
from duonlp.schema import BOOL, EPSILON, HEADS, LAYERS, RATE, SCALE, TEXT, VOCABULARY, WIDTH, integer

MODEL_TYPES = ("t5",)
PREFIX = ""

DEFAULTS = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": None,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "scale_decoder_outputs": None,
    "shared_word_embeddings": True,
    "decoder_start_token_id": None,
}
SCHEMA = {
    "vocab_size": VOCABULARY, "d_model": WIDTH, "d_kv": WIDTH, "d_ff": WIDTH, "num_layers": LAYERS,
    "num_decoder_layers": LAYERS | None, "num_heads": HEADS, "relative_attention_num_buckets": integer(0, 1 << 16),
    "relative_attention_max_distance": integer(1, 1 << 20), "dropout_rate": RATE, "layer_norm_epsilon": EPSILON,
    "initializer_factor": SCALE, "feed_forward_proj": TEXT, "scale_decoder_outputs": BOOL | None,
    "shared_word_embeddings": BOOL,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {"base": "T5Model", "seq2seq-lm": "T5ForConditionalGeneration"}


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    for derived in ("dense_act_fn", "is_gated_act"):  # both follow from feed_forward_proj
        hf.pop(derived, None)
    common = pop_common(hf, {"pad_token_id": 0, "eos_token_id": 1}, encoder_decoder=True)
    common["initializer_range"] = o["initializer_factor"]
    buckets, distance = o["relative_attention_num_buckets"], o["relative_attention_max_distance"]
    # Half of the buckets (per direction in the encoder) hold one distance each; the rest grow logarithmically.
    if buckets < 4 or distance <= buckets // 2:
        raise ConfigError(
            f"relative_attention_num_buckets={buckets} and relative_attention_max_distance={distance} are incompatible; "
            "use at least 4 buckets and a distance greater than half their number"
        )
    attention = AttentionConfig(
        num_heads=o["num_heads"],
        head_dim=o["d_kv"],
        bias=False,
        dropout=o["dropout_rate"],
        scale_by_head_dim=False,
        relative_buckets=buckets,
        relative_max_distance=distance,
    )
    activation, gated = _feed_forward(o["feed_forward_proj"])
    feed_forward = FeedForwardConfig(
        o["d_ff"], activation, bias=False, gated=gated, dropout=o["dropout_rate"], float32_output=True
    )
    encoder = LayerConfig(attention, feed_forward, clamped=("attention", "feed_forward"))
    cross_attention = replace(attention, relative_buckets=0)
    decoder = replace(encoder, cross_attention=cross_attention, clamped=("cross_attention", *encoder.clamped))
    words = EmbeddingConfig(
        vocab_size=o["vocab_size"],
        size=o["d_model"],
        max_positions=0,
        positions="none",
        norm=False,
        dropout=o["dropout_rate"],
    )
    layers = o["num_layers"] if o["num_decoder_layers"] is None else o["num_decoder_layers"]
    # Transformers 5 marks every T5 as tied; scale_decoder_outputs is false for the ones that are not.
    scale = o["scale_decoder_outputs"]
    scale = o["tie_word_embeddings"] is not False if scale is None else scale
    tied = o["tie_word_embeddings"] is not False and scale
    unused = PoolingConfig(token="last_eos")
    return TransformerConfig(
        model_type="t5",
        hidden_size=o["d_model"],
        layers=LayerPattern.uniform(encoder, o["num_layers"]),
        embedding=words,
        norm=NormConfig(
            epsilon=o["layer_norm_epsilon"], rms=True, position="pre", final=True, final_dropout=o["dropout_rate"]
        ),
        lm_head=LMHeadConfig(tied=tied, scale=scale),
        pooler=None,
        classification=unused,
        multiple_choice=unused,
        decoder=DecoderConfig(
            layers=LayerPattern.uniform(decoder, layers),
            embedding=words,
            shares_words=o["shared_word_embeddings"],
            start_token_id=o["decoder_start_token_id"],
        ),
        hidden_dropout=o["dropout_rate"],
        fan_in_init=True,
        extra=hf,
        **common,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    ff = cfg.feed_forward
    # In T5, "gated-gelu" has always meant the tanh approximation, i.e. "gated-gelu_new".
    projection = {("gelu_new", True): "gated-gelu"}.get((ff.activation, ff.gated), "gated-" * ff.gated + ff.activation)
    common = common_hf(cfg)
    common["initializer_factor"] = common.pop("initializer_range")
    decoder = cfg.decoder
    assert decoder is not None
    if cfg.lm_head.scale != cfg.lm_head.tied:
        common["scale_decoder_outputs"] = cfg.lm_head.scale
    if not decoder.shares_words:
        common["shared_word_embeddings"] = False
    return common | {
        "vocab_size": cfg.embedding.vocab_size,
        "d_model": cfg.hidden_size,
        "d_kv": cfg.attention.head_dim,
        "d_ff": ff.size,
        "num_layers": cfg.num_layers,
        "num_decoder_layers": len(decoder.layer_order),
        "num_heads": cfg.attention.num_heads,
        "relative_attention_num_buckets": cfg.attention.relative_buckets,
        "relative_attention_max_distance": cfg.attention.relative_max_distance,
        "dropout_rate": cfg.hidden_dropout,
        "layer_norm_epsilon": cfg.norm.epsilon,
        "feed_forward_proj": projection,
        "decoder_start_token_id": decoder.start_token_id,
        "is_encoder_decoder": True,
    }


def _feed_forward(name: str) -> tuple[str, bool]:
    """Parse ``feed_forward_proj`` into the activation and whether the layer is gated."""
    first, _, second = name.partition("-")
    if second and first != "gated":
        raise ConfigError(f"feed_forward_proj={name!r} is invalid; expected ACTIVATION or gated-ACTIVATION")
    activation = second or first
    return activation_name("gelu_new" if (activation, bool(second)) == ("gelu", True) else activation), bool(second)


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    # A newly initialized v1.1 saved by Transformers 5 has no separate output: it was the embedding table.
    rows = [
        replace(row, aliases=("shared.weight",)) if row.path == OUTPUT else row
        for row in word_tables(cfg, head, output_first=False, always_tied=True)
    ]
    rows += _stack(cfg, cross=False) + _stack(cfg.as_decoder(), cross=True)
    # Old checkpoints contain an unused bias table for cross-attention.
    table = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return [*rows, Weight(table, None, "embedding", constant="unused")]


def _stack(cfg: TransformerConfig, cross: bool) -> list[Weight]:
    stack = cfg.stack
    rows: list[Weight] = []
    for i in range(cfg.num_layers):
        theirs, ours = f"{stack}.block.{i}.layer", f"{stack}/layer_{i}"
        rows += _attention(f"{theirs}.0", "SelfAttention", f"{ours}/attention")
        if i == 0:
            rows += embedding(f"{theirs}.0.SelfAttention.relative_attention_bias", f"{stack}/relative_attention")
        if cross:
            rows += _attention(f"{theirs}.1", "EncDecAttention", f"{ours}/cross_attention")
        dense = f"{theirs}.{2 if cross else 1}"
        names = {"wi_0": "gate", "wi_1": "up", "wo": "down"} if cfg.feed_forward.gated else {"wi": "up", "wo": "down"}
        for name, part in names.items():
            rows += linear(f"{dense}.DenseReluDense.{name}", f"{ours}/feed_forward/{part}", bias=False)
        rows += [Weight(f"{dense}.layer_norm.weight", f"{ours}/feed_forward_norm/scale", "vector")]
    return [*rows, Weight(f"{stack}.final_layer_norm.weight", f"{stack}/final_norm/scale", "vector")]


def _attention(theirs: str, name: str, ours: str) -> list[Weight]:
    rows: list[Weight] = []
    for letter, part in {"q": "query", "k": "key", "v": "value", "o": "output"}.items():
        rows += linear(f"{theirs}.{name}.{letter}", f"{ours}/{part}", bias=False)
    return [*rows, Weight(f"{theirs}.layer_norm.weight", f"{ours}_norm/scale", "vector")]
