"""A run from raw text to a model, as data: which corpus, how it is cleaned, which tokenizer, blocks, model and training."""

import importlib.util
import json
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.data.cleaning.cleaner import CleaningConfig
from duonlp.data.cleaning.duplicates import NearDuplicateConfig
from duonlp.data.cleaning.filters import FilterConfig
from duonlp.data.cleaning.licences import LicenceConfig
from duonlp.data.cleaning.masking import MaskingConfig
from duonlp.data.objectives.gap_sentence_generation import MASK
from duonlp.data.objectives.language_modelling import check_model, head_of, objective
from duonlp.data.reading.corpus import STANDARD_LIBRARY_SKIPS, standard_library_folder
from duonlp.errors import ConfigError, InputError
from duonlp.training.config import PretrainingConfig
from duonlp.util.suggestions import unknown_setting

SENTINELS = 100
"""Of a tokenizer that is trained for span corruption: as many as T5's."""

NAMED_SOURCES = ("standard-library", "installed-packages")
"""Corpora that every Python has: the source of its own library, and of the packages installed beside it."""

PARTS = {
    "licences": LicenceConfig,
    "filters": FilterConfig,
    "near_duplicates": NearDuplicateConfig,
    "masking": MaskingConfig,
}


@dataclass(frozen=True)
class RunConfig:
    """What a run is made of; every part of it plain data.

    corpus: a source of duonlp.data.read_documents, one of :data:`NAMED_SOURCES`, or a list of them.
    corpus_options: of read_documents.
    cleaning: what is done to the corpus before it is split.
    held_out: share of the documents that is held out.
    tokenizer: options of duonlp.tokenizers.train_tokenizer; or ``{"from": folder or Hub id}`` to take one.
    block_length: tokens in a block, and the length that is trained on.
    segment_ids: whether attention stops where a document ends.
    objective: "causal-lm" or "masked-lm"; for an encoder-decoder "span-corruption", "text-infilling" or "gap-sentences".
    objective_options: of duonlp.data.objective.
    model: keys of config.json for a model with random values, the vocabulary's size and special tokens filled in; or
        ``{"from": folder or Hub id}`` to train one further.
    model_seed: of the random values.
    training: a PretrainingConfig.
    """

    corpus: Any = "standard-library"
    corpus_options: Mapping[str, Any] = field(default_factory=dict)
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    held_out: float = 0.05
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    block_length: int = 1024
    segment_ids: bool = False
    objective: str = "causal-lm"
    objective_options: Mapping[str, Any] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=lambda: {"model_type": "gpt2"})
    model_seed: int = 0
    training: PretrainingConfig = field(default_factory=lambda: PretrainingConfig(steps=1000))

    def __post_init__(self):
        if head_of(self.objective) == "seq2seq-lm" and self.segment_ids:
            raise InputError(f"{self.objective} takes blocks without segment_ids; set segment_ids=False")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """From nested mappings; raises InputError for a key that is no setting."""
        settings = dict(settings)
        for key in settings:
            _known(key, [f.name for f in fields(cls)], "a run")
        if isinstance(settings.get("cleaning"), Mapping):
            settings["cleaning"] = _cleaning(settings["cleaning"])
        if isinstance(settings.get("training"), Mapping):
            settings["training"] = PretrainingConfig.of(settings["training"])
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        """Every setting, for JSON; :meth:`of` reads it."""
        return json.loads(json.dumps(asdict(replace(self, training=None)) | {"training": self.training.to_dict()}))

    @property
    def name_or_path(self) -> str | None:
        """The model that is trained further; None for one from scratch."""
        return self.model.get("from")

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """`tokenizer`, and when it is to be trained, with the tokens that stand for what the objective takes out."""
        options = dict(self.tokenizer)
        if "from" not in options:
            extra = list(options.get("extra_special_tokens", ()))
            if self.objective == "span-corruption":
                extra += [token for token in (f"<extra_id_{i}>" for i in range(SENTINELS)) if token not in extra]
            elif self.objective == "gap-sentences" and MASK not in extra:
                extra.append(MASK)
            elif self.objective == "text-infilling" and options.get("kind") != "wordpiece":  # which has a mask token
                options["special_tokens"] = {"mask_token": "<mask>", **options.get("special_tokens", {})}
            if extra:
                options["extra_special_tokens"] = extra
        return options

    def make_objective(self, tokenizer, config: TransformerConfig | None = None):
        """The objective, told what starts the decoder's inputs of a model that has a decoder.

        Args:
            tokenizer: the blocks'.
            config: the model's.
        """
        options = dict(self.objective_options)
        if config is not None and config.decoder is not None and head_of(self.objective) == "seq2seq-lm":
            options.setdefault("decoder_start_token_id", config.decoder.start_token_id)
        return objective(self.objective, tokenizer, **options)

    @property
    def sources(self) -> list[tuple[Any, dict[str, Any]]]:
        """(source, options) for read_documents of each corpus."""
        several = isinstance(self.corpus, Sequence) and not isinstance(self.corpus, str)
        return [self._source(each) for each in (self.corpus if several else [self.corpus])]

    def _source(self, source) -> tuple[Any, dict[str, Any]]:
        if source == "standard-library":
            return str(standard_library_folder()), {"skip": STANDARD_LIBRARY_SKIPS, **self.corpus_options}
        if source == "installed-packages":
            return sysconfig.get_paths()["purelib"], {"skip": frozenset({"__pycache__"}), **self.corpus_options}
        return source, dict(self.corpus_options)

    def model_config(self, tokenizer) -> dict[str, Any]:
        """config.json of the model from scratch: vocabulary, positions and special tokens are the tokenizer's and the blocks'."""
        from duonlp.architectures import config_from_hf

        config = {"vocab_size": len(tokenizer), **self.model}
        if config["vocab_size"] < len(tokenizer):
            raise InputError(
                f"the model's vocab_size is {config['vocab_size']}, its tokenizer has {len(tokenizer)} tokens; "
                "leave vocab_size out"
            )
        for role in ("bos", "eos", "pad"):
            token = getattr(tokenizer, f"{role}_token_id", None)
            if token is not None:
                config.setdefault(f"{role}_token_id", token)
        what, longest = None, self.block_length
        if head_of(self.objective) == "seq2seq-lm":
            what = self.make_objective(tokenizer)
            longest = max(what.lengths(self.block_length))
            config.setdefault("decoder_start_token_id", what.decoder_start_token_id)
        if config.get("model_type") != "t5":  # which has no positions to run out of
            positions = "n_positions" if config.get("model_type") == "gpt2" else "max_position_embeddings"
            config.setdefault(positions, longest)
        made = config_from_hf(config)
        if what is not None:
            check_model(self.make_objective(tokenizer, made), made, f"that of a {made.model_type}", self.block_length)
        elif made.max_length < self.block_length:
            raise ConfigError(
                f"the model has {made.max_length} positions, blocks have {self.block_length} tokens; make them agree"
            )
        return config


def load_run(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """A run from a Python file that holds ``CONFIG``, a dict, or from a .json file, with settings replaced.

    Args:
        file: yours: a Python file is run.
        overrides: ``training.steps=100``, ``training.mesh={"fsdp": 4}``: a path of keys, and a value as JSON or as text.

    Raises:
        InputError: no such file, no CONFIG in it, or a key that is no setting.
    """
    file = Path(file)
    if not file.is_file():
        raise InputError(f"there is no file {str(file)!r}; give a run's .py or .json file")
    if file.suffix == ".json":
        settings = json.loads(file.read_text(encoding="utf-8"))
    else:
        spec = importlib.util.spec_from_file_location(f"run_{file.stem}", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        settings = getattr(module, "CONFIG", None)
    if not isinstance(settings, Mapping):
        raise InputError(f"{str(file)!r} holds no CONFIG, a dict of settings of RunConfig")
    settings = json.loads(json.dumps(dict(settings)))
    for each in overrides:
        path, equals, text = each.partition("=")
        if not equals:
            raise InputError(f"{each!r} is not KEY=VALUE; write for example training.steps=100")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, last = path.split(".")
        where = settings
        for name in parents:
            where = where.setdefault(name, {})
            if not isinstance(where, dict):
                raise InputError(f"{path!r}: {name} has no settings of its own")
        where[last] = value
    return RunConfig.of(settings)


def _cleaning(settings: Mapping[str, Any]) -> CleaningConfig:
    settings = dict(settings)
    for key, value in settings.items():
        _known(key, [f.name for f in fields(CleaningConfig)], "cleaning")
        if key in PARTS and isinstance(value, Mapping):
            for name in value:
                _known(name, [f.name for f in fields(PARTS[key])], f"cleaning.{key}")
            values = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
            settings[key] = PARTS[key](**values)
    return CleaningConfig(**settings)


def _known(key: str, allowed: Sequence[str], what: str) -> None:
    if key not in allowed:
        raise InputError(unknown_setting(key, allowed, what))
