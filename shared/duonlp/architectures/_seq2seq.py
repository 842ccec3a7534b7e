"""Configuration and weight table of BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461) and related families.

Each family specifies where its norms are, where positions come from and what is tied. ``encoder_layerdrop`` and
``decoder_layerdrop`` are only kept in ``extra``: LayerDrop is not implemented, and does not affect inference.
"""

from collections.abc import Mapping
from typing import Any

from duonlp.architectures._common import (
    Weight,
    common_hf,
    embedding,
    head_dim,
    linear,
    norm,
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
from duonlp.schema import ACTIVATION, BOOL, HEADS, LAYERS, POSITIONS, RATE, SCALE, VOCABULARY, WIDTH

PREFIX = "model."

DEFAULTS = {
    "vocab_size": 50265,
    "max_position_embeddings": 1024,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_ffn_dim": 4096,
    "encoder_attention_heads": 16,
    "decoder_layers": 12,
    "decoder_ffn_dim": 4096,
    "decoder_attention_heads": 16,
    "activation_function": "gelu",
    "dropout": 0.1,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "init_std": 0.02,
    "scale_embedding": False,
    "decoder_start_token_id": 2,
    "tie_word_embeddings": True,
    "shared_word_embeddings": None,
    "stored_positions": False,
}
"""Defaults of BartConfig. The last two are keys of this library: whether the stacks share their words although embeddings are
not tied, or do not although they are; and whether fixed positions are not those that the family computes."""

SCHEMA = {
    "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "d_model": WIDTH, "hidden_size": WIDTH,
    "encoder_layers": LAYERS, "num_hidden_layers": LAYERS, "encoder_ffn_dim": WIDTH, "encoder_attention_heads": HEADS,
    "num_attention_heads": HEADS, "decoder_layers": LAYERS, "decoder_ffn_dim": WIDTH, "decoder_attention_heads": HEADS,
    "activation_function": ACTIVATION, "dropout": RATE, "attention_dropout": RATE, "activation_dropout": RATE,
    "classifier_dropout": RATE, "init_std": SCALE, "scale_embedding": BOOL | None,
    "shared_word_embeddings": BOOL | None, "stored_positions": BOOL,
}  # fmt: skip
"""Kinds of the keys of these families."""

CLASSIFIER_DEFAULTS = {"classifier_dropout": 0.0}
"""Additional defaults of families with a sequence classification head."""

OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}
"""Alternative names of keys in config.json."""


def heads(name: str, tasks: bool = True) -> dict[str, str]:
    """Return the Transformers class name of each head.

    Args:
        name: Prefix of the family's class names.
        tasks: Whether the family has sequence classification and question answering heads.
    """
    task_heads = {
        "sequence-classification": f"{name}ForSequenceClassification",
        "question-answering": f"{name}ForQuestionAnswering",
    }
    return {"base": f"{name}Model", "seq2seq-lm": f"{name}ForConditionalGeneration"} | (task_heads if tasks else {})


