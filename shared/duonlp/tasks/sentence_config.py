"""Read the files of a sentence-transformers checkpoint: pooling and further modules, lengths and prompts.

The files are modules.json, each module's config.json, sentence_bert_config.json and config_sentence_transformers.json.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from duonlp.checkpoints.safetensors_file import list_tensors
from duonlp.errors import CheckpointError
from duonlp.schema import BOOL, POSITIONS, TEXT, Kind, check, list_of, mapping_of, table, text
from duonlp.tasks.base import read_json

POOLINGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Keys of a pooling module's config.json and their modes, in the order in which sentence-transformers concatenates them."""

TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Configuration files of a Transformer module; the first that exists is read."""

ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Identity": lambda x: x,
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "GELU": lambda x: 0.5 * x * (1 + np.vectorize(math.erf, otypes=[np.float32])(x / math.sqrt(2))),
}
"""Activations of a Dense module by their class names in torch.nn."""

MODULES = {"modules": list_of(table({"type": TEXT, "path": TEXT}), longest=100)}
TRANSFORMER_SCHEMA = {"max_seq_length": POSITIONS | None, "do_lower_case": BOOL | None}
POOLING_SCHEMA = {"pooling_mode": TEXT | list_of(TEXT, longest=20) | None, "include_prompt": BOOL | None}
DENSE_SCHEMA = {"activation_function": TEXT, "use_residual": BOOL | None}
SENTENCE_SCHEMA = {
    "prompts": mapping_of(text(1 << 20), longest=10_000) | None,
    "default_prompt_name": TEXT | None,
    "similarity_fn_name": TEXT | None,
}
"""Kinds of the keys that are read from each file."""

SUPPORTED_MODULES = ("Transformer", "Pooling", "Dense", "Normalize", "Dropout")


@dataclass(frozen=True, eq=False)
class Dense:
    """A dense layer applied to the pooled vectors.

    Attributes:
        kernel: float32 [in, out].
        bias: float32 [out].
        activation: Elementwise function.
    """

    kernel: np.ndarray
    bias: np.ndarray
    activation: Callable[[np.ndarray], np.ndarray]

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        if vectors.shape[1] != len(self.kernel):
            raise CheckpointError(
                f"a Dense module takes vectors of size {len(self.kernel)}, but it is given {vectors.shape[1]} values; "
                "download the checkpoint again"
            )
        return self.activation(vectors @ self.kernel + self.bias).astype(np.float32)


def l2_normalize(vectors: np.ndarray) -> np.ndarray:
    """Scale vectors [n, d] to unit length; zero vectors remain zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


@dataclass(frozen=True)
class SentenceConfig:
    """Settings of a sentence-transformers checkpoint.

    Attributes:
        pooling: Pooling modes whose vectors are concatenated.
        include_prompt: Whether the prompt's tokens are pooled too.
        steps: Functions applied to the pooled vectors in order, each [n, in] -> [n, out].
        max_length: Number of tokens to truncate to.
        lower_case: Whether texts are lowercased first.
        prompts: Texts to prepend to inputs, by name.
        default_prompt: Name of the prompt to use by default.
        similarity: Similarity for which the vectors were trained: "cosine", "dot", "euclidean" or "manhattan".
        from_files: Whether the settings were read from files; False means defaults.
    """

    pooling: tuple[str, ...] = ("mean",)
    include_prompt: bool = True
    steps: tuple[Callable[[np.ndarray], np.ndarray], ...] = ()
    max_length: int | None = None
    lower_case: bool = False
    prompts: Mapping[str, str] | None = None
    default_prompt: str | None = None
    similarity: str = "cosine"
    from_files: bool = False


