"""What BART (Lewis et al. 2020, https://arxiv.org/abs/1910.13461) and its kin share: a shape of config.json, names of tensors.

Families say where norms stand, where positions come from and what is tied. ``encoder_layerdrop`` and ``decoder_layerdrop``
are kept in ``extra``: layers are not dropped in training here, and Transformers drops none in inference.
"""

from duonlp.architectures._common import Weight, common_hf, embedding, head_dim, linear, norm, take, take_common
from duonlp.config import (
    AttentionConfig,
    DecoderConfig,
    EmbeddingConfig,
    FeedForwardConfig,
    LMHeadConfig,
    NormConfig,
    PoolingConfig,
    TransformerConfig,
    activation_name,
)  # fmt: skip

PREFIX = "model."
TABLE = "embeddings/word_embeddings/embedding"

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
}
"""BART's own."""

CLASSIFIER_DEFAULTS = {"classifier_dropout": 0.0}
"""Of the families that classify."""

OTHER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
}
"""Names that config.json may say a key under, too."""


def heads(name, tasks=True):
    """Head to Transformers class, for the family whose classes begin with ``name``. tasks: those for other tasks as well."""
    more = {
        "sequence-classification": f"{name}ForSequenceClassification",
        "question-answering": f"{name}ForQuestionAnswering",
    }
    return {"base": f"{name}Model", "seq2seq-lm": f"{name}ForConditionalGeneration"} | (more if tasks else {})


def config(
    hf, defaults, special, *, norm, positions="learned", spare_positions=0, position_offset=0, skip_padding=False,
    embedding_norm=False, biased=True, num_labels=2, decoder_vocab_size=None, shares_words=True, reads_source=False,
    starts_with_last=False,
):  # fmt: skip
    """config.json to TransformerConfig.

    Args:
        hf: config.json, which what is read is taken out of.
        defaults: what differs from DEFAULTS. special: the default ids of special tokens.
        norm: "pre", with a norm after the last layer, or "post", without.
        positions, position_offset, skip_padding: as EmbeddingConfig has them; spare_positions: rows above
            max_position_embeddings.
        embedding_norm: whether there is a norm after the embeddings.
        biased: whether the logits have a bias, which is fixed.
        decoder_vocab_size: where it is not the encoder's.
        shares_words: whether the stacks have one table of words, as long as words are tied.
        reads_source, starts_with_last: as DecoderConfig has them.
    """
    for name, key in OTHER_NAMES.items():
        if name in hf:
            hf.setdefault(key, hf.pop(name))
    o = take(hf, DEFAULTS | defaults)
    model_type = hf["model_type"]
    common = take_common(hf, special, num_labels=num_labels, encoder_decoder=True)
    common["initializer_range"] = o["init_std"]
    tied = o["tie_word_embeddings"] is not False

    def attention(stack):
        heads = o[f"{stack}_attention_heads"]
        return AttentionConfig(heads, head_dim(o["d_model"], heads), dropout=o["attention_dropout"])

    def feed_forward(stack):
        activation = activation_name(o["activation_function"])
        return FeedForwardConfig(o[f"{stack}_ffn_dim"], activation, dropout=o["activation_dropout"])

    def words(vocab_size):
        return EmbeddingConfig(
            vocab_size=vocab_size,
            size=o["d_model"],
            max_positions=o["max_position_embeddings"] + spare_positions,
            positions=positions,
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
        layer_order=tuple(range(o["encoder_layers"])),
        embedding=words(o["vocab_size"]),
        attention=attention("encoder"),
        feed_forward=feed_forward("encoder"),
        norm=NormConfig(epsilon=1e-5, position=norm, final=norm == "pre"),
        lm_head=LMHeadConfig(bias=biased, fixed_bias=biased, tied=tied),
        pooler=None,
        classification=pooling,
        multiple_choice=pooling,
        decoder=DecoderConfig(
            layer_order=tuple(range(o["decoder_layers"])),
            embedding=words(o["vocab_size"] if decoder_vocab_size is None else decoder_vocab_size),
            attention=attention("decoder"),
            cross_attention=attention("decoder"),
            feed_forward=feed_forward("decoder"),
            # Without tied words Transformers 5 gives each stack a table of its own.
            shares_words=shares_words and tied,
            start_token_id=o["decoder_start_token_id"],
            starts_with_last=starts_with_last,
            reads_source=reads_source,
        ),
        hidden_dropout=o["dropout"],
        extra=hf,
        **common,
    )


def hf_config(cfg, spare_positions=0):
    """TransformerConfig to config.json."""
    common, decoder = common_hf(cfg), cfg.decoder
    common["init_std"] = common.pop("initializer_range")
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


def hf_classifier(cfg):
    """What config.json has besides in the families that classify."""
    return {"classifier_dropout": cfg.classification.dropout}


def weights(cfg, head, positions=(None, None), always_shared=True):
    """The weight table.

    positions: the layouts of fixed sines and cosines (see Weight); of None they are known, and not written.
    always_shared: whether a checkpoint has the shared table even where the stacks have tables of their own.
    """
    rows = _words(cfg, head, always_shared)
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


def _words(cfg, head, always_shared):
    """The tables of words, and the output, which may be one of them."""
    shared, encoder, decoder = (
        f"{PREFIX}{name}.weight" for name in ("shared", "encoder.embed_tokens", "decoder.embed_tokens")
    )
    output, tied = "lm_head.weight", cfg.lm_head.tied
    if cfg.decoder.shares_words:
        # Files that were converted from pickles may have kept any one of the names.
        others = (encoder, decoder, output) if tied else (encoder, decoder)
        rows = [Weight(shared, TABLE, "embedding", aliases=others)]
        rows += [Weight(name, None, "embedding") for name in (encoder, decoder)]
    else:
        copies = (shared,) if always_shared else ()
        others = (output, shared) if tied else (shared,)
        rows = [
            Weight(encoder, TABLE, "embedding", aliases=(shared,), copies=copies),
            Weight(decoder, f"decoder_{TABLE}", "embedding", aliases=others),
        ]
    if head == "seq2seq-lm":
        rows += [Weight(output, None if tied else "lm_head/output/kernel", "linear")]
    return rows


def _stack(cfg, stack, ours, layout):
    theirs, e = f"{PREFIX}{stack}", cfg.embedding
    if e.positions == "learned":
        rows = embedding(f"{theirs}.embed_positions", f"{ours}/position_embeddings")
    else:
        rows = [Weight(f"{theirs}.embed_positions.weight", None, layout or "embedding")]
        # M2M100's, of versions that saved them
        rows += [Weight(f"{theirs}.embed_positions.{name}", None, "embedding") for name in ("weights", "_float_tensor")]
    rows += [Weight(f"{theirs}.version", None, "vector")]  # fairseq's
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


def _attention(theirs, ours):
    rows = norm(f"{theirs}_layer_norm", f"{ours}_norm")
    for name, part in {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "output"}.items():
        rows += linear(f"{theirs}.{name}", f"{ours}/{part}")
    return rows