def config(
    hf: dict[str, Any], defaults: Mapping[str, Any], special_ids: Mapping[str, Any], *, norm: str,
    positions: str = "learned", spare_positions: int = 0, position_offset: int = 0, skip_padding: bool = False,
    embedding_norm: bool = False, biased: bool = True, num_labels: int = 2, decoder_vocab_size: int | None = None,
    shares_words: bool = True, reads_source: bool = False, starts_with_last: bool = False,
) -> TransformerConfig:  # fmt: skip
    """Translate config.json to a TransformerConfig.

    Args:
        hf: Contents of config.json; keys that are read are removed.
        defaults: Defaults that differ from DEFAULTS.
        special_ids: Default ids of special tokens.
        norm: "pre" for norms before the blocks and one after the last layer, or "post" for norms after the residuals.
        positions: See EmbeddingConfig.
        spare_positions: Rows of the position table beyond max_position_embeddings.
        position_offset: See EmbeddingConfig.
        skip_padding: See EmbeddingConfig.positions_skip_padding.
        embedding_norm: Whether a norm follows the embeddings.
        biased: Whether the logits have a (fixed) bias.
        num_labels: Default number of labels.
        decoder_vocab_size: Vocabulary size of the decoder, if it differs from the encoder's.
        shares_words: Whether the two stacks share one word embedding table when embeddings are tied.
        reads_source: See DecoderConfig.
        starts_with_last: See DecoderConfig.
    """
    for name, key in OTHER_NAMES.items():
        if name in hf:
            hf.setdefault(key, hf.pop(name))
    o = pop_options(hf, DEFAULTS | dict(defaults))
    model_type = hf["model_type"]
    common = pop_common(hf, special_ids, num_labels=num_labels, encoder_decoder=True)
    common["initializer_range"] = o["init_std"]
    tied = o["tie_word_embeddings"] is not False
    # With untied embeddings, Transformers 5 gives each stack its own table, which may be equal copies.
    shares_words = shares_words and (tied if o["shared_word_embeddings"] is None else o["shared_word_embeddings"])

    def layers(stack: str, cross_attention: bool) -> LayerPattern:
        heads, activation = o[f"{stack}_attention_heads"], activation_name(o["activation_function"])
        attention = AttentionConfig(heads, head_dim(o["d_model"], heads), dropout=o["attention_dropout"])
        feed_forward = FeedForwardConfig(o[f"{stack}_ffn_dim"], activation, dropout=o["activation_dropout"])
        clamped = () if cross_attention else ("feed_forward",)  # Transformers clamps encoders only
        layer = LayerConfig(attention, feed_forward, attention if cross_attention else None, clamped=clamped)
        return LayerPattern.uniform(layer, o[f"{stack}_layers"])

    def embeddings(vocab_size: int) -> EmbeddingConfig:
        return EmbeddingConfig(
            vocab_size=vocab_size,
            size=o["d_model"],
            max_positions=o["max_position_embeddings"] + spare_positions,
            positions=positions,
            stored_positions=o["stored_positions"] and positions == "sinusoidal",
            position_offset=position_offset,
            positions_skip_padding=skip_padding,
            padding_id=common["pad_token_id"],
            scale=bool(o["scale_embedding"]),
            norm=embedding_norm,
            dropout=o["dropout"],
        )

    rate = o.get("classifier_dropout", 0.0)
    pooling = PoolingConfig(token="last_eos", dropout_before=rate, dropout=rate)
    return TransformerConfig(
        model_type=model_type,
        hidden_size=o["d_model"],
        layers=layers("encoder", cross_attention=False),
        embedding=embeddings(o["vocab_size"]),
        norm=NormConfig(epsilon=1e-5, position=norm, final=norm == "pre"),
        lm_head=LMHeadConfig(bias=biased, fixed_bias=biased, tied=tied),
        pooler=None,
        classification=pooling,
        multiple_choice=pooling,
        decoder=DecoderConfig(
            layers=layers("decoder", cross_attention=True),
            embedding=embeddings(o["vocab_size"] if decoder_vocab_size is None else decoder_vocab_size),
            shares_words=shares_words,
            start_token_id=o["decoder_start_token_id"],
            starts_with_last=starts_with_last,
            reads_source=reads_source,
        ),
        hidden_dropout=o["dropout"],
        extra=hf,
        **common,
    )


def hf_config(cfg: TransformerConfig, spare_positions: int = 0) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    common, decoder = common_hf(cfg), cfg.decoder
    assert decoder is not None
    common["init_std"] = common.pop("initializer_range")
    if decoder.shares_words != cfg.lm_head.tied:
        common["shared_word_embeddings"] = decoder.shares_words
    if cfg.embedding.stored_positions:
        common["stored_positions"] = True
    return common | {
        "vocab_size": cfg.embedding.vocab_size,
        "max_position_embeddings": cfg.embedding.max_positions - spare_positions,
        "d_model": cfg.hidden_size,
        "encoder_layers": cfg.num_layers,
        "encoder_ffn_dim": cfg.feed_forward.size,
        "encoder_attention_heads": cfg.attention.num_heads,
        "decoder_layers": len(decoder.layer_order),
        "decoder_ffn_dim": decoder.feed_forward.size,
        "decoder_attention_heads": decoder.attention.num_heads,
        "activation_function": cfg.feed_forward.activation,
        "dropout": cfg.hidden_dropout,
        "attention_dropout": cfg.attention.dropout,
        "activation_dropout": cfg.feed_forward.dropout,
        "scale_embedding": cfg.embedding.scale,
        "decoder_start_token_id": decoder.start_token_id,
        "is_encoder_decoder": True,
    }


