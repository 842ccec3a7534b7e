"""Configuration of a pretraining run, from raw text to a model: corpus, cleaning, tokenizer, blocks, model and training."""

import importlib.util
import json
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.data.cleaning.cleaner import CleaningConfig
from duonlp.data.cleaning.duplicates import NearDuplicateConfig
from duonlp.data.cleaning.filters import PRESETS, FilterConfig
from duonlp.data.cleaning.licences import LicenceConfig
from duonlp.data.cleaning.masking import MaskingConfig
from duonlp.data.objectives.encoder_decoder import EncoderDecoderObjective
from duonlp.data.objectives.gap_sentence_generation import MASK
from duonlp.data.objectives.language_modelling import CausalLM, MaskedLM, check_model, head_of, objective
from duonlp.data.reading.corpus import STANDARD_LIBRARY_SKIPS, standard_library_folder
from duonlp.errors import ConfigError, InputError
from duonlp.training.config import PretrainingConfig
from duonlp.training.settings_file import build, set_path
from duonlp.util.files import may_read
from duonlp.util.reading import parse_json, read_json
from duonlp.util.suggestions import choice, unknown_setting

SENTINELS = 100
"""Number of sentinel tokens of a tokenizer trained for span corruption, as in T5."""

NAMED_SOURCES = ("standard-library", "installed-packages")
"""Corpora of every Python installation: the sources of the standard library and of the installed packages."""

PARTS = {
    "licences": LicenceConfig,
    "filters": FilterConfig,
    "near_duplicates": NearDuplicateConfig,
    "masking": MaskingConfig,
}


@dataclass(frozen=True)
class RunConfig:
    """Configuration of a pretraining run, as plain data.

    Attributes:
        corpus: A source for duonlp.data.read_documents, one of :data:`NAMED_SOURCES`, or a list of these.
        corpus_options: Options of read_documents.
        cleaning: Cleaning applied to the corpus before it is split. ``filters`` may be the name of a preset, "code" or "prose",
            or have limits beside ``"preset": "prose"``.
        held_out: Share of the documents that is held out.
        tokenizer: Options of duonlp.tokenizers.train_tokenizer; or ``{"from": folder or Hub id}`` to use an existing one.
        block_length: Tokens per block, which is also the training length.
        segment_ids: Whether attention is limited to the document within a block.
        objective: "causal-lm" or "masked-lm"; for an encoder-decoder "span-corruption", "text-infilling" or "gap-sentences".
        objective_options: Options of duonlp.data.objective.
        model: Keys of config.json for a randomly initialized model, to which vocabulary size and special tokens are added; or
            ``{"from": folder or Hub id}`` to continue training a checkpoint.
        model_seed: Seed for the random initialization.
        training: Training settings.

    Raises:
        InputError: Two settings are incompatible.
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

    def __post_init__(self) -> None:
        if head_of(self.objective) == "seq2seq-lm" and self.segment_ids:
            raise InputError(f"objective {self.objective!r} does not support segment_ids; set segment_ids=False")

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "RunConfig":
        """Build from nested mappings; raise InputError for an unknown key."""
        settings = dict(settings)
        for key in settings:
            _check_key(key, [f.name for f in fields(cls)], "a run")
        if isinstance(settings.get("cleaning"), Mapping):
            settings["cleaning"] = _build_cleaning(settings["cleaning"])
        if isinstance(settings.get("training"), Mapping):
            for key in settings["training"]:
                _check_key(key, [f.name for f in fields(PretrainingConfig)], PretrainingConfig.settings_for)
            settings["training"] = build(PretrainingConfig, settings["training"], "a run", "training.")
        return build(cls, settings, "a run")

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as JSON-compatible values, for :meth:`of`."""
        return json.loads(json.dumps(asdict(self) | {"training": self.training.to_dict()}))

    @property
    def name_or_path(self) -> str | None:
        """Checkpoint to continue training; None for a randomly initialized model."""
        return self.model.get("from")

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """The `tokenizer` options. If it is to be trained, they include the sentinel or mask tokens of the objective."""
        options = dict(self.tokenizer)
        if "from" not in options:
            extra = list(options.get("extra_special_tokens", ()))
            if self.objective == "span-corruption":
                extra += [token for token in (f"<extra_id_{i}>" for i in range(SENTINELS)) if token not in extra]
            elif self.objective == "gap-sentences" and MASK not in extra:
                extra.append(MASK)
            elif (
                self.objective == "text-infilling" and options.get("kind") != "wordpiece"
            ):  # WordPiece has a mask token
                options["special_tokens"] = {"mask_token": "<mask>", **options.get("special_tokens", {})}
            if extra:
                options["extra_special_tokens"] = extra
        return options

    def make_objective(
        self, tokenizer: Any, config: TransformerConfig | None = None
    ) -> CausalLM | MaskedLM | EncoderDecoderObjective:
        """Create the objective.

        Args:
            tokenizer: Tokenizer of the blocks.
            config: Configuration of the model, which gives an encoder-decoder's decoder start token.
        """
        options = dict(self.objective_options)
        if config is not None and config.decoder is not None and head_of(self.objective) == "seq2seq-lm":
            options.setdefault("decoder_start_token_id", config.decoder.start_token_id)
        return objective(self.objective, tokenizer, **options)

    @property
    def sources(self) -> list[tuple[Any, dict[str, Any]]]:
        """(source, options) of read_documents for each corpus."""
        several = isinstance(self.corpus, Sequence) and not isinstance(self.corpus, str)
        return [self._resolve_source(source) for source in (self.corpus if several else [self.corpus])]

    def _resolve_source(self, source: Any) -> tuple[Any, dict[str, Any]]:
        if source == "standard-library":
            return str(standard_library_folder()), {"skip": STANDARD_LIBRARY_SKIPS, **self.corpus_options}
        if source == "installed-packages":
            return sysconfig.get_paths()["purelib"], {"skip": frozenset({"__pycache__"}), **self.corpus_options}
        return source, dict(self.corpus_options)

    def model_config(self, tokenizer: Any) -> dict[str, Any]:
        """Return config.json of a randomly initialized model: `model` plus vocabulary size, positions and special tokens.

        Args:
            tokenizer: Tokenizer of the blocks.

        Raises:
            InputError: `model` has a smaller vocabulary than the tokenizer, or the wrong kind of model for the objective.
            ConfigError: The model has fewer positions than a block has tokens, or is invalid.
        """
        from duonlp.architectures import config_from_hf

        hf_config = {"vocab_size": len(tokenizer), **self.model}
        if hf_config["vocab_size"] < len(tokenizer):
            raise InputError(
                f"the model's vocab_size is {hf_config['vocab_size']}, but its tokenizer has {len(tokenizer)} tokens; "
                "leave vocab_size out"
            )
        for role in ("bos", "eos", "pad"):
            token = getattr(tokenizer, f"{role}_token_id", None)
            if token is not None:
                hf_config.setdefault(f"{role}_token_id", token)
        is_seq2seq, longest = head_of(self.objective) == "seq2seq-lm", self.block_length
        if is_seq2seq:
            seq2seq_objective = self.make_objective(tokenizer)
            assert isinstance(seq2seq_objective, EncoderDecoderObjective)
            longest = max(seq2seq_objective.lengths(self.block_length))
            hf_config.setdefault("decoder_start_token_id", seq2seq_objective.decoder_start_token_id)
        if hf_config.get("model_type") != "t5":  # T5's relative positions have no maximum
            positions = "n_positions" if hf_config.get("model_type") == "gpt2" else "max_position_embeddings"
            hf_config.setdefault(positions, longest)
        config = config_from_hf(hf_config)
        if is_seq2seq:
            owner = f"that of a {config.model_type}"
            check_model(self.make_objective(tokenizer, config), config, owner, self.block_length)
        elif config.max_length < self.block_length:
            raise ConfigError(
                f"the model has {config.max_length} positions, but blocks have {self.block_length} tokens; reduce block_length "
                "or give the model more positions"
            )
        return hf_config


