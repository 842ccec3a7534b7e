"""ELECTRA (Clark et al. 2020, https://arxiv.org/abs/2003.10555): generator and discriminator.

BERT's encoder with embeddings projected to the hidden size if the two sizes differ, and different heads.
"""

from dataclasses import replace
from typing import Any

from duonlp.architectures import bert
from duonlp.architectures._common import Weight, linear, lm_output, norm, pop_common, pop_options
from duonlp.config import PoolingConfig, TransformerConfig, activation_name
from duonlp.errors import ConfigError
from duonlp.schema import ACTIVATION, BOOL, RATE, TEXT, WIDTH

MODEL_TYPES = ("electra",)
PREFIX = "electra."

DEFAULTS = bert.DEFAULTS | {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "summary_type": "first",
    "summary_use_proj": True,
    "summary_activation": "gelu",
    "summary_last_dropout": 0.1,
}
SUMMARY_TOKENS = {"first": "first", "last": "last", "mean": "mean_with_padding", "cls_index": "last"}
SCHEMA = bert.SCHEMA | {
    "embedding_size": WIDTH, "summary_type": TEXT, "summary_use_proj": BOOL, "summary_activation": ACTIVATION,
    "summary_last_dropout": RATE, "summary_first_dropout": RATE, "summary_proj_to_labels": BOOL | None,
}  # fmt: skip


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {
        "base": "ElectraModel",
        "masked-lm": "ElectraForMaskedLM",
        "causal-lm": "ElectraForCausalLM",
        "sequence-classification": "ElectraForSequenceClassification",
        "token-classification": "ElectraForTokenClassification",
        "question-answering": "ElectraForQuestionAnswering",
        "multiple-choice": "ElectraForMultipleChoice",
        "replaced-token-detection": "ElectraForPreTraining",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    o = pop_options(hf, DEFAULTS)
    cfg = bert.encoder_config("electra", o, pop_common(hf, {"pad_token_id": 0}), extra=hf)
    if o["summary_type"] not in SUMMARY_TOKENS:
        allowed = ", ".join(SUMMARY_TOKENS)
        raise ConfigError(f"config option summary_type={o['summary_type']!r} is not supported; use one of {allowed}")
    # Not a key of ElectraConfig; a summary projected to the labels could not feed the classifier.
    if hf.get("summary_proj_to_labels"):
        raise ConfigError("config option summary_proj_to_labels=True is not supported for electra; only False is")
    head_dropout = cfg.token_dropout
    summary = PoolingConfig(
        token=SUMMARY_TOKENS[o["summary_type"]],
        dense=o["summary_use_proj"],
        activation=activation_name(o["summary_activation"]),
        dropout_before=hf.get("summary_first_dropout", 0.0),
        dropout=o["summary_last_dropout"],
    )
    return replace(
        cfg,
        embedding=replace(
            cfg.embedding,
            size=o["embedding_size"],
            projection=o["embedding_size"] != o["hidden_size"],
        ),
        # The generator head and the classification head always use gelu, regardless of hidden_act.
        lm_head=replace(cfg.lm_head, activation="gelu"),
        pooler=None,
        classification=PoolingConfig(activation="gelu", dropout_before=head_dropout, dropout=head_dropout),
        multiple_choice=summary,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    summary = cfg.multiple_choice
    return bert.hf_config(cfg) | {
        "embedding_size": cfg.embedding.size,
        "summary_type": {"mean_with_padding": "mean"}.get(summary.token, summary.token),
        "summary_use_proj": summary.dense,
        "summary_activation": summary.activation,
        "summary_last_dropout": summary.dropout,
    }


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    rows = bert.body(PREFIX, cfg, "generator_lm_head.weight")
    if cfg.embedding.projection:
        rows += linear(f"{PREFIX}embeddings_project", "embeddings/projection")
    if head in ("masked-lm", "causal-lm"):
        rows += linear("generator_predictions.dense", "lm_head/transform")
        rows += norm("generator_predictions.LayerNorm", "lm_head/norm")
        rows += lm_output("generator_lm_head.weight", "generator_lm_head.bias", cfg.lm_head.tied)
    if head == "replaced-token-detection":
        rows += linear("discriminator_predictions.dense", "discriminator/dense")
        rows += linear("discriminator_predictions.dense_prediction", "discriminator/output")
    if head == "sequence-classification":
        rows += linear("classifier.dense", "pooler/dense")
        rows += linear("classifier.out_proj", "classifier")
    if head == "multiple-choice" and cfg.multiple_choice.dense:
        rows += linear("sequence_summary.summary", "pooler/dense")
    if head in ("token-classification", "multiple-choice"):
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows
