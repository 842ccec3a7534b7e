"""RoBERTa (Liu et al. 2019, https://arxiv.org/abs/1907.11692), XLM-RoBERTa and CamemBERT.

BERT's body with positions that start after the padding id and skip padding, and a classification head of its own.
"""

from dataclasses import replace

from duonlp.architectures import bert
from duonlp.architectures._common import linear, lm_output, norm, take, take_common
from duonlp.errors import ConfigError

MODEL_TYPES = ("roberta", "xlm-roberta", "camembert")
PREFIX = "roberta."

CLASS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}


def heads(model_type):
    """Head to Transformers class."""
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


def config(hf):
    """config.json to TransformerConfig."""
    model_type = hf["model_type"]
    vocab_size = 50265 if model_type == "roberta" else bert.DEFAULTS["vocab_size"]
    o = take(hf, bert.DEFAULTS | {"vocab_size": vocab_size})
    common = take_common(hf, {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2})
    if common["pad_token_id"] is None:
        raise ConfigError(f"{model_type} needs a pad_token_id, since its positions start after it; got null")
    cfg = bert.encoder_config(model_type, o, common, extra=hf)
    return replace(
        cfg,
        embedding=replace(
            cfg.embedding,
            position_offset=common["pad_token_id"] + 1,
            positions_skip_padding=True,
        ),
        # The language model head's activation is gelu whatever hidden_act says.
        lm_head=replace(cfg.lm_head, activation="gelu"),
        classification=replace(cfg.classification, dropout_before=cfg.classification.dropout),
        multiple_choice=replace(cfg.multiple_choice, dropout=cfg.hidden_dropout),
    )


hf_config = bert.hf_config


def weights(cfg, head):
    """The weight table."""
    rows = bert.body(PREFIX, cfg)
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