def load_run(file: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run from a Python file that defines ``CONFIG``, a dict, or from a .json file, and override settings.

    Args:
        file: The file. A Python file is executed, so it must be trusted.
        overrides: ``training.steps=100``, ``training.mesh={"fsdp": 4}``: a path of keys, and a value as JSON or plain text.

    Raises:
        InputError: The file does not exist, cannot be read, is not valid JSON or does not define CONFIG; or a key is not a
            setting.
    """
    file = Path(file)
    if not may_read(file):
        raise InputError(f"{str(file)!r} does not exist; give the .py or .json file of a run")
    if file.is_dir():
        raise InputError(f"{str(file)!r} is a folder; give the .py or .json file of a run")
    if file.suffix == ".json":
        settings = read_json(file, advice="fix that line")
    else:
        settings = _execute(file).get("CONFIG")
    if not isinstance(settings, Mapping):
        raise InputError(f"{str(file)!r} has no CONFIG; define it as a dict of RunConfig settings")
    settings = json.loads(json.dumps(dict(settings)))
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise InputError(f"override {override!r} is not KEY=VALUE; write for example training.steps=100")
        try:
            value = parse_json(text)
        except ValueError:
            value = text
        set_path(settings, path, value)
    return RunConfig.of(settings)


def _execute(file: Path) -> dict[str, Any]:
    """Run a Python file and return its global names."""
    spec = importlib.util.spec_from_file_location(f"run_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"{str(file)!r} is not a Python file; give the .py or .json file of a run")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return vars(module)


def _build_cleaning(settings: Mapping[str, Any]) -> CleaningConfig:
    settings = dict(settings)
    for key, value in settings.items():
        _check_key(key, [f.name for f in fields(CleaningConfig)], "cleaning")
        if key == "filters" and isinstance(value, str):
            value = {"preset": value}
        if key == "filters" and isinstance(value, Mapping) and "preset" in value:
            preset = choice("cleaning.filters.preset", str(value["preset"]), PRESETS)
            value = asdict(PRESETS[preset]()) | {name: limit for name, limit in value.items() if name != "preset"}
        if key in PARTS and isinstance(value, Mapping):
            for name in value:
                _check_key(name, [f.name for f in fields(PARTS[key])], f"cleaning.{key}")
            settings[key] = build(PARTS[key], value, f"cleaning.{key}", f"cleaning.{key}.")
    return build(CleaningConfig, settings, "cleaning", "cleaning.")


def _check_key(key: str, allowed: Sequence[str], what: str) -> None:
    if key not in allowed:
        raise InputError(unknown_setting(key, allowed, what))
