"""Load and initialize models: the part shared by both engines."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Checkpoint, Source, open_checkpoint, override
from duonlp.config import TransformerConfig
from duonlp.dtypes import check_dtype
from duonlp.errors import ConfigError, InputError
from duonlp.generation import GenerationConfig
from duonlp.heads import HEADS, PRETRAINING
from duonlp.parameters import count_parameters, parameters
from duonlp.util.frameworks import check_process
from duonlp.util.machine_info import physical_memory

ADVICE = {
    "cache_dir": "set the environment variable HF_HOME",
    "device_map": "omit it: TensorFlow and JAX place arrays themselves",
    "force_download": "delete the model from the cache, or pass a revision",
    "from_flax": "omit it: flax_model.msgpack is read if the checkpoint has no safetensors",
    "from_pt": "omit it: safetensors are read directly",
    "from_tf": "omit it: tf_model.h5 is read if the checkpoint has no safetensors",
    "output_attentions": "pass it when calling the model",
    "output_hidden_states": "pass it when calling the model",
    "return_dict": "omit it: outputs are dicts",
    "subfolder": "pass the subfolder itself",
    "token": "log in with `hf auth login`, or set the environment variable HF_TOKEN",
    "torch_dtype": "use dtype=",
    "trust_remote_code": "omit it: code from a checkpoint is never run",
    "use_safetensors": "omit it: safetensors are read if the checkpoint has them",
}
"""Alternatives to unsupported keywords of Transformers' from_pretrained."""


class PretrainedBase:
    """Mixin of the model classes, which define ``head``; each engine's own mixin adds ``_from_plan`` and saving.

    Attributes:
        head: Name of the head, see ``duonlp.heads.HEADS``.
        config: Configuration of the model.
        generation_config: Default generation settings.
        folder: Folder from which the model was loaded, if any.
        image_config: Text of preprocessor_config.json there, which is saved with the model.
    """

    head: ClassVar[str]
    config: TransformerConfig
    generation_config: GenerationConfig
    folder: str | None = None
    image_config: str | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str] | Checkpoint, *, revision: str | None = None, local_files_only: bool = False,
        dtype: Any = None, param_dtype: Any = "float32", seed: int = 0, ignore_mismatched_sizes: bool = False,
        initial_values: Mapping[str, np.ndarray] | None = None, **config_overrides: Any,
    ) -> Self:  # fmt: skip
        """Load a checkpoint in Hugging Face layout.

        Args:
            name_or_path: A folder, a Hub id, or an open checkpoint (see ``duonlp.checkpoints.open_checkpoint``).
            revision: Branch, tag or commit on the Hub.
            local_files_only: Never access the network.
            dtype: Compute dtype: float32, bfloat16 or float16. Default: float32 (in tfnlp, Keras' global dtype policy).
            param_dtype: Dtype in which the parameters are stored: float32, bfloat16 or float16 (except for T5's second
                feed-forward matrices, which stay in float32).
            seed: Seed for parameters of a head that the checkpoint lacks.
            ignore_mismatched_sizes: Initialize a head whose stored shapes do not match, instead of raising.
            initial_values: Values of parameters by path, which replace those of the checkpoint or of the initializer.
            config_overrides: Keys of config.json to replace, such as ``num_labels=3``.

        Returns:
            The model.

        Raises:
            CheckpointError: the checkpoint is not found, damaged, or does not match the model.
            ConfigError: the family, the head or an option is unsupported.
            InputError: a keyword is unknown, or `initial_values` has a path or a shape that the model lacks.
        """
        check_process()
        _check_keywords(config_overrides)
        dtype, param_dtype = cls._dtypes(dtype, param_dtype)
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        try:
            cfg = checkpoint.transformer_config(cls.head, **config_overrides)
            check_head(cls, cfg)
            plan = with_values(checkpoint.plan(cfg, cls.head, seed, ignore_mismatched_sizes), initial_values or {})
            model = cls._from_plan(cfg, plan, dtype, param_dtype)
            stored, image_config = checkpoint.generation_config, checkpoint.image_config
        finally:
            if checkpoint is not name_or_path:
                checkpoint.close()
        if stored:
            model.generation_config = default_generation_config(cfg, stored)
        model.folder, model.image_config = str(checkpoint.folder), image_config
        return model

    @classmethod
    def from_config(
        cls, config: Any, *, seed: int = 0, dtype: Any = None, param_dtype: Any = "float32", **config_overrides: Any
    ) -> Self:
        """Build a model with random weights; a seed gives the same weights in both packages.

        Args:
            config: A TransformerConfig, config.json as a dict, or a configuration object of Transformers.
            seed: Seed for the weights.
            dtype: See :meth:`from_pretrained`.
            param_dtype: See :meth:`from_pretrained`.
            config_overrides: Keys of config.json to replace.

        Returns:
            The model.

        Raises:
            ConfigError: the family, the head or an option is unsupported.
            InputError: a keyword is unknown, or ``config`` is of another type.
        """
        check_process()
        _check_keywords(config_overrides)
        dtype, param_dtype = cls._dtypes(dtype, param_dtype)
        cfg = resolve_config(config, config_overrides)
        check_head(cls, cfg)
        plan = fresh_plan(cfg, cls.head, seed)
        check_memory(sum(source.parameter.size for source in plan) * (4 if param_dtype == "float32" else 2))
        return cls._from_plan(cfg, plan, dtype, param_dtype)

    @classmethod
    def _from_plan(cls, cfg: TransformerConfig, plan: list[Source], dtype: str, param_dtype: str) -> Self:
        """Build a model and read its parameters from ``plan``."""
        raise NotImplementedError

    @classmethod
    def _dtypes(cls, dtype: Any, param_dtype: Any) -> tuple[str, str]:
        return check_dtype("float32" if dtype is None else dtype), check_dtype(param_dtype, "param_dtype")

    def num_parameters(self) -> int:
        """Return the total number of parameter values."""
        return count_parameters(self.config, self.head)


