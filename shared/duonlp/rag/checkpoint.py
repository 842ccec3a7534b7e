"""RAG checkpoints in Hugging Face layout: two models in one folder, each with a prefix of its tensors' names and a tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from duonlp.checkpoints.checkpoint import Checkpoint
from duonlp.checkpoints.copies import Equality
from duonlp.checkpoints.processors import load_tokenizer
from duonlp.checkpoints.safetensors_file import StoredTensor, TensorToWrite
from duonlp.errors import CheckpointError, ConfigError
from duonlp.generation import GenerationConfig
from duonlp.generation.config import OPTIONS
from duonlp.rag.config import RagConfig, nested_config
from duonlp.typing import Tokenizer

PREFIXES = {"question_encoder": "rag.question_encoder.", "generator": "rag.generator."}
"""Prefix of the names of each part's tensors."""

HEADS = {"question_encoder": "base", "generator": "seq2seq-lm"}
"""Head of each part."""


class Part(Checkpoint):
    """One of the two models of an open RAG checkpoint, whose files it shares.

    Args:
        whole: The RAG checkpoint.
        name: "question_encoder" or "generator".
    """

    def __init__(self, whole: Checkpoint, name: str):
        self.folder, self._hub, self._files = whole.folder, whole._hub, whole._files
        self.config = nested_config(whole.config, name, str(whole.folder / "config.json"))
        self._whole, self._prefix = whole, PREFIXES[name]
        self._equal, self._resolutions = Equality(), {}

    @cached_property
    def tensors(self) -> dict[str, StoredTensor]:
        """The part's tensors by their names in a checkpoint of its own.

        Raises:
            CheckpointError: There are no safetensors, or none of this part.
        """
        start = self._prefix
        try:
            stored = self._whole.tensors
        except ConfigError:  # from the readers of other formats, which need a TransformerConfig
            raise CheckpointError(
                f"{self.folder} has no safetensors, which a RAG model is read from; load it with Transformers and save it with "
                "save_pretrained"
            ) from None
        tensors = {name.removeprefix(start): tensor for name, tensor in stored.items() if name.startswith(start)}
        if not tensors:
            raise CheckpointError(
                f"{self.folder} has no tensor whose name begins with {start!r}; it holds another model"
            )
        return tensors

    @property
    def generation_config(self) -> dict[str, Any]:
        """Nothing: the settings in the folder are those of the whole model."""
        return {}


def default_settings(config: RagConfig, stored: Mapping[str, Any] | None = None) -> GenerationConfig:
    """Return the default generation settings of a RAG model: the generator's, then those of the RAG model.

    Args:
        config: The model.
        stored: Contents of generation_config.json.
    """
    if not stored:
        own = {name: value for name, value in config.extra.items() if name in OPTIONS and value is not None}
        stored = {name: value for name, value in config.generator.extra.items() if name in OPTIONS} | own
    return GenerationConfig.for_model(config.generator, stored, origin="generation_config.json")


def renamed(rows: list[TensorToWrite], name: str) -> list[TensorToWrite]:
    """Return the tensors of a part under their names in a RAG checkpoint."""
    return [replace(row, name=PREFIXES[name] + row.name) for row in rows]


@dataclass(frozen=True)
class RagTokenizers:
    """The tokenizers of the two parts, in the subfolders of a RAG checkpoint.

    Attributes:
        question_encoder: Tokenizer of questions.
        generator: Tokenizer of documents, questions and answers.
    """

    question_encoder: Tokenizer
    generator: Tokenizer

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Load both from a RAG checkpoint.

        Raises:
            CheckpointError: A subfolder is missing, or its tokenizer cannot be loaded.
        """
        folders = {name: Path(folder).expanduser() / subfolder for name, subfolder in SUBFOLDERS.items()}
        for path in folders.values():
            if not path.is_dir():
                raise CheckpointError(
                    f"{folder} has no folder {path.name}; save the model with tokenizers=, or pass tokenizers of your own"
                )
        return cls(**{name: load_tokenizer(path) for name, path in folders.items()})

    def by_folder(self) -> dict[str, Tokenizer]:
        """Return the tokenizers by subfolder."""
        return {subfolder: getattr(self, name) for name, subfolder in SUBFOLDERS.items()}


SUBFOLDERS = {"question_encoder": "question_encoder_tokenizer", "generator": "generator_tokenizer"}
"""Subfolder of each part's tokenizer."""
