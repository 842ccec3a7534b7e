"""What a checkpoint's files tell sentence-transformers: pooling, what follows it, lengths and prompts.

The files are modules.json, each module's config.json, sentence_bert_config.json and config_sentence_transformers.json.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from duonlp.errors import CheckpointError
from duonlp.tasks.base import read_json

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""The keys of a pooling's config.json, in the order in which sentence-transformers concatenates their vectors."""

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "GELU": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))),
}
"""Activations of a Dense module, by the class names of torch.nn."""

SUPPORTED_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")


@dataclass(frozen=True, eq=False)
class Dense:
    """A layer on the pooled vectors. kernel: float32 [in, out]; bias: float32 [out]."""

    kernel: np.ndarray
    bias: np.ndarray
    activation: Callable[[np.ndarray], np.ndarray]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return self.activation(vectors @ self.kernel + self.bias).astype(np.float32)


def normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, d] scaled to length 1; a vector of zeros stays as it is."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class SentenceConfig:
    """What the files say.

    pooling: names of the vectors to concatenate. include_prompt: the prompt's tokens are pooled too.
    steps: what is done to the pooled vectors, each [n, in] -> [n, out].
    max_length: tokens that a text is cut to. lower_case: texts are lower-cased first.
    prompts: texts to put before inputs, by name. known: False when there were no files, and these are defaults.
    """

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    similarity: str = "cosine"
    known: bool = False


def read_sentence_config(folder: Path | None) -> SentenceConfig:
    """What a checkpoint's folder says; defaults where it says nothing.

    Raises:
        CheckpointError: for a module, a pooling or an activation that is not supported, naming it.
    """
    modules = None if folder is None else read_json(folder / "modules.json")
    if modules is None:
        return SentenceConfig()
    file = folder / "modules.json"
    settings: dict = {"known": True, "pooling": ()}
    steps: list[Callable] = []
    for module in modules:
        kind, place = str(module.get("type", "")).rsplit(".", 1)[-1], folder / module.get("path", "")
        if kind == "Transformer":
            saved = next((s for name in TRANSFORMER_FILES if (s := read_json(place / name)) is not None), {})
            settings["max_length"] = saved.get("max_seq_length")
            settings["lower_case"] = bool(saved.get("do_lower_case", False))
        elif kind == "Pooling":
            pooling = required_json(place / "config.json")
            settings["pooling"] = pooling_modes(pooling, place / "config.json")
            settings["include_prompt"] = bool(pooling.get("include_prompt", True))
        elif kind == "Dense":
            steps.append(read_dense(place))
        elif kind == "Normalize":
            steps.append(normalized)
        elif kind != "Dropout":  # which does nothing when a model is not trained
            raise CheckpointError(
                f"{file} has a module {module.get('type')!r}; supported are {', '.join(SUPPORTED_MODULES)}: "
                "use a checkpoint of those, or feature-extraction for its token vectors"
            )
    if not settings["pooling"]:
        raise CheckpointError(f"{file} has no Pooling module; use feature-extraction for its token vectors")
    saved = read_json(folder / "config_sentence_transformers.json") or {}
    return SentenceConfig(
        **settings,
        steps=tuple(steps),
        prompts=saved.get("prompts") or {},
        default_prompt=saved.get("default_prompt_name"),
        similarity=saved.get("similarity_fn_name") or "cosine",
    )


def required_json(path: Path) -> dict:
    """A JSON file that has to be there."""
    saved = read_json(path)
    if saved is None:
        raise CheckpointError(f"{path} is missing; fetch the checkpoint again")
    return saved


def pooling_modes(saved: dict, file: Path) -> tuple[str, ...]:
    """The modes a pooling's config.json names, by `pooling_mode` or by one flag each; "mean" when by neither."""
    named = saved.get("pooling_mode")
    if named is not None:
        modes = (named,) if isinstance(named, str) else tuple(named)
    else:
        flags = [key for key, value in saved.items() if key.startswith("pooling_mode_") and value]
        modes = tuple(mode for key, mode in POOLINGS.items() if key in flags)
        modes += tuple(key for key in flags if key not in POOLINGS)
    for mode in modes:
        if mode not in POOLINGS.values():
            raise CheckpointError(f"{file} asks for pooling {mode!r}; supported are {', '.join(POOLINGS.values())}")
    return modes or ("mean",)


def read_dense(folder: Path) -> Dense:
    """A Dense module from its config.json and model.safetensors."""
    saved, weights = required_json(folder / "config.json"), folder / "model.safetensors"
    activation = str(saved.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or saved.get("use_residual"):
        asked = "a residual" if activation in ACTIVATIONS else f"the activation {activation!r}"
        raise CheckpointError(
            f"{folder / 'config.json'} asks for {asked}; supported are {', '.join(ACTIVATIONS)}, without a residual"
        )
    if not weights.is_file():
        raise CheckpointError(f"{weights} is missing; only safetensors are read, so convert the module's weights")
    from safetensors.numpy import load_file

    tensors = load_file(weights)
    if "linear.weight" not in tensors:
        raise CheckpointError(f"{weights} has {', '.join(tensors)}, and no linear.weight; fetch the checkpoint again")
    kernel = np.ascontiguousarray(tensors["linear.weight"].T, np.float32)
    bias = np.asarray(tensors.get("linear.bias", np.zeros(kernel.shape[1])), np.float32)
    return Dense(kernel, bias, ACTIVATIONS[activation])
