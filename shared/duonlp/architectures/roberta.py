"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT.

BERT's encoder with positions that start after the padding id and skip padding, and a different classification head.
"""

from dataclasses import replace
from typing import Any

from duonlp.architectures import bert
from duonlp.architectures._common import Weight, linear, lm_output, norm, pop_common, pop_options
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import TOKEN

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
PREFIX = "roberta."

CLASS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
SCHEMA = bert.SCHEMA | {"pad_token_id": TOKEN | None}


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    name = CLASS[model_type]
    return {
        "base": f"{name}Model",
        "masked-lm": f"{name}ForMaskedLM",
        "causal-lm": f"{name}ForCausalLM",
        "sequence-classification": f"{name}ForSequenceClassification",
        "token-classification": f"{name}ForTokenClassification",
        "question-answering": f"{name}ForQuestionAnswering",
        "multiple-choice": f"{name}ForMultipleChoice",
    }


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig."""
    model_type = hf["model_type"]
    vocab_size = 50265 if model_type == "roberta" else bert.DEFAULTS["vocab_size"]
    o = pop_options(hf, bert.DEFAULTS | {"vocab_size": vocab_size})
    common = pop_common(hf, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2})
    if common["pad_token_id"] is None:
        raise ConfigError(f"pad_token_id of {model_type} is null; set it, since positions start after it")
    cfg = bert.encoder_config(model_type, o, common, extra=hf)
    return replace(
        cfg,
        embedding=replace(
            cfg.embedding,
            position_offset=common["pad_token_id"] + 1,
            positions_skip_padding=True,
        ),
        # The LM head always uses gelu, regardless of hidden_act.
        lm_head=replace(cfg.lm_head, activation="gelu"),
        classification=replace(cfg.classification, dropout_before=cfg.classification.dropout),
        multiple_choice=replace(cfg.multiple_choice, dropout=cfg.hidden_dropout),
    )


hf_config = bert.hf_config


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table."""
    rows = bert.body(PREFIX, cfg, "lm_head.decoder.weight")
    if head in ("masked-lm", "causal-lm"):
        rows += linear("lm_head.dense", "lm_head/transform")
        rows += norm("lm_head.layer_norm", "lm_head/norm")
        rows += lm_output("lm_head.decoder.weight", "lm_head.decoder.bias", cfg.lm_head.tied, bias_copy="lm_head.bias")
    if head in ("base", "multiple-choice"):
        rows += linear(f"{PREFIX}pooler.dense", "pooler/dense")
    if head == "sequence-classification":
        rows += linear("classifier.dense", "pooler/dense")
        rows += linear("classifier.out_proj", "classifier")
    if head in ("token-classification", "multiple-choice"):
        rows += linear("classifier", "classifier")
    if head == "question-answering":
        rows += linear("qa_outputs", "qa_outputs")
    return rows