def read_sentence_config(folder: Path | None) -> SentenceConfig:
    """Read the settings of a checkpoint, or return defaults if it has no modules.json.

    Raises:
        CheckpointError: a module, a pooling mode or an activation is not supported, or a file is missing.
    """
    modules = None if folder is None else read_json(folder / "modules.json")
    if folder is None or modules is None:
        return SentenceConfig()
    file = folder / "modules.json"
    check(str(file), {"modules": modules}, MODULES, CheckpointError)
    settings: dict[str, Any] = {"from_files": True, "pooling": ()}
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    for module in modules:
        kind, module_folder = str(module.get("type", "")).rsplit(".", 1)[-1], folder / module.get("path", "")
        if kind == "Transformer":
            files = (read_json(module_folder / name, TRANSFORMER_SCHEMA) for name in TRANSFORMER_FILES)
            saved = next((values for values in files if values is not None), {})
            settings["max_length"] = saved.get("max_seq_length")
            settings["lower_case"] = bool(saved.get("do_lower_case", False))
        elif kind == "Pooling":
            pooling = read_required_json(module_folder / "config.json", POOLING_SCHEMA)
            settings["pooling"] = pooling_modes(pooling, module_folder / "config.json")
            settings["include_prompt"] = bool(pooling.get("include_prompt", True))
        elif kind == "Dense":
            steps.append(read_dense(module_folder))
        elif kind == "Normalize":
            steps.append(l2_normalize)
        elif kind != "Dropout":  # no effect in inference
            raise CheckpointError(
                f"{file} has an unsupported module, {module.get('type')!r}; use a checkpoint with only "
                f"{', '.join(SUPPORTED_MODULES)}, or feature-extraction for token vectors"
            )
    if not settings["pooling"]:
        raise CheckpointError(f"{file} has no Pooling module; use feature-extraction for token vectors")
    saved = read_json(folder / "config_sentence_transformers.json", SENTENCE_SCHEMA) or {}
    return SentenceConfig(
        **settings,
        steps=tuple(steps),
        prompts=saved.get("prompts") or {},
        default_prompt=saved.get("default_prompt_name"),
        similarity=saved.get("similarity_fn_name") or "cosine",
    )


def read_required_json(path: Path, schema: Mapping[str, Kind]) -> dict[str, Any]:
    """Return the contents of a JSON file that holds an object with values of these kinds.

    Raises:
        CheckpointError: the file is missing or invalid.
    """
    saved = read_json(path, schema)
    if saved is None:
        raise CheckpointError(f"{path} is missing; download the checkpoint again")
    return saved


def pooling_modes(saved: Mapping[str, Any], file: Path) -> tuple[str, ...]:
    """Return the modes of a pooling module, given by ``pooling_mode`` or by one flag each (default: "mean").

    Args:
        saved: Contents of the module's config.json.
        file: Its path, for error messages.

    Raises:
        CheckpointError: a mode is not supported.
    """
    stored_mode = saved.get("pooling_mode")
    if stored_mode is not None:
        modes = (stored_mode,) if isinstance(stored_mode, str) else tuple(stored_mode)
    else:
        flags = [key for key, value in saved.items() if key.startswith("pooling_mode_") and value]
        modes = tuple(mode for key, mode in POOLINGS.items() if key in flags)
        modes += tuple(key for key in flags if key not in POOLINGS)
    for mode in modes:
        if mode not in POOLINGS.values():
            raise CheckpointError(
                f"{file} has unsupported pooling {mode!r}; supported are {', '.join(POOLINGS.values())}"
            )
    return modes or ("mean",)


def read_dense(folder: Path) -> Dense:
    """Read a Dense module from its config.json and model.safetensors.

    Raises:
        CheckpointError: a file is missing, or the activation or a residual connection is not supported.
    """
    saved, weights = read_required_json(folder / "config.json", DENSE_SCHEMA), folder / "model.safetensors"
    activation = str(saved.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or saved.get("use_residual"):
        unsupported = "residual connection" if activation in ACTIVATIONS else f"activation {activation!r}"
        raise CheckpointError(
            f"{folder / 'config.json'} has an unsupported {unsupported}; supported are {', '.join(ACTIVATIONS)} without a "
            "residual connection"
        )
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} is missing; convert the module's weights to safetensors, the only format that is read"
        )
    tensors = {name: tensor.read() for name, tensor in list_tensors(weights).items()}
    if "linear.weight" not in tensors:
        raise CheckpointError(
            f"{weights} has {', '.join(tensors)}, but no linear.weight; download the checkpoint again"
        )
    kernel = np.ascontiguousarray(tensors["linear.weight"].T, np.float32)
    bias = np.asarray(tensors.get("linear.bias", np.zeros(kernel.shape[-1:])), np.float32)
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise CheckpointError(
            f"{weights} has a weight of shape {list(kernel.T.shape)} and a bias of shape {list(bias.shape)}; download the "
            "checkpoint again"
        )
    return Dense(kernel, bias, ACTIVATIONS[activation])
