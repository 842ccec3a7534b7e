"""Read the files of a sentence-transformers checkpoint: pooling and further modules, lengths and prompts.

The files are modules.json, each module's config.json, sentence_bert_config.json and config_sentence_transformers.json.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from duonlp.checkpoints.copies import check_float
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

MODULE_TYPES = {
    f"sentence_transformers.{package}.{name}": module
    for package in ("models", "base.modules", "sentence_transformer.modules")
    for module in SUPPORTED_MODULES
    for name in (module, f"{module}.{module}", f"{module.lower()}.{module}")
}
"""Kind of each module by what sentence-transformers 2 to 6 write as its ``type``."""

ACTIVATION_TYPES = {
    f"{package}.{name}": name
    for package in ("torch.nn", "torch.nn.modules.activation", "torch.nn.modules.linear")
    for name in ACTIVATIONS
}
"""Names of the activations in a Dense module's config.json."""


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
    kinds = [MODULE_TYPES.get(str(module.get("type"))) for module in modules]
    check_order(kinds, modules, file)
    for kind, module in zip(kinds, modules, strict=True):
        module_folder = folder_of_module(folder, module.get("path", ""))
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
    saved = read_json(folder / "config_sentence_transformers.json", SENTENCE_SCHEMA) or {}
    return SentenceConfig(
        **settings,
        steps=tuple(steps),
        prompts=saved.get("prompts") or {},
        default_prompt=saved.get("default_prompt_name"),
        similarity=saved.get("similarity_fn_name") or "cosine",
    )


def check_order(kinds: Sequence[str | None], modules: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Raise CheckpointError unless the modules are a Transformer, a Pooling, and then only modules that map vectors.

    Args:
        kinds: Kind of each module, None if it is unknown.
        modules: The modules, for error messages.
        file: Path of modules.json, for error messages.
    """
    for i, (kind, module) in enumerate(zip(kinds, modules, strict=True)):
        if kind is None:
            raise CheckpointError(
                f"{file} has an unsupported module, {module.get('type')!r}; use a checkpoint with only "
                f"{', '.join(SUPPORTED_MODULES)} of sentence_transformers, or feature-extraction for token vectors"
            )
        if kind in kinds[:i] and kind in ("Transformer", "Pooling"):
            raise CheckpointError(f"{file} has a second {kind} module; a checkpoint with one {kind} is expected")
        needed = {"Transformer": None, "Pooling": "Transformer", "Dropout": "Transformer"}.get(kind, "Pooling")
        if (needed is None and i > 0) or (needed is not None and needed in kinds and needed not in kinds[:i]):
            raise CheckpointError(
                f"{file} has {kind} as module {i}; expected are Transformer, Pooling and then the others, in this order"
            )
    for kind, remedy in (("Transformer", "download the checkpoint again"), ("Pooling", "use feature-extraction")):
        if kind not in kinds:
            raise CheckpointError(f"{file} has no {kind} module; {remedy} for token vectors")


def folder_of_module(folder: Path, path: Any) -> Path:
    """Return the folder of a module.

    Raises:
        CheckpointError: its path leads out of the checkpoint's folder.
    """
    parts = PureWindowsPath(path).parts if isinstance(path, str) else ("..",)
    if ".." in parts or PureWindowsPath(path).anchor or PurePosixPath(path).anchor or "\0" in path:
        raise CheckpointError(
            f"{folder / 'modules.json'} has a module with path {path!r}; expected the name of a folder in {folder}"
        )
    if not (folder / path).resolve().is_relative_to(folder.resolve()):  # through a link
        raise CheckpointError(f"{folder / path} leads out of {folder}; replace the link by the folder itself")
    return folder / path


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
    stored = saved.get("activation_function", "torch.nn.modules.activation.Tanh")
    activation = ACTIVATION_TYPES.get(stored)
    if activation is None or saved.get("use_residual"):
        unsupported = "residual connection" if activation else f"activation {stored!r}"
        raise CheckpointError(
            f"{folder / 'config.json'} has an unsupported {unsupported}; supported are {', '.join(ACTIVATIONS)} of torch.nn "
            "without a residual connection"
        )
    if not weights.is_file():
        raise CheckpointError(
            f"{weights} is missing; convert the module's weights to safetensors, the only format that is read"
        )
    tensors = list_tensors(weights)
    if unexpected := set(tensors) - {"linear.weight", "linear.bias"}:
        raise CheckpointError(f"{weights} has an unexpected {min(unexpected)}; expected linear.weight and linear.bias")
    if "linear.weight" not in tensors:
        raise CheckpointError(f"{weights} has no linear.weight; download the checkpoint again")
    for tensor in tensors.values():
        check_float(tensor)
    weight, bias = tensors["linear.weight"], tensors.get("linear.bias")
    if len(weight.shape) != 2 or (bias is not None and bias.shape != weight.shape[:1]):
        raise CheckpointError(
            f"{weights} has shapes {[list(t.shape) for t in tensors.values()]}; expected [out, in] and [out]"
        )
    kernel = np.ascontiguousarray(weight.read().T, np.float32)
    offset = np.zeros(kernel.shape[1], np.float32) if bias is None else bias.read().astype(np.float32)
    return Dense(kernel, offset, ACTIVATIONS[activation])
