"""The part of loading and starting afresh that both engines' models have in common."""

import warnings
from collections.abc import Mapping

from duonlp import architectures
from duonlp.checkpoints.checkpoint import Source, open_checkpoint, override
from duonlp.config import TransformerConfig
from duonlp.dtypes import check_dtype
from duonlp.errors import ConfigError, InputError
from duonlp.generation import GenerationConfig
from duonlp.parameters import count_parameters, parameters

ADVICE = {
    "cache_dir": "set the environment variable HF_HOME",
    "device_map": "leave it out: TensorFlow and JAX place arrays themselves",
    "force_download": "delete the model from the cache, or ask for a revision",
    "from_flax": "leave it out: safetensors are read, and nothing else",
    "from_pt": "leave it out: safetensors are read directly",
    "from_tf": "leave it out: safetensors are read, and nothing else",
    "output_attentions": "pass it when the model is called",
    "output_hidden_states": "pass it when the model is called",
    "return_dict": "leave it out: outputs are dicts",
    "subfolder": "give the folder itself",
    "token": "log in with `hf auth login`, or set the environment variable HF_TOKEN",
    "torch_dtype": "say dtype=",
    "trust_remote_code": "leave it out: code from a checkpoint is never run",
    "use_safetensors": "leave it out: only safetensors are read",
}
"""What to do instead, for keywords that people bring along from Transformers."""


class PretrainedBase:
    """Mixin of the model classes. They bring ``head``; the engine's own mixin brings ``_from_plan`` and saving."""

    folder: str | None = None
    """Where the model was loaded from."""

    @classmethod
    def from_pretrained(
        cls, name_or_path, *, revision=None, local_files_only=False, dtype=None, param_dtype="float32", seed=0,
        ignore_mismatched_sizes=False, **config_overrides,
    ):  # fmt: skip
        """Load a checkpoint in Hugging Face layout.

        Args:
            name_or_path: a folder or a Hub id.
            revision: branch, tag or commit on the Hub.
            local_files_only: never go to the network.
            dtype: float32, bfloat16 or float16: what is computed in. None is float32 (in tfnlp: Keras' global policy).
            param_dtype: the same choices: what the parameters are stored as.
            seed: for parameters of a head the checkpoint lacks.
            ignore_mismatched_sizes: start a head afresh whose stored shapes do not fit.
            config_overrides: keys of config.json to replace, such as ``num_labels=3``.

        Raises:
            CheckpointError: not found, damaged, or not this model's.
            ConfigError: an unsupported family, head or option.
            InputError: an unknown keyword.
        """
        _advise(config_overrides)
        dtype, param_dtype = cls._dtypes(dtype, param_dtype)
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        cfg = checkpoint.transformer_config(**config_overrides)
        check_head(cls, cfg)
        plan = checkpoint.plan(cfg, cls.head, seed, ignore_mismatched_sizes)
        model = cls._from_plan(cfg, plan, dtype, param_dtype)
        if checkpoint.generation_config:
            model.generation_config = own_generation_config(cfg, checkpoint.generation_config)
        model.folder = str(checkpoint.folder)
        return model

    @classmethod
    def from_config(cls, config, *, seed=0, dtype=None, param_dtype="float32", **config_overrides):
        """A model with random weights; the same seed gives the same weights in both packages.

        Args:
            config: a TransformerConfig, config.json as a dict, or a configuration object of Transformers.
            config_overrides: keys of config.json to replace.

        Raises:
            ConfigError, InputError: as in :meth:`from_pretrained`.
        """
        _advise(config_overrides)
        dtype, param_dtype = cls._dtypes(dtype, param_dtype)
        cfg = resolve_config(config, config_overrides)
        check_head(cls, cfg)
        return cls._from_plan(cfg, fresh_plan(cfg, cls.head, seed), dtype, param_dtype)

    @classmethod
    def _dtypes(cls, dtype, param_dtype) -> tuple[str, str]:
        return check_dtype("float32" if dtype is None else dtype), check_dtype(param_dtype, "param_dtype")

    def num_parameters(self) -> int:
        """How many values the parameters have."""
        return count_parameters(self.config, self.head)


def own_generation_config(cfg: TransformerConfig, stored: Mapping | None = None) -> GenerationConfig:
    """A model's own, see GenerationConfig.for_model; a file that makes no sense must not keep the model from loading."""
    try:
        return GenerationConfig.for_model(cfg, stored)
    except InputError as error:
        what = "generation_config.json" if stored else "what config.json says of generation"
        warnings.warn(f"{what} is left out, all of it: {error}", stacklevel=4)
        return GenerationConfig.for_model(cfg.replace(extra={}))


def fresh_plan(cfg: TransformerConfig, head: str, seed: int) -> list[Source]:
    """Every parameter from its initializer."""
    return [Source(path, parameter, seed=seed) for path, parameter in parameters(cfg, head).items()]


def resolve_config(config, overrides: Mapping) -> TransformerConfig:
    """A TransformerConfig from whatever describes a model, with keys of config.json replaced.

    Raises:
        InputError: it describes none.
    """
    if isinstance(config, TransformerConfig):
        if not overrides:
            return config
        config = architectures.hf_config(config)
    elif hasattr(config, "to_dict"):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise InputError(
            f"config is a {type(config).__name__}; give a TransformerConfig, config.json as a dict, or Transformers' config"
        )
    return architectures.config_from_hf(override(config, overrides))


def check_head(cls, cfg: TransformerConfig) -> None:
    """Raise ConfigError when the family has no such head, or could not learn anything with it."""
    architectures.class_name(cfg.model_type, cls.head)
    if cls.head == "causal-lm" and not cfg.causal:
        raise ConfigError(
            f"this {cfg.model_type} looks both ways, so it is no causal language model; pass is_decoder=True"
        )


def pretraining_head(model_type: str) -> str:
    """The head a family was pretrained with: what AutoModelForPreTraining loads."""
    available = architectures.get(model_type).heads(model_type)
    order = ("pretraining", "replaced-token-detection", "masked-lm", "causal-lm", "seq2seq-lm")
    return next(head for head in order if head in available)


def _advise(keywords: Mapping) -> None:
    for name in keywords:
        if name in ADVICE:
            raise InputError(f"keyword {name!r} is not taken here; {ADVICE[name]}")
