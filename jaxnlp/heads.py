"""Model classes, one per head, for all families: the configuration holds everything in which families differ."""

from typing import Any

import jax
from flax import nnx

from duonlp.heads import outputs_of
from duonlp.inputs import LOGIT_POSITIONS
from duonlp.parameters import sentence_classes
from jaxnlp import ops
from jaxnlp.generation.decoder import Decoder, Seq2SeqDecoder
from jaxnlp.head_layers import Discriminator, LMHead
from jaxnlp.layers import Linear, dropout
from jaxnlp.model import Model
from jaxnlp.transformer import Cache


class ModelForMaskedLM(Model):
    """Masked language model: ``logits`` [B, T, V]; ``labels`` int [B, T], -100 where the input is not masked.

    With ``logit_positions`` int [B, n] among the inputs, only the logits at these positions are computed, [B, n, V].
    """

    head = "masked-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        if inputs.get(LOGIT_POSITIONS) is not None:
            hidden_states = ops.take_along(hidden_states, inputs[LOGIT_POSITIONS], 1)
        return {"logits": self.lm_head(hidden_states, self.embeddings.word_embeddings)}


class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """Causal language model: ``logits`` [B, T, V]; ``labels`` int [B, T], usually the input_ids.

    The loss shifts the labels, so that each position predicts the next token.
    """

    head = "causal-lm"


class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """Encoder-decoder language model: decoder ``logits`` [B, U, V]; ``labels`` int [B, U], -100 on padding.

    Without decoder_input_ids, the decoder reads the labels shifted to the right.
    """

    head = "seq2seq-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        return {"logits": self.next_logits(hidden_states)}


class ModelForSequenceClassification(Model):
    """Sequence classifier: ``logits`` [B, C]; ``labels`` int [B], float [B, C], or float [B] for regression."""

    head = "sequence-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.classifier = Linear(c.hidden_size, c.num_labels, use_bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        x = self.pooler(hidden_states, self._last_index(inputs), inputs["attention_mask"], rngs)
        return {"logits": self.classifier(dropout(x, self.config.classification.dropout, rngs))}


class ModelForImageClassification(ModelForSequenceClassification):
    """Image classifier: ``logits`` [B, C]; ``labels`` int [B], float [B, C], or float [B] for regression."""

    head = "image-classification"


class ModelForTokenClassification(Model):
    """Token classifier: ``logits`` [B, T, C]; ``labels`` int [B, T], -100 on ignored tokens."""

    head = "token-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.classifier = Linear(self.config.hidden_size, self.config.num_labels, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        return {"logits": self.classifier(dropout(hidden_states, self.config.token_dropout, rngs))}


class ModelForQuestionAnswering(Model):
    """Extractive question answering: span logits [B, T].

    Its outputs are ``start_logits`` and ``end_logits``, its labels ``start_positions`` and ``end_positions``
    int [B].
    """

    head = "question-answering"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.qa_outputs = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        logits = self.qa_outputs(dropout(hidden_states, self.config.qa_dropout, rngs))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


class ModelForMultipleChoice(Model):
    """Multiple choice among C texts: inputs [B, C, T], ``logits`` [B, C], ``labels`` int [B]."""

    head = "multiple-choice"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.classifier = Linear(self.config.hidden_size, 1, **options)

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | jax.Array | None, rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        names = [spec.name for spec in self.config.inputs]
        flat = {n: None if inputs[n] is None else inputs[n].reshape(-1, inputs[n].shape[-1]) for n in names}
        return super()._body(flat, output_hidden_states, output_attentions, cache, cache_index, rngs)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        mask = inputs["attention_mask"]
        mask = None if mask is None else mask.reshape(-1, mask.shape[-1])
        x = self.pooler(hidden_states, attention_mask=mask, rngs=rngs)
        logits = self.classifier(dropout(x, self.config.multiple_choice.dropout, rngs))
        return {"logits": logits.reshape(inputs["input_ids"].shape[:2])}


class ModelForNextSentencePrediction(Model):
    """Next sentence prediction: ``logits`` [B, 2]; ``labels`` int [B], 0 if the second sentence follows the first."""

    head = "next-sentence-prediction"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.next_sentence = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        return {"logits": self.next_sentence(self.pooler(hidden_states, rngs=rngs))}


class ModelForPreTraining(ModelForMaskedLM):
    """Masked language model with a sentence pair head (BERT, ALBERT).

    Its outputs are ``prediction_logits`` [B, T, V] and ``seq_relationship_logits`` or ``sop_logits`` [B, 2];
    its labels ``labels`` int [B, T] and ``next_sentence_label`` or ``sentence_order_label`` int [B].
    """

    head = "pretraining"

    def _build_head(self, options: dict[str, Any]) -> None:
        super()._build_head(options)
        c = self.config
        setattr(self, c.sentence_head, Linear(c.hidden_size, sentence_classes(c), **options))

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        c = self.config
        words, sentences = outputs_of(self.head, c)
        x = self.pooler(hidden_states, rngs=rngs)
        if sentences.over == "order":
            x = dropout(x, c.classification.dropout, rngs)
        predictions = self.lm_head(hidden_states, self.embeddings.word_embeddings)
        return {words.logits: predictions, sentences.logits: getattr(self, c.sentence_head)(x)}


class ModelForReplacedTokenDetection(Model):
    """ELECTRA's discriminator: ``logits`` [B, T], positive for replaced tokens; ``labels`` [B, T], 1 for replaced."""

    head = "replaced-token-detection"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        return {"logits": self.discriminator(hidden_states)}


HEADS: dict[str, type[Model]] = {
    cls.head: cls
    for cls in (
        Model, ModelForMaskedLM, ModelForCausalLM, ModelForSeq2SeqLM, ModelForSequenceClassification,
        ModelForImageClassification, ModelForTokenClassification, ModelForQuestionAnswering, ModelForMultipleChoice,
        ModelForNextSentencePrediction, ModelForPreTraining, ModelForReplacedTokenDetection,
    )
}  # fmt: skip
"""Model class by head name; see duonlp.heads.HEADS."""
