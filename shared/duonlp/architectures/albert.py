"""ALBERT (Lan et al. 2019, https://arxiv.org/abs/1909.11942): layers that share weights, factorized embeddings."""

from dataclasses import replace
from typing import Any

from duonlp.architectures import bert
from duonlp.architectures._common import Weight, embedding, linear, lm_output, norm, pop_common, pop_options
from duonlp.config import LayerPattern, TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import LAYERS, MOST_LAYERS, RATE, WIDTH

MODEL_TYPES = ("albert",)
PREFIX = "albert."

DEFAULTS = {
    "vocab_size": 30000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_hidden_layers": 12,
    "num_hidden_groups": 1,
    "num_attention_heads": 64,
    "intermediate_size": 16384,
    "inner_group_num": 1,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "classifier_dropout_prob": 0.1,
    "tie_word_embeddings": True,
}
SCHEMA = bert.SCHEMA | {
    "embedding_size": WIDTH, "num_hidden_groups": LAYERS, "inner_group_num": LAYERS, "classifier_dropout_prob": RATE,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "AlbertModel",
        "masked-lm": "AlbertForMaskedLM",
        "sequence-classification": "AlbertForSequenceClassification",
        "token-classification": "AlbertForTokenClassification",
        "question-answering": "AlbertForQuestionAnswering",
        "multiple-choice": "AlbertForMultipleChoice",
        "pretraining": "AlbertForPreTraining",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    common = pop_common(hf, {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3})
    o |= {"classifier_dropout": o["classifier_dropout_prob"], "is_decoder": False}
    # layer_order (0, 1) can be two groups of one layer or one group of two, whose tensor names differ: keep which it is.
    cfg = bert.encoder_config("albert", o, common, extra=hf | {"inner_group_num": o["inner_group_num"]})
    order = layer_order(o["num_hidden_layers"], o["num_hidden_groups"], o["inner_group_num"])
    return replace(
        cfg,
        layers=LayerPattern.uniform(cfg.layers[0], len(order), order),
        embedding=replace(cfg.embedding, size=o["embedding_size"], projection=True),
        sentence_head="sentence_order",
    )


def layer_order(num_layers: int, num_groups: int, inner: int) -> tuple[int, ...]:
    """Return the index of the layer weights that each step applies, out of ``num_groups * inner``.

    Raises:
        ConfigError: ``num_groups`` is not between 1 and ``num_layers``, or there are too many steps.
    """
    if num_layers * inner > MOST_LAYERS:
        raise ConfigError(
            f"num_hidden_layers={num_layers} times inner_group_num={inner} is more than {MOST_LAYERS} layers; reduce one of them"
        )
    if not 1 <= num_groups <= num_layers:
        raise ConfigError(f"num_hidden_groups={num_groups} must be between 1 and num_hidden_layers={num_layers}")
    groups = [int(i / (num_layers / num_groups)) for i in range(num_layers)]
    return tuple(group * inner + j for group in groups for j in range(inner))


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    inner = cfg.extra.get("inner_group_num", 1)
    out = bert.hf_config(cfg) | {
        "embedding_size": cfg.embedding.size,
        "num_hidden_layers": cfg.num_layers // inner,
        "num_hidden_groups": cfg.num_layer_weights // inner,
        "inner_group_num": inner,
        "classifier_dropout_prob": cfg.token_dropout,
    }
    return {key: value for key, value in out.items() if key not in ("classifier_dropout", "is_decoder")}


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    tied_name = ("predictions.decoder.weight",) if cfg.lm_head.tied else ()
    rows = embedding(f"{PREFIX}embeddings.word_embeddings", "embeddings/word_embeddings", tied_name)
    rows += embedding(f"{PREFIX}embeddings.position_embeddings", "embeddings/position_embeddings")
    if cfg.embedding.type_vocab_size:
        rows += embedding(f"{PREFIX}embeddings.token_type_embeddings", "embeddings/token_type_embeddings")
    rows += norm(f"{PREFIX}embeddings.LayerNorm", "embeddings/norm")
    rows += linear(f"{PREFIX}encoder.embedding_hidden_mapping_in", "embeddings/projection")
    inner = cfg.extra.get("inner_group_num", 1)
    for i in range(cfg.num_layer_weights):
        group, j = divmod(i, inner)
        theirs = f"{PREFIX}encoder.albert_layer_groups.{group}.albert_layers.{j}"
        ours = f"encoder/layer_{i}"
        for name, short in (("query", "query"), ("key", "key"), ("value", "value"), ("output", "dense")):
            rows += linear(f"{theirs}.attention.{short}", f"{ours}/attention/{name}")
        rows += norm(f"{theirs}.attention.LayerNorm", f"{ours}/attention_norm")
        rows += linear(f"{theirs}.ffn", f"{ours}/feed_forward/up")
        rows += linear(f"{theirs}.ffn_output", f"{ours}/feed_forward/down")
        rows += norm(f"{theirs}.full_layer_layer_norm", f"{ours}/feed_forward_norm")
    if head in ("masked-lm", "pretraining"):
        rows += linear("predictions.dense", "lm_head/transform")
        rows += norm("predictions.LayerNorm", "lm_head/norm")
        names = "predictions.decoder.weight", "predictions.decoder.bias"
        rows += lm_output(*names, cfg.lm_head.tied, bias_copy="predictions.bias")
    if head in ("base", "sequence-classification", "multiple-choice", "pretraining"):
        rows += linear(f"{PREFIX}pooler", "pooler/dense")
    if head == "pretraining":
        rows += linear("sop_classifier.classifier", "sentence_order")
    if head in ("sequence-classification", "token-classification", "multiple-choice"):
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows
