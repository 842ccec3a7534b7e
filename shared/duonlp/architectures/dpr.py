"""DPR (Karpukhin et al. 2020, https://arxiv.org/abs/2004.04906): the towers for questions and for passages.

A tower is BERT without a pooler, whose vector is that of [CLS], projected if ``projection_dim`` is not 0. Transformers has a
class for each: both have config.json's model type "dpr", and ``architectures`` or the names of the tensors tell them apart.
"""

from dataclasses import replace
from typing import Any

from duonlp.architectures import bert
from duonlp.architectures._common import Weight, linear, pop_common, pop_options
from duonlp.config import PoolingConfig, TransformerConfig
from duonlp.errors import ConfigError
from duonlp.schema import integer

MODEL_TYPES = ("dpr",)
PREFIX = ""
BASE_CLASSES = {"DPRQuestionEncoder": "question_encoder.", "DPRContextEncoder": "ctx_encoder."}
READER = "DPRReader"

DEFAULTS = bert.DEFAULTS | {"projection_dim": 0}
SCHEMA = bert.SCHEMA | {"projection_dim": integer(0, 1 << 20)}


def heads(model_type: str) -> dict[str, str]:
    """Return the Transformers class name of each head."""
    return {"base": "DPRQuestionEncoder"}


def config(hf: dict[str, Any]) -> TransformerConfig:
    """Translate config.json to a TransformerConfig.

    Raises:
        ConfigError: It is the configuration of DPR's reader.
    """
    saved = next(iter(hf.get("architectures") or []), "")
    if saved == READER:
        raise ConfigError(
            f"architectures is [{READER!r}], which is not supported; use one of {', '.join(BASE_CLASSES)}, and a "
            "question-answering model such as a fine-tuned BERT as the reader"
        )
    o = pop_options(hf, DEFAULTS)
    size, common = o["projection_dim"], pop_common(hf, {"pad_token_id": 0})
    return replace(
        bert.encoder_config("dpr", o, common, extra=hf),
        base_class=saved if saved in BASE_CLASSES else "DPRQuestionEncoder",
        pooler=PoolingConfig(dense=size > 0, activation="linear", size=size),
        pooler_embeds=True,
    )


def hf_config(cfg: TransformerConfig) -> dict[str, Any]:
    """Translate a TransformerConfig to config.json."""
    out = bert.hf_config(cfg)
    del out["classifier_dropout"], out["tie_word_embeddings"]
    return out | {"projection_dim": 0 if cfg.pooler is None else cfg.pooler.size}


def weights(cfg: TransformerConfig, head: str) -> list[Weight]:
    """Return the weight table; a tower is also read from the tensors of the other one."""
    own = BASE_CLASSES[cfg.base_class]
    (other,) = set(BASE_CLASSES.values()) - {own}
    rows = bert.body(f"{own}bert_model.", cfg, "")
    if cfg.pooler is not None and cfg.pooler.dense:
        rows += linear(f"{own}encode_proj", "pooler/dense")
    rows = [replace(row, aliases=(other + row.name.removeprefix(own),)) for row in rows]
    # Saved by Transformers 3, which had BERT's pooler and did not use it.
    for end in ("weight", "bias"):
        name = f"bert_model.pooler.dense.{end}"
        rows.append(Weight(own + name, None, "vector", aliases=(other + name,), constant="unused"))
    return rows
