"""RAG models, as far as both engines share them: loading, saving, the forward pass and generation."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from duonlp.checkpoints.checkpoint import Checkpoint, open_checkpoint
from duonlp.checkpoints.save import tensors_to_write, write_checkpoint
from duonlp.errors import InputError
from duonlp.generation import GenerationConfig, GenerationOutput
from duonlp.rag import decoding
from duonlp.rag.checkpoint import HEADS, Part, RagTokenizers, default_settings, renamed
from duonlp.rag.config import RagConfig
from duonlp.rag.forward import Marginal, SequenceMarginal, TokenMarginal
from duonlp.rag.inputs import check_documents
from duonlp.typing import Array
from duonlp.util.frameworks import check_process


class RagBase:
    """Mixin of RagSequence and RagToken: a question encoder and a generator that reads several documents per question.

    The score of a document is the inner product of the question's vector and the document's; the model's inputs have either
    the scores or the vectors of documents, which a context encoder computed once and that are not trained. With vectors,
    gradients reach the question encoder.

    Attributes:
        config: Configuration of the model.
        question_encoder: Model whose vector of a question is its pooled output, or the state of its first token.
        generator: Encoder-decoder language model.
        generation_config: Default generation settings.
        folder: Folder from which the model was loaded, if any.
    """

    head: ClassVar[str] = "rag"
    class_name: ClassVar[str]
    marginal_class: ClassVar[type[Marginal]]
    config: RagConfig
    question_encoder: Any
    generator: Any
    generation_config: GenerationConfig
    folder: str | None = None

    # -- loading and saving ----------------------------------------------------------------------------------------

    @classmethod
    def part_classes(cls) -> Mapping[str, Any]:
        """Return the engine's model class by head."""
        raise NotImplementedError

    @classmethod
    def from_parts(cls, question_encoder: Any, generator: Any, config: RagConfig | None = None, **options: Any) -> Self:
        """Make a RAG model of two loaded models, which it shares.

        Args:
            question_encoder: A model without a head (AutoModel).
            generator: An encoder-decoder language model (AutoModelForSeq2SeqLM).
            config: Configuration; None for the defaults with the parts' own.
            options: Options of RagConfig, such as n_docs.

        Raises:
            InputError: A part has another head, or an option is unknown.
        """
        parts = {"question_encoder": question_encoder, "generator": generator}
        for name, part in parts.items():
            if getattr(part, "head", None) != HEADS[name]:
                needed = cls.part_classes()[HEADS[name]].__name__
                raise InputError(f"the {name} is a {type(part).__name__}; expected a {needed} of the same package")
        if config is None:
            config = RagConfig(question_encoder.config, generator.config)
        create: Any = cls
        model = create(config.with_options(**options), question_encoder, generator)
        model.generation_config = generator.generation_config
        return model

    @classmethod
    def from_pretrained_question_encoder_generator(
        cls, question_encoder: Any, generator: Any, *, local_files_only: bool = False, dtype: Any = None,
        param_dtype: Any = "float32", **options: Any,
    ) -> Self:  # fmt: skip
        """Make a RAG model of two checkpoints, or of loaded models.

        Args:
            question_encoder: Folder or Hub id of a question encoder such as DPR's, or a model.
            generator: Folder or Hub id of an encoder-decoder such as BART, or a model.
            local_files_only: Never access the network.
            dtype: See from_pretrained.
            param_dtype: See from_pretrained.
            options: Options of RagConfig, such as n_docs.

        Raises:
            CheckpointError: A checkpoint cannot be found or read.
            InputError: An option is unknown, or a model has another head.
        """
        parts, classes = {"question_encoder": question_encoder, "generator": generator}, cls.part_classes()
        for name, part in parts.items():
            if isinstance(part, (str, os.PathLike)):
                parts[name] = classes[HEADS[name]].from_pretrained(
                    part, local_files_only=local_files_only, dtype=dtype, param_dtype=param_dtype
                )
        return cls.from_parts(**parts, **options)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | os.PathLike[str] | Checkpoint, *, revision: str | None = None, local_files_only: bool = False,
        dtype: Any = None, param_dtype: Any = "float32", **options: Any,
    ) -> Self:  # fmt: skip
        """Load a RAG checkpoint in Hugging Face layout; RagSequence and RagToken read each other's.

        Args:
            name_or_path: A folder, a Hub id, or an open checkpoint.
            revision: Branch, tag or commit on the Hub.
            local_files_only: Never access the network.
            dtype: Compute dtype: float32, bfloat16 or float16.
            param_dtype: Dtype in which the parameters are stored.
            options: Options of RagConfig, such as n_docs.

        Raises:
            CheckpointError: The checkpoint is not found, damaged, or not a RAG model's.
            ConfigError: A part's family or an option of its configuration is unsupported.
            InputError: An option is unknown.
        """
        check_process()
        checkpoint = open_checkpoint(name_or_path, revision, local_files_only)
        try:
            config = RagConfig.from_hf(checkpoint.config, str(checkpoint.folder / "config.json"))
            classes = cls.part_classes()
            parts = {
                name: classes[head].from_pretrained(Part(checkpoint, name), dtype=dtype, param_dtype=param_dtype)
                for name, head in HEADS.items()
            }
            stored = checkpoint.generation_config
        finally:
            if checkpoint is not name_or_path:
                checkpoint.close()
        # The parts' own, since the tensors may have corrected what config.json says.
        config = replace(config, **{name: part.config for name, part in parts.items()})
        model = cls.from_parts(**parts, config=config, **options)
        model.generation_config = default_settings(config, stored)
        model.folder = str(checkpoint.folder)
        return model

    def save_pretrained(
        self, folder: str | Path, tokenizers: RagTokenizers | None = None, max_shard_size: int | str = "5GB"
    ) -> None:
        """Write the model in Hugging Face layout, atomically.

        Args:
            folder: Folder to write to.
            tokenizers: Tokenizers to save in the subfolders question_encoder_tokenizer and generator_tokenizer.
            max_shard_size: Largest file size before weights are sharded, such as "5GB", or bytes.
        """
        dtype, rows = self._stored_dtype(), []
        for name, head in HEADS.items():
            part = self.parts[name]
            rows += renamed(tensors_to_write(part.config, head, self._parameter_reader(part), dtype), name)
        config = self.config.hf_config(self.class_name) | {"dtype": dtype.name}
        given = {} if tokenizers is None else tokenizers.by_folder()
        write_checkpoint(folder, rows, config, given, max_shard_size, self.generation_config.to_dict())

    def _stored_dtype(self) -> np.dtype:
        """Return the storage dtype of the parameters."""
        raise NotImplementedError

    def _parameter_reader(self, part: Any) -> Callable[[str], np.ndarray]:
        """Return a function from a parameter's path to its values, of a part."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return what identifies the model in run.json."""
        return {"model": self.config.hf_config(self.class_name), "head": self.head}

    @property
    def parts(self) -> dict[str, Any]:
        """The two models by name, whose parameters are this model's."""
        return {"question_encoder": self.question_encoder, "generator": self.generator}

    @property
    def marginal(self) -> Marginal:
        """How the model marginalizes over documents."""
        return self.marginal_class(self.config)

    # -- generation ------------------------------------------------------------------------------------------------

    def encode_questions(self, input_ids: Array, attention_mask: Array | None = None) -> np.ndarray:
        """Return the vectors of questions, float32 [B, d].

        Args:
            input_ids: int [B, T], by the question encoder's tokenizer.
            attention_mask: [B, T], or None if all tokens are real.
        """
        raise NotImplementedError

    def generate(self, *args: Any, **options: Any) -> Any:
        """Generate answers; see SequenceBase and TokenBase."""
        raise NotImplementedError

    def score_answers(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the negative log-likelihood of labels, float32 [B], without that of a first token that starts the text."""
        raise NotImplementedError

    def document_scores(self, inputs: Mapping[str, Any]) -> np.ndarray:
        """Return the scores of documents, float32 [B, K], given as ``doc_scores`` or by ``doc_embeddings`` and the question."""
        if inputs.get("doc_scores") is not None:
            return np.asarray(inputs["doc_scores"], np.float32)
        vectors = self.encode_questions(inputs["input_ids"], inputs.get("attention_mask"))
        return np.einsum("bd,bkd->bk", vectors, np.asarray(inputs["doc_embeddings"], np.float32))


class SequenceBase(RagBase):
    """RAG-Sequence: one document explains a whole answer."""

    class_name = "RagSequenceForGeneration"
    marginal_class = SequenceMarginal

    def generate(
        self, input_ids: Array | None = None, attention_mask: Array | None = None, *, context_input_ids: Array,
        context_attention_mask: Array | None = None, doc_scores: Array | None = None, doc_embeddings: Array | None = None,
        do_deduplication: bool | None = None, num_return_sequences: int | None = None, num_beams: int | None = None,
        fast: bool = False, return_dict_in_generate: bool = False,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None, **options: Any,
    ) -> np.ndarray | GenerationOutput:  # fmt: skip
        """Generate the best answers to questions, by the probability of the whole answer over all documents.

        Every document proposes ``num_beams`` answers. Thorough decoding scores each of them given every document; fast decoding
        takes the probability of an answer as 0 given documents that did not propose it, and needs no further forward pass.

        Args:
            input_ids: int [B, T], questions; only read with doc_embeddings.
            attention_mask: [B, T].
            context_input_ids: int [B * K, S] or [B, K, S], documents with their question; see RagContexts.
            context_attention_mask: Of the same shape; None recognizes padding by the generator's pad_token_id.
            doc_scores: float [B, K], scores of the documents.
            doc_embeddings: float [B, K, d], their vectors, in place of scores.
            do_deduplication: Whether to score equal answers once; None for the configuration's. Fast decoding always does.
            num_return_sequences: Answers per question; None for the settings'.
            num_beams: Answers that each document proposes; None for the settings'.
            fast: Whether to decode fast rather than thoroughly.
            return_dict_in_generate: Return also "sequences_scores" float32 [B * num_return_sequences], log probabilities.
            generation_config: See ``generate`` of the generator.
            options: Further options of the generator's ``generate``.

        Returns:
            int32 [B * num_return_sequences, n], answers with the decoder's start token, best first, padded on the right.

        Raises:
            InputError: Shapes do not match, or an option is invalid.
        """
        inputs = check_documents(self.config, {
            "input_ids": input_ids, "attention_mask": attention_mask, "context_input_ids": context_input_ids,
            "context_attention_mask": context_attention_mask, "doc_scores": doc_scores, "doc_embeddings": doc_embeddings,
        })  # fmt: skip
        settings = decoding.SequenceSettings.resolve(
            self, generation_config, options, num_beams, num_return_sequences,
            self.config.do_deduplication if do_deduplication is None else do_deduplication, fast,
        )  # fmt: skip
        output = decoding.generate_sequences(self, inputs, self.document_scores(inputs), settings)
        return output if return_dict_in_generate else output["sequences"]


class TokenBase(RagBase):
    """RAG-Token: every token of an answer may come from another document."""

    class_name = "RagTokenForGeneration"
    marginal_class = TokenMarginal

    def generate(
        self, input_ids: Array | None = None, attention_mask: Array | None = None, *, context_input_ids: Array,
        context_attention_mask: Array | None = None, doc_scores: Array | None = None, doc_embeddings: Array | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None, **options: Any,
    ) -> np.ndarray | GenerationOutput:  # fmt: skip
        """Generate answers to questions, each token by its probability over all documents.

        Args:
            input_ids: int [B, T], questions; only read with doc_embeddings.
            attention_mask: [B, T].
            context_input_ids: int [B * K, S] or [B, K, S], documents with their question; see RagContexts.
            context_attention_mask: Of the same shape; None recognizes padding by the generator's pad_token_id.
            doc_scores: float [B, K], scores of the documents.
            doc_embeddings: float [B, K, d], their vectors, in place of scores.
            generation_config: Settings in place of the model's.
            options: Options of the generator's ``generate``: greedy decoding, beams and sampling.

        Returns:
            int32 [B * num_return_sequences, n], answers with the decoder's start token, best first; or a GenerationOutput.

        Raises:
            InputError: Shapes do not match, or an option is invalid or not supported with several documents.
        """
        inputs = check_documents(self.config, {
            "input_ids": input_ids, "attention_mask": attention_mask, "context_input_ids": context_input_ids,
            "context_attention_mask": context_attention_mask, "doc_scores": doc_scores, "doc_embeddings": doc_embeddings,
        })  # fmt: skip
        settings = self.generation_config if generation_config is None else generation_config
        return self.generator.generate(
            inputs["context_input_ids"], inputs.get("context_attention_mask"), settings,
            doc_scores=self.document_scores(inputs), **options,
        )  # fmt: skip