def default_generation_config(cfg: TransformerConfig, stored: Mapping[str, Any] | None = None) -> GenerationConfig:
    """Return a model's default generation settings; one warning names stored ones that cannot be used.

    Args:
        cfg: The model, whose config.json may hold generation settings.
        stored: Contents of generation_config.json.
    """
    return GenerationConfig.for_model(cfg, stored, origin="generation_config.json" if stored else "config.json")


def check_memory(parameter_bytes: int) -> None:
    """Raise ConfigError if parameters cannot fit into any memory here: twice this machine's is more than an accelerator's."""
    memory = physical_memory()
    if memory is not None and parameter_bytes > 2 * memory:
        raise ConfigError(
            f"the model's parameters take {parameter_bytes / 2**30:,.1f} GiB and this machine has {memory / 2**30:,.1f} GiB of "
            "memory; reduce its sizes"
        )


def fresh_plan(cfg: TransformerConfig, head: str, seed: int) -> list[Source]:
    """Return a plan that initializes every parameter from ``seed``.

    Raises:
        ConfigError: The model is quantized.
    """
    if cfg.quantization is not None and not cfg.quantization.simulated:
        raise ConfigError(
            "the configuration is that of a quantized model, whose integers cannot be initialized; load its checkpoint with "
            "from_pretrained, or build the model without quantization_config and quantize it"
        )
    return [Source(path, parameter, seed=seed) for path, parameter in parameters(cfg, head).items()]


def with_values(plan: list[Source], values: Mapping[str, np.ndarray]) -> list[Source]:
    """Return a plan in which some parameters have other values.

    Args:
        plan: One source per parameter.
        values: Values by path.

    Raises:
        InputError: No parameter has the path, or it has another shape, or another dtype than the integers of a quantized layer.
    """
    sources = {source.path: source for source in plan}
    for path, value in values.items():
        if path not in sources:
            raise InputError(f"initial_values has {path!r}, which is not a parameter of the model; see parameter_tree")
        if np.shape(value) != tuple(sources[path].parameter.shape):
            raise InputError(
                f"initial_values[{path!r}] has shape {list(np.shape(value))}; it must be {list(sources[path].parameter.shape)}"
            )
        dtype = sources[path].parameter.dtype
        if dtype is not None and np.asarray(value).dtype != dtype:
            raise InputError(
                f"initial_values[{path!r}] is {np.asarray(value).dtype}; as a part of a quantized layer it must be {dtype}"
            )
    return [replace(source, values=values[source.path]) if source.path in values else source for source in plan]


def resolve_config(config: Any, overrides: Mapping[str, Any]) -> TransformerConfig:
    """Convert any description of a model to a TransformerConfig, with some keys of config.json replaced.

    Args:
        config: A TransformerConfig, config.json as a dict, or a configuration object of Transformers.
        overrides: Keys of config.json to replace.

    Raises:
        ConfigError: the family or an option is unsupported.
        InputError: ``config`` is of another type, or an override is not a key of config.json.
    """
    if isinstance(config, TransformerConfig):
        if not overrides:
            return config
        config = architectures.hf_config(config)
    elif hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise InputError(
            f"config is a {type(config).__name__}; pass a TransformerConfig, config.json as a dict, or Transformers' config"
        )
    return architectures.config_from_hf(override(config, overrides))


def check_head(cls: Any, cfg: TransformerConfig) -> None:
    """Raise ConfigError if the family does not support the head of ``cls``, a class with a ``head``."""
    architectures.class_name(cfg.model_type, cls.head)
    if HEADS[cls.head].causal and not cfg.causal:
        raise ConfigError(
            f"this {cfg.model_type} attends in both directions, so it is not a causal language model; pass is_decoder=True"
        )


def pretraining_head(model_type: str) -> str:
    """Return the head with which a family was pretrained, as loaded by AutoModelForPreTraining."""
    available = architectures.get(model_type).heads(model_type)
    return next(head for head in PRETRAINING if head in available)


def _check_keywords(keywords: Mapping[str, Any]) -> None:
    """Raise InputError for unsupported keywords of Transformers, naming the alternative."""
    for name in keywords:
        if name in ADVICE:
            raise InputError(f"keyword {name!r} is not supported; {ADVICE[name]}")
