"""What the family files share: rows of the weight table, and the keys every config.json has."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from duonlp.config import PROBLEM_TYPES
from duonlp.errors import ConfigError


@dataclass(frozen=True)
class Weight:
    """One row: a tensor of the checkpoint and where it stands in our parameter tree.

    layout: ``linear`` is [out, in] in the checkpoint and [in, out] here; ``conv1d``, ``embedding`` and ``vector`` are
    alike on both sides. part: ``(i, n)`` when the checkpoint's tensor holds n of ours side by side on its last axis.
    aliases: other names to read it under. copies: names it is written under as well. A path of None marks a tensor
    that is known and not loaded: the name of a tied copy, or fixed sines and cosines, whose layout (``positions`` or
    ``decoder_positions``) says that they are written. optional: a checkpoint may lack it, and it then starts as its
    initializer says.
    """

    name: str
    path: str | None
    layout: str
    part: tuple[int, int] = (0, 1)
    aliases: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    optional: bool = False


def linear(name: str, path: str, bias: bool = True) -> list[Weight]:
    """A torch Linear: weight and bias."""
    rows = [Weight(f"{name}.weight", f"{path}/kernel", "linear")]
    return rows + [Weight(f"{name}.bias", f"{path}/bias", "vector")] * bias


def conv1d(name: str, paths: list[str]) -> list[Weight]:
    """A GPT-2 Conv1D, which may hold several of our layers side by side."""
    parts = [(path, (i, len(paths))) for i, path in enumerate(paths)]
    return [Weight(f"{name}.weight", f"{path}/kernel", "conv1d", part) for path, part in parts] + [
        Weight(f"{name}.bias", f"{path}/bias", "vector", part) for path, part in parts
    ]


def norm(name: str, path: str) -> list[Weight]:
    """A LayerNorm; ``gamma`` and ``beta`` are its names in checkpoints converted from TensorFlow 1."""
    return [
        Weight(f"{name}.weight", f"{path}/scale", "vector", aliases=(f"{name}.gamma",)),
        Weight(f"{name}.bias", f"{path}/bias", "vector", aliases=(f"{name}.beta",)),
    ]


def embedding(name: str, path: str, aliases: tuple[str, ...] = ()) -> list[Weight]:
    """A table of vectors, [rows, width] on both sides."""
    return [Weight(f"{name}.weight", f"{path}/embedding", "embedding", aliases=aliases)]


def lm_output(weight: str, bias: str, tied: bool, bias_copy: str | None = None) -> list[Weight]:
    """The vocabulary projection of an LM head with a bias; a tied one has no weight of its own.

    bias_copy: the second name Transformers gives the bias. It is tied to the first only when the weight is, and then
    only one of them is saved; otherwise both are.
    """
    if tied:
        copies = [Weight(weight, None, "linear")]
        main, other = (bias_copy, bias) if bias_copy else (bias, None)
        return [*copies, Weight(main, "lm_head/bias", "vector", aliases=(other,) if other else ())]
    also = (bias_copy,) if bias_copy else ()
    return [
        Weight(weight, "lm_head/output/kernel", "linear"),
        Weight(bias, "lm_head/bias", "vector", aliases=also, copies=also),
    ]


def take(hf: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Move the keys of ``defaults`` out of ``hf``, filling in what it lacks. What stays in ``hf`` is ``extra``."""
    return {key: hf.pop(key, default) for key, default in defaults.items()}


def require(hf: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Refuse options whose arithmetic is not implemented.

    Raises:
        ConfigError: naming the option, its value and the value that is supported.
    """
    for key, value in allowed.items():
        if key in hf and hf[key] != value and hf[key] is not None:
            raise ConfigError(
                f"config option {key}={hf[key]!r} of {hf.get('model_type')} is not supported; only {value!r} is"
            )


def head_dim(hidden_size: int, num_heads: int) -> int:
    """The width of an attention head.

    Raises:
        ConfigError: the heads do not share the hidden size evenly.
    """
    if num_heads < 1 or hidden_size % num_heads:
        raise ConfigError(
            f"hidden size {hidden_size} is not a multiple of the number of attention heads {num_heads}; change one of them"
        )
    return hidden_size // num_heads


UNSUPPORTED = {
    "add_cross_attention": False,
    "position_embedding_type": "absolute",
    "pruned_heads": {},
    "quantization_config": None,
}
"""Options that any family may carry and no engine implements, with the value that means they are off."""

SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def take_common(
    hf: dict[str, Any], special: Mapping[str, Any], *, num_labels: int = 2, encoder_decoder: bool = False
) -> dict[str, Any]:
    """Labels, problem type, initializer range and special ids, as fields of TransformerConfig.

    special: the family's own default ids, for the keys config.json lacks. num_labels: its default.
    """
    require(hf, UNSUPPORTED | {"is_encoder_decoder": encoder_decoder})
    hf.pop("model_type"), hf.pop("architectures", None)
    id2label, given = hf.pop("id2label", None), hf.pop("num_labels", None)
    hf.pop("label2id", None)
    if id2label is None:
        labels = tuple(f"LABEL_{i}" for i in range(num_labels if given is None else given))
    else:
        by_id = {int(k): v for k, v in id2label.items()}
        if sorted(by_id) != list(range(len(by_id))):
            raise ConfigError(f"id2label has the ids {sorted(by_id)}; they must be 0 to {len(by_id) - 1} without gaps")
        labels = tuple(by_id[i] for i in range(len(by_id)))
    problem_type = hf.pop("problem_type", None)
    if problem_type not in (None, *PROBLEM_TYPES):
        raise ConfigError(f"problem_type {problem_type!r} is none of {', '.join(PROBLEM_TYPES)}")
    ids = {key: hf.pop(key, special.get(key)) for key in SPECIAL_IDS}
    if isinstance(ids["eos_token_id"], list):
        ids["eos_token_id"] = tuple(ids["eos_token_id"])
    return {
        "labels": labels,
        "problem_type": problem_type,
        "initializer_range": hf.pop("initializer_range", 0.02),
        **ids,
    }


def common_hf(cfg) -> dict[str, Any]:
    """The inverse of :func:`take_common`."""
    eos = cfg.eos_token_id
    return {
        "id2label": {str(i): label for i, label in cfg.id2label.items()},
        "label2id": cfg.label2id,
        "initializer_range": cfg.initializer_range,
        "pad_token_id": cfg.pad_token_id,
        "bos_token_id": cfg.bos_token_id,
        "eos_token_id": list(eos) if isinstance(eos, tuple) else eos,
        "tie_word_embeddings": cfg.lm_head.tied,
    } | ({"problem_type": cfg.problem_type} if cfg.problem_type else {})


BUFFERS = (r"(^|\.)position_ids$", r"(^|\.)token_type_ids$", r"\.(attn|crossattention)\.(masked_)?bias$")
"""Names of tensors that older Transformers saved and no parameter takes: constants derived from the configuration."""
