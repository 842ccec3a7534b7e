"""RAG-Sequence and RAG-Token (Lewis et al. 2020, https://arxiv.org/abs/2005.11401): generate answers from several documents."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.labels import array_of
from duonlp.rag import RagBase, RagConfig, SequenceBase, TokenBase
from duonlp.rag.forward import question_vectors
from duonlp.rag.inputs import check_names, check_shapes
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from tfnlp import ops
from tfnlp.heads import HEADS
from tfnlp.inference import TRACING, cached, get_compiled
from tfnlp.pretrained import merged_values
from tfnlp.rag.training import RagTraining
from tfnlp.steps.saving import register
from tfnlp.trainer_mixin import TrainerMixin


# pyrefly: ignore[inconsistent-inheritance]  # the configuration is a RagConfig
class Rag(RagTraining, RagBase, TrainerMixin, keras.Model):
    """A question encoder and a generator that reads several documents per question; see RagSequence and RagToken.

    Args:
        config: Configuration of the model.
        question_encoder: Model without a head.
        generator: Encoder-decoder language model.
        options: Arguments of keras.Model, such as ``name``.
    """

    config: Any

    def __init__(self, config: RagConfig, question_encoder: Any, generator: Any, **options: Any):
        super().__init__(dtype=generator.dtype_policy, autocast=False, **options)
        self.config, self.generation_config = config, generator.generation_config
        self.question_encoder, self.generator = question_encoder, generator
        self.built = True

    @classmethod
    def part_classes(cls) -> Mapping[str, Any]:
        """Return the model class by head."""
        return HEADS

    def __call__(
        self, input_ids: Array | Mapping[str, Array] | None = None, attention_mask: Array | None = None, *,
        context_input_ids: Array | None = None, context_attention_mask: Array | None = None,
        doc_scores: Array | None = None, doc_embeddings: Array | None = None, decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None, labels: Array | None = None, exclude_bos_score: bool | None = None,
        reduce_loss: bool | None = None, do_marginalize: bool | None = None, training: bool | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model; B rows with K documents each.

        Args:
            input_ids: int [B, T], questions for the question encoder; only read with doc_embeddings. Or a dict of all inputs.
            attention_mask: [B, T], or None if all tokens are real.
            context_input_ids: int [B, K, S] or [B * K, S], documents with their question for the generator; see RagContexts.
            context_attention_mask: Of the same shape, or None if all tokens are real.
            doc_scores: float [B, K], scores of the documents.
            doc_embeddings: float [B, K, d], their vectors, in place of scores: gradients then reach the question encoder.
            decoder_input_ids: int [B, U], input of the decoder; the labels by default.
            decoder_attention_mask: [B, U], or None if all tokens are real.
            labels: int [B, U], each of which is predicted from those before it; the generator's pad_token_id or -100 after
                the end.
            exclude_bos_score: See RagConfig; None for the configuration's.
            reduce_loss: See RagConfig.
            do_marginalize: See RagConfig.
            training: Whether to apply dropout.

        Returns:
            "logits" float32, of RAG-Sequence [B * K, U, V]; "doc_scores" float32 [B, K]; with labels "nll" float32 [B] and
            "loss", float32 [B] or the sum.

        Raises:
            InputError: An input is missing, shapes do not match, or ids are outside the vocabulary.
        """
        check_process()
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "context_input_ids": context_input_ids,
            "context_attention_mask": context_attention_mask, "doc_scores": doc_scores, "doc_embeddings": doc_embeddings,
            "decoder_input_ids": decoder_input_ids, "decoder_attention_mask": decoder_attention_mask, "labels": labels,
        }  # fmt: skip
        if isinstance(input_ids, Mapping):
            check_names(input_ids)
            inputs |= {"input_ids": None, **input_ids}
        tensors = {name: _to_tensor(name, value) for name, value in inputs.items() if value is not None}
        check_shapes(self.config, tensors)
        flags = {
            "exclude_bos_score": exclude_bos_score, "reduce_loss": reduce_loss, "do_marginalize": do_marginalize
        }  # fmt: skip
        return keras.Model.__call__(self, tensors, flags=flags, training=training)

    def call(
        self, inputs: dict[str, Any], flags: Mapping[str, bool | None] | None = None, training: bool | None = None
    ) -> dict[str, Any]:
        """Run the model on a dict of tensors, see :meth:`__call__`."""

        def encode(input_ids: Array, attention_mask: Array | None) -> Array:
            return question_vectors(self.config, self.question_encoder(input_ids, attention_mask, training=training))

        def generate(input_ids: Array, attention_mask: Array, decoder_ids: Array, decoder_mask: Array) -> Array:
            return self.generator(
                input_ids, attention_mask, decoder_input_ids=decoder_ids, decoder_attention_mask=decoder_mask,
                training=training,
            )["logits"]  # fmt: skip

        return self.marginal.forward(ops, inputs, encode, generate, flags or {})

    def encode_questions(self, input_ids: Array, attention_mask: Array | None = None) -> np.ndarray:
        """Return the vectors of questions, float32 [B, d]; see RagBase.encode_questions."""
        outputs = get_compiled(self.question_encoder)(input_ids=input_ids, attention_mask=attention_mask)
        return np.asarray(question_vectors(self.config, outputs), np.float32)

    def score_answers(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the negative log-likelihood of labels, float32 [B]; see RagBase.score_answers."""

        def nll(tensors: dict[str, tf.Tensor]) -> tf.Tensor:
            return self(tensors, exclude_bos_score=True, training=False)["nll"]

        run = cached(self, "_answer_nll", lambda: tf.function(nll, jit_compile=True, autograph=False))
        with TRACING:
            return run({name: _to_tensor(name, value) for name, value in batch.items()}).numpy()

    def _stored_dtype(self) -> np.dtype:
        return np.dtype(self.generator.variable_dtype)

    def _parameter_reader(self, part: Any) -> Callable[[str], np.ndarray]:
        return lambda path: merged_values(part, path)

    def get_config(self) -> dict[str, Any]:
        """Return what Keras writes to a ``.keras`` file: the configuration, and those of the two models."""
        parts = {name: keras.saving.serialize_keras_object(part) for name, part in self.parts.items()}
        options = self.config.hf_config(self.class_name)
        return {
            "rag_config": options,
            "generation_config": self.generation_config.to_dict(),
            "name": self.name,
            **parts,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], **options: Any) -> "Rag":
        """Create a model from what :meth:`get_config` returned."""
        parts = [keras.saving.deserialize_keras_object(config[name]) for name in ("question_encoder", "generator")]
        model = cls(RagConfig.from_hf(config["rag_config"]), *parts, name=config["name"])
        model.generation_config = parts[1].generation_config.with_options(**config["generation_config"])
        return model


@register
class RagSequence(SequenceBase, Rag):
    """RAG-Sequence: one document explains a whole answer."""


@register
class RagToken(TokenBase, Rag):
    """RAG-Token: every token of an answer may come from another document."""


def _to_tensor(name: str, value: Array) -> tf.Tensor | keras.KerasTensor:
    """Convert an array to a tensor of int32 or float32; symbolic inputs stay as they are."""
    if tf.is_tensor(value) or isinstance(value, keras.KerasTensor):
        return value
    value = np.asarray(array_of(name, value))
    return tf.convert_to_tensor(value.astype(np.float32 if value.dtype.kind == "f" else np.int32))
