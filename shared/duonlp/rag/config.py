"""The configuration of RAG models: those of their two parts, and how documents reach the generator."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from duonlp import architectures
from duonlp.config import TransformerConfig
from duonlp.errors import ConfigError, InputError
from duonlp.schema import BOOL, TEXT, TOKEN, check, integer, number

MODEL_TYPE = "rag"
DEFAULT_TYPES = {"question_encoder": "dpr", "generator": "bart"}
"""model_type of a nested configuration without one."""

SCHEMA = {
    "n_docs": integer(1, 10_000),
    "title_sep": TEXT,
    "doc_sep": TEXT,
    "max_combined_length": integer(1, 1 << 20),
    "reduce_loss": BOOL,
    "label_smoothing": number(0, 1),
    "do_deduplication": BOOL,
    "exclude_bos_score": BOOL,
    "do_marginalize": BOOL,
    "bos_token_id": TOKEN | None,
}


@dataclass(frozen=True)
class RagConfig:
    """Configuration of RagSequence and RagToken; names, meanings and defaults are those of Transformers' RagConfig.

    Attributes:
        question_encoder: Configuration of the question encoder.
        generator: Configuration of the generator, an encoder-decoder.
        n_docs: Number of documents per question, where the inputs do not say.
        title_sep: Text between a document's title and its text.
        doc_sep: Text between a document and the question.
        max_combined_length: Maximum number of tokens of document and question.
        reduce_loss: Whether a call's loss is the sum over the rows rather than one per row.
        label_smoothing: Label smoothing of the loss.
        do_deduplication: Whether RAG-Sequence scores equal answers of several documents once.
        exclude_bos_score: Whether RAG-Sequence's loss leaves out a first token that is the start of the text.
        do_marginalize: Whether the logits of RAG-Token are log probabilities marginalized over the documents.
        bos_token_id: That start of the text; None for the generator's.
        extra: Further keys of config.json, which saving writes back.
    """

    question_encoder: TransformerConfig
    generator: TransformerConfig
    n_docs: int = 5
    title_sep: str = " / "
    doc_sep: str = " // "
    max_combined_length: int = 300
    reduce_loss: bool = False
    label_smoothing: float = 0.0
    do_deduplication: bool = True
    exclude_bos_score: bool = False
    do_marginalize: bool = False
    bos_token_id: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False, repr=False)

    model_type = MODEL_TYPE

    def __post_init__(self) -> None:
        if self.generator.decoder is None:
            raise ConfigError(
                f"the generator is a {self.generator.model_type}, which is no encoder-decoder; use one such as bart or t5"
            )
        check("RagConfig", {name: getattr(self, name) for name in SCHEMA}, SCHEMA)

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], file: str = "config.json") -> "RagConfig":
        """Translate the contents of config.json.

        Raises:
            ConfigError: It is no RAG model's, a nested configuration is missing or unsupported, or a value is invalid.
        """
        if hf.get("model_type") != MODEL_TYPE:
            raise ConfigError(
                f"{file} has the model_type {hf.get('model_type')!r}; expected {MODEL_TYPE!r}: make a RAG model of a question "
                "encoder and a generator with from_pretrained_question_encoder_generator"
            )
        check(file, hf, SCHEMA)
        parts: dict[str, Any] = {name: nested_config(hf, name, file) for name in DEFAULT_TYPES}
        parts = {name: architectures.config_from_hf(part, file) for name, part in parts.items()}
        values: dict[str, Any] = {name: hf[name] for name in SCHEMA if hf.get(name) is not None}
        known = {*values, *parts, "model_type", "architectures", "dtype", "torch_dtype", "transformers_version"}
        return cls(**parts, **values, extra={name: value for name, value in hf.items() if name not in known})

    def hf_config(self, class_name: str) -> dict[str, Any]:
        """Return config.json for a class of Transformers."""
        own = {name: getattr(self, name) for name in SCHEMA}
        return {
            **self.extra,
            **own,
            "architectures": [class_name],
            "model_type": MODEL_TYPE,
            "is_encoder_decoder": True,
            "question_encoder": architectures.hf_config(self.question_encoder, "base"),
            "generator": architectures.hf_config(self.generator, "seq2seq-lm"),
        }

    def with_options(self, **changes: Any) -> "RagConfig":
        """Return a copy with other options.

        Raises:
            InputError: An option is unknown.
        """
        allowed = [f.name for f in fields(self) if f.name not in ("extra", *DEFAULT_TYPES)]
        for name in changes:
            if name not in allowed:
                raise InputError(f"unknown keyword {name!r}; the options of a RAG model are {', '.join(allowed)}")
        return replace(self, **changes)

    def without_dropout(self) -> "RagConfig":
        """Return a copy whose parts have no dropout."""
        parts = {name: getattr(self, name).without_dropout() for name in DEFAULT_TYPES}
        return replace(self, **parts)

    @property
    def vector_size(self) -> int:
        """Length of the question encoder's vectors."""
        encoder = self.question_encoder
        return encoder.pooled_size if encoder.pooler_embeds else encoder.hidden_size

    @property
    def start_of_text(self) -> int | None:
        """Id of the token whose score ``exclude_bos_score`` leaves out, or None."""
        return self.bos_token_id or self.generator.bos_token_id

    @property
    def padding(self) -> int:
        """Id of padding in labels.

        Raises:
            ConfigError: The generator has none.
        """
        if self.generator.pad_token_id is None:
            raise ConfigError(
                "the generator has no pad_token_id, which marks the end of labels; set it in its config.json"
            )
        return self.generator.pad_token_id


def nested_config(hf: Mapping[str, Any], name: str, file: str = "config.json") -> dict[str, Any]:
    """Return the nested configuration of a part.

    Raises:
        ConfigError: It is missing.
    """
    if not isinstance(hf.get(name), Mapping):
        raise ConfigError(f"{file} has no {name}; expected an object with the configuration of the {name}")
    return {**hf[name], "model_type": hf[name].get("model_type") or DEFAULT_TYPES[name]}
