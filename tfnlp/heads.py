"""Model classes, one per head, for all families: the configuration holds everything in which families differ."""

from typing import Any

import tensorflow as tf

from duonlp.heads import outputs_of
from duonlp.inputs import LOGIT_POSITIONS
from duonlp.parameters import sentence_classes
from tfnlp import ops
from tfnlp.generation.decoder import Decoder, Seq2SeqDecoder
from tfnlp.head_layers import Discriminator, LMHead
from tfnlp.layers import Dropout, dense
from tfnlp.model import Model, register
from tfnlp.transformer import Cache


@register
class ModelForMaskedLM(Model):
    """Masked language model: ``logits`` [B, T, V]; ``labels`` int [B, T], -100 where the input is not masked.

    With ``logit_positions`` int [B, n] among the inputs, only the logits at these positions are computed, [B, n, V].
    """

    head = "masked-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm, **options)

    def _logits(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return self.lm_head(hidden_states, word_embeddings=self.embeddings.word_embeddings)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        if LOGIT_POSITIONS in inputs:
            hidden_states = ops.take_along(hidden_states, inputs[LOGIT_POSITIONS], 1)
        return {"logits": self._logits(hidden_states)}


@register
class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """Causal language model: ``logits`` [B, T, V]; ``labels`` int [B, T], usually the input_ids.

    The loss shifts the labels, so that each position predicts the next token.
    """

    head = "causal-lm"


@register
class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """Encoder-decoder language model: decoder ``logits`` [B, U, V]; ``labels`` int [B, U], -100 on padding.

    Without decoder_input_ids, the decoder reads the labels shifted to the right.
    """

    head = "seq2seq-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.next_logits(hidden_states)}


@register
class ModelForSequenceClassification(Model):
    """Sequence classifier: ``logits`` [B, C]; ``labels`` int [B], float [B, C], or float [B] for regression."""

    head = "sequence-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        self.classifier = dense(c.num_labels, "classifier", bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        x = self.pooler(
            hidden_states,
            last_index=self._last_index(inputs),
            attention_mask=inputs.get("attention_mask"),
            training=training,
        )
        return {"logits": self.classifier(self.dropout(x, training=training))}


@register
class ModelForImageClassification(ModelForSequenceClassification):
    """Image classifier: ``logits`` [B, C]; ``labels`` int [B], float [B, C], or float [B] for regression."""

    head = "image-classification"


@register
class ModelForTokenClassification(Model):
    """Token classifier: ``logits`` [B, T, C]; ``labels`` int [B, T], -100 on ignored tokens."""

    head = "token-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.dropout = Dropout(self.config.token_dropout, name="dropout", **options)
        self.classifier = dense(self.config.num_labels, "classifier", **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.classifier(self.dropout(hidden_states, training=training))}


@register
class ModelForQuestionAnswering(Model):
    """Extractive question answering: span logits [B, T].

    Its outputs are ``start_logits`` and ``end_logits``, its labels ``start_positions`` and ``end_positions``
    int [B].
    """

    head = "question-answering"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.dropout = Dropout(self.config.qa_dropout, name="dropout", **options)
        self.qa_outputs = dense(2, "qa_outputs", **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        logits = self.qa_outputs(self.dropout(hidden_states, training=training))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


@register
class ModelForMultipleChoice(Model):
    """Multiple choice among C texts: inputs [B, C, T], ``logits`` [B, C], ``labels`` int [B]."""

    head = "multiple-choice"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.dropout = Dropout(self.config.multiple_choice.dropout, name="dropout", **options)
        self.classifier = dense(1, "classifier", **options)

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | tf.Tensor | None, training: bool | None,
    ) -> tuple[tf.Tensor, dict[str, Any]]:  # fmt: skip
        names = [spec.name for spec in self.config.inputs if spec.name in inputs]
        flat = {name: tf.reshape(inputs[name], [-1, tf.shape(inputs[name])[-1]]) for name in names}
        return super()._body(flat, output_hidden_states, output_attentions, cache, cache_index, training)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        mask = inputs.get("attention_mask")
        mask = None if mask is None else tf.reshape(mask, [-1, tf.shape(mask)[-1]])
        x = self.pooler(hidden_states, attention_mask=mask, training=training)
        logits = self.classifier(self.dropout(x, training=training))
        return {"logits": tf.reshape(logits, tf.shape(inputs["input_ids"])[:2])}


@register
class ModelForNextSentencePrediction(Model):
    """Next sentence prediction: ``logits`` [B, 2]; ``labels`` int [B], 0 if the second sentence follows the first."""

    head = "next-sentence-prediction"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.next_sentence = dense(2, "next_sentence", **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.next_sentence(self.pooler(hidden_states, training=training))}


@register
class ModelForPreTraining(ModelForMaskedLM):
    """Masked language model with a sentence pair head (BERT, ALBERT).

    Its outputs are ``prediction_logits`` [B, T, V] and ``seq_relationship_logits`` or ``sop_logits`` [B, 2];
    its labels ``labels`` int [B, T] and ``next_sentence_label`` or ``sentence_order_label`` int [B].
    """

    head = "pretraining"

    def _build_head(self, options: dict[str, Any]) -> None:
        super()._build_head(options)
        c = self.config
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        setattr(self, c.sentence_head, dense(sentence_classes(c), c.sentence_head, **options))

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        c = self.config
        words, sentences = outputs_of(self.head, c)
        x = self.pooler(hidden_states, training=training)
        if sentences.over == "order":
            x = self.dropout(x, training=training)
        return {words.logits: self._logits(hidden_states), sentences.logits: getattr(self, c.sentence_head)(x)}


@register
class ModelForReplacedTokenDetection(Model):
    """ELECTRA's discriminator: ``logits`` [B, T], positive for replaced tokens; ``labels`` [B, T], 1 for replaced."""

    head = "replaced-token-detection"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
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