def hf_classifier(cfg: TransformerConfig) -> dict[str, Any]:
    """Return the additional keys of config.json in families with a sequence classification head."""
    return {"classifier_dropout": cfg.classification.dropout}


def weights(
    cfg: TransformerConfig,
    head: str,
    positions: tuple[str | None, str | None] = (None, None),
    always_shared: bool = True,
) -> list[Weight]:
    """Return the weight table.

    Args:
        cfg: The model.
        head: Its head.
        positions: Layouts of the fixed positions of encoder and decoder (see Weight); None recognizes them without
            writing them.
        always_shared: Whether a checkpoint holds the shared table even if each stack has its own.
    """
    rows = word_tables(cfg, head, PREFIX, separate_shared=always_shared)
    rows += _stack(cfg, "encoder", "embeddings", positions[0]) + _stack(
        cfg.as_decoder(), "decoder", "decoder_embeddings", positions[1]
    )
    if head == "seq2seq-lm" and cfg.lm_head.bias:
        rows += [Weight("final_logits_bias", "lm_head/bias", "row", optional=True)]
    if head == "sequence-classification":
        rows += linear("classification_head.dense", "pooler/dense")
        rows += linear("classification_head.out_proj", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows


def _stack(cfg: TransformerConfig, stack: str, ours: str, layout: str | None) -> list[Weight]:
    theirs, e = f"{PREFIX}{stack}", cfg.embedding
    if e.positions == "learned":
        rows = embedding(f"{theirs}.embed_positions", f"{ours}/position_embeddings")
    else:
        name, table, constant = f"{theirs}.embed_positions", f"{ours}/position_table", f"{stack}_positions"
        unwritten = f"unwritten_{stack}_positions"
        if e.stored_positions:
            rows = [Weight(f"{name}.weight", table, "vector", optional=True)]
        elif e.positions == "sinusoidal":
            rows = [Weight(f"{name}.weight", None, layout or unwritten, own_path=table)]
        else:
            rows = [Weight(f"{name}.weight", None, unwritten, constant=constant)]
        # older versions of M2M100 saved these
        rows += [Weight(f"{name}.weights", None, unwritten, constant=constant)]
        rows += [Weight(f"{name}._float_tensor", None, "embedding", constant="unused")]
    rows += [Weight(f"{theirs}.version", None, "vector", constant="unused")]  # saved by fairseq
    if e.norm:
        rows += norm(f"{theirs}.layernorm_embedding", f"{ours}/norm")
    for i in range(cfg.num_layers):
        layer, path = f"{theirs}.layers.{i}", f"{stack}/layer_{i}"
        rows += _attention(f"{layer}.self_attn", f"{path}/attention")
        if cfg.cross_attention is not None:
            rows += _attention(f"{layer}.encoder_attn", f"{path}/cross_attention")
        rows += linear(f"{layer}.fc1", f"{path}/feed_forward/up") + linear(f"{layer}.fc2", f"{path}/feed_forward/down")
        rows += norm(f"{layer}.final_layer_norm", f"{path}/feed_forward_norm")
    return rows + (norm(f"{theirs}.layer_norm", f"{stack}/final_norm") if cfg.norm.final else [])


def _attention(theirs: str, ours: str) -> list[Weight]:
    rows = norm(f"{theirs}_layer_norm", f"{ours}_norm")
    for name, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
        rows += linear(f"{theirs}.{name}", f"{ours}/{part}")
    return rows
