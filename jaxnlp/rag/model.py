"""RAG-Sequence and RAG-Token (Lewis et al. 2020, https://arxiv.org/abs/2005.11401): generate answers from several documents."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from duonlp.inputs import check_inputs
from duonlp.labels import array_of
from duonlp.rag import RagBase, RagConfig, SequenceBase, TokenBase
from duonlp.rag.forward import question_vectors
from duonlp.rag.inputs import check_shapes
from duonlp.training.fit_config import FitConfig
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from jaxnlp import ops
from jaxnlp.heads import HEADS
from jaxnlp.pretrained import merge, parameter_tree, split
from jaxnlp.rag.training import RagStep
from jaxnlp.training.step import Step


class Rag(RagBase, nnx.Module):
    """A question encoder and a generator that reads several documents per question; see RagSequence and RagToken.

    Args:
        config: Configuration of the model.
        question_encoder: Model without a head.
        generator: Encoder-decoder language model.
    """

    def __init__(self, config: RagConfig, question_encoder: Any, generator: Any):
        self.config, self.generation_config = config, generator.generation_config
        self.question_encoder, self.generator = question_encoder, generator

    @classmethod
    def part_classes(cls) -> Mapping[str, Any]:
        """Return the model class by head."""
        return HEADS

    def __call__(
        self, input_ids: Array | None = None, attention_mask: Array | None = None, *,
        context_input_ids: Array | None = None, context_attention_mask: Array | None = None,
        doc_scores: Array | None = None, doc_embeddings: Array | None = None, decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None, labels: Array | None = None, exclude_bos_score: bool | None = None,
        reduce_loss: bool | None = None, do_marginalize: bool | None = None, rngs: nnx.Rngs | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model; B rows with K documents each.

        Args:
            input_ids: int [B, T], questions for the question encoder; only read with doc_embeddings.
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
            rngs: Random streams with ``dropout`` for training with dropout; None for no dropout.

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
        arrays = {name: jnp.asarray(array_of(name, v)) for name, v in inputs.items() if v is not None}
        check_shapes(self.config, arrays)

        def encode(input_ids: Array, attention_mask: Array | None) -> Array:
            return question_vectors(self.config, self.question_encoder(input_ids, attention_mask, rngs=rngs))

        def generate(input_ids: Array, attention_mask: Array, decoder_ids: Array, decoder_mask: Array) -> Array:
            return self.generator(
                input_ids, attention_mask, decoder_input_ids=decoder_ids, decoder_attention_mask=decoder_mask, rngs=rngs
            )["logits"]

        flags = {
            "exclude_bos_score": exclude_bos_score, "reduce_loss": reduce_loss, "do_marginalize": do_marginalize
        }  # fmt: skip
        return self.marginal.forward(ops, arrays, encode, generate, flags)

    def encode_questions(self, input_ids: Array, attention_mask: Array | None = None) -> np.ndarray:
        """Return the vectors of questions, float32 [B, d]; see RagBase.encode_questions."""
        inputs = {"input_ids": np.asarray(input_ids)}
        if attention_mask is not None:
            inputs["attention_mask"] = np.asarray(attention_mask)
        check_inputs(self.question_encoder.config, self.question_encoder.head, inputs)
        graphdef, params = split(self.question_encoder)
        return np.asarray(question_vectors(self.config, _outputs(params, inputs, graphdef=graphdef)), np.float32)

    def score_answers(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the negative log-likelihood of labels, float32 [B]; see RagBase.score_answers."""
        graphdef, params = split(self)
        return np.asarray(_answer_nll(params, dict(batch), graphdef=graphdef))

    def _stored_dtype(self) -> np.dtype:
        return np.dtype(self.generator.param_dtype)

    def _parameter_reader(self, part: Any) -> Callable[[str], np.ndarray]:
        values = parameter_tree(part)
        return lambda path: np.asarray(values[path])

    def fit_step(self, config: FitConfig, mesh: Mesh | None = None) -> Step:
        """Return the step with which ``fit`` trains the model."""
        return RagStep(self, config, mesh)


class RagSequence(SequenceBase, Rag):
    """RAG-Sequence: one document explains a whole answer."""


class RagToken(TokenBase, Rag):
    """RAG-Token: every token of an answer may come from another document."""


@partial(jax.jit, static_argnames="graphdef")
def _outputs(params, inputs, *, graphdef):
    return merge(graphdef, params)(**inputs)


@partial(jax.jit, static_argnames="graphdef")
def _answer_nll(params, inputs, *, graphdef):
    return merge(graphdef, params)(**inputs, exclude_bos_score=True)["nll"]
