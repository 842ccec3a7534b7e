"""The forward pass and the loss of RAG models over ``ops``, given what runs their two parts."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from duonlp.heads import ROW_MASK
from duonlp.rag.config import RagConfig
from duonlp.rag.inputs import flatten_documents
from duonlp.rag.marginal import sequence_nll, token_logprobs, token_nll
from duonlp.typing import Array, Ops

FLAGS = ("exclude_bos_score", "reduce_loss", "do_marginalize")
"""Arguments of a model's call that are not arrays; None stands for the configuration's."""


@dataclass(frozen=True)
class Marginal:
    """How a RAG model marginalizes over documents.

    Attributes:
        config: Configuration of the model.
    """

    config: RagConfig

    def nll(self, ops: Ops, logits: Array, doc_scores: Array, labels: Array, exclude_bos_score: bool) -> Array:
        """Return the negative log-likelihood of each row's labels, float32 [B]; see :mod:`duonlp.rag.marginal`."""
        raise NotImplementedError

    def logits(self, ops: Ops, logits: Array, doc_scores: Array, do_marginalize: bool) -> Array:
        """Return the logits of the model, of those of the generator [B * K, U, V]."""
        return logits

    def forward(
        self, ops: Ops, inputs: Mapping[str, Array], encode: Callable[..., Array], generate: Callable[..., Array],
        flags: Mapping[str, bool | None],
    ) -> dict[str, Array]:  # fmt: skip
        """Run both parts and marginalize.

        Args:
            ops: Array operations of the framework.
            inputs: Arrays by name, see the engine's model.
            encode: ``(input_ids, attention_mask) -> vectors [B, d]``, the question encoder.
            generate: ``(input_ids, attention_mask, decoder_input_ids, decoder_attention_mask) -> logits``, the generator.
            flags: FLAGS by name.

        Returns:
            "logits", "doc_scores" float32 [B, K], and with labels "nll" float32 [B] and "loss".
        """
        values = {name: getattr(self.config, name) if flags.get(name) is None else flags[name] for name in FLAGS}
        scores, labels = inputs.get("doc_scores"), inputs.get("labels")
        if scores is None:
            vectors = ops.expand_dims(ops.cast(encode(inputs["input_ids"], inputs.get("attention_mask")), "float32"), 1)
            scores = ops.sum(vectors * ops.cast(inputs["doc_embeddings"], "float32"), axis=2)
        documents = ops.size(scores, 1)
        if labels is not None:
            labels = ops.where(labels < 0, self.config.padding, labels)
        target, target_mask = inputs.get("decoder_input_ids"), inputs.get("decoder_attention_mask")
        target = labels if target is None else target
        logits = generate(
            flatten_documents(ops, inputs["context_input_ids"]),
            flatten_documents(ops, inputs.get("context_attention_mask")),
            ops.repeat(target, documents, 0),
            None if target_mask is None else ops.repeat(target_mask, documents, 0),
        )
        out = {"logits": self.logits(ops, logits, scores, bool(values["do_marginalize"])), "doc_scores": scores}
        if labels is not None:
            out["nll"] = self.nll(ops, logits, scores, labels, bool(values["exclude_bos_score"]))
            out["loss"] = ops.sum(out["nll"], axis=0) if values["reduce_loss"] else out["nll"]
        return out

    def loss_terms(
        self, ops: Ops, outputs: Mapping[str, Array], batch: Mapping[str, Array]
    ) -> dict[str, tuple[Any, Any]]:
        """Return the loss of training as {"loss": (sum, count)}: the mean of the rows' negative log-likelihoods."""
        nll = outputs["nll"]
        weights = ops.cast(batch[ROW_MASK], "float32") if ROW_MASK in batch else nll * 0.0 + 1.0
        return {"loss": (ops.sum(nll * weights, axis=0), ops.sum(weights, axis=0))}


@dataclass(frozen=True)
class SequenceMarginal(Marginal):
    """One document explains a whole answer."""

    def nll(self, ops: Ops, logits: Array, doc_scores: Array, labels: Array, exclude_bos_score: bool) -> Array:
        """Return the negative log-likelihood of each row's labels, float32 [B]."""
        config = self.config
        return sequence_nll(
            ops, logits, doc_scores, labels, padding=config.padding, label_smoothing=config.label_smoothing,
            excluded_start=config.start_of_text if exclude_bos_score else None,
        )  # fmt: skip


@dataclass(frozen=True)
class TokenMarginal(Marginal):
    """Every token of an answer may come from another document."""

    def nll(self, ops: Ops, logits: Array, doc_scores: Array, labels: Array, exclude_bos_score: bool) -> Array:
        """Return the negative log-likelihood of each row's labels, float32 [B]."""
        config = self.config
        return token_nll(
            ops, logits, doc_scores, labels, padding=config.padding, label_smoothing=config.label_smoothing
        )

    def logits(self, ops: Ops, logits: Array, doc_scores: Array, do_marginalize: bool) -> Array:
        """Return log probabilities [B, U, V] with do_marginalize, else the generator's logits [B * K, U, V]."""
        return token_logprobs(ops, logits, doc_scores) if do_marginalize else logits


def question_vectors(config: RagConfig, outputs: Mapping[str, Array]) -> Array:
    """Return the vectors of questions [B, d] among the outputs of the question encoder.

    They are its pooled output if that is what the family is trained for (DPR), otherwise the states of the first token.
    """
    if config.question_encoder.pooler_embeds:
        return outputs["pooler_output"]
    return outputs["last_hidden_state"][:, 0]
