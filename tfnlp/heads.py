"""Model classes, one per head, for all families: the configuration holds everything in which families differ."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfnlp import losses
from tfnlp.generation.decoder import Decoder, Seq2SeqDecoder
from tfnlp.head_layers import Discriminator, LMHead
from tfnlp.layers import Dropout, dense
from tfnlp.model import Model, register
from tfnlp.transformer import Cache


@register
class ModelForMaskedLM(Model):
    """Masked language model: ``logits`` [B, T, V]; ``labels`` int [B, T], -100 where the input is not masked."""

    head = "masked-lm"
    targets = {"labels": "logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm.epsilon, **options)

    def _logits(self, hidden_states: tf.Tensor) -> tf.Tensor:
        return self.lm_head(hidden_states, word_embeddings=self.embeddings.word_embeddings)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self._logits(hidden_states)}


@register
class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """Causal language model: ``logits`` [B, T, V]; ``labels`` int [B, T], usually the input_ids.

    The loss shifts the labels, so that each position predicts the next token.
    """

    head = "causal-lm"

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        return losses.cross_entropy(*self._align(out["logits"], inputs["labels"], sample_weight))

    def _align(
        self, logits: tf.Tensor, labels: tf.Tensor, sample_weight: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor | None]:
        if sample_weight is not None and sample_weight.shape.rank == 2:
            sample_weight = sample_weight[:, 1:]
        return logits[:, :-1], labels[:, 1:], sample_weight


@register
class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """Encoder-decoder language model: decoder ``logits`` [B, U, V]; ``labels`` int [B, U], -100 on padding.

    Without decoder_input_ids, the decoder reads the labels shifted to the right.
    """

    head = "seq2seq-lm"
    targets = {"labels": "logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm.epsilon, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.next_logits(hidden_states)}


@register
class ModelForSequenceClassification(Model):
    """Sequence classifier: ``logits`` [B, C]; for ``labels`` see losses.classification_loss."""

    head = "sequence-classification"
    targets = {"labels": "logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        self.classifier = dense(c.num_labels, "classifier", bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        x = self.pooler(hidden_states, last_index=self._last_index(inputs), training=training)
        return {"logits": self.classifier(self.dropout(x, training=training))}

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        return losses.classification_loss(out["logits"], inputs["labels"], self.config.problem_type, sample_weight)


@register
class ModelForImageClassification(ModelForSequenceClassification):
    """Image classifier: ``logits`` [B, C]; for ``labels`` see losses.classification_loss."""

    head = "image-classification"


@register
class ModelForTokenClassification(Model):
    """Token classifier: ``logits`` [B, T, C]; ``labels`` int [B, T], -100 on ignored tokens."""

    head = "token-classification"
    targets = {"labels": "logits"}

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
    targets = {"start_positions": "start_logits", "end_positions": "end_logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        self.dropout = Dropout(self.config.qa_dropout, name="dropout", **options)
        self.qa_outputs = dense(2, "qa_outputs", **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        logits = self.qa_outputs(self.dropout(hidden_states, training=training))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        spans = inputs["start_positions"], inputs["end_positions"]
        return losses.span_loss(out["start_logits"], out["end_logits"], *spans, sample_weight)


@register
class ModelForMultipleChoice(Model):
    """Multiple choice among C texts: inputs [B, C, T], ``logits`` [B, C], ``labels`` int [B]."""

    head = "multiple-choice"
    targets = {"labels": "logits"}

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
        x = self.pooler(hidden_states, training=training)
        logits = self.classifier(self.dropout(x, training=training))
        return {"logits": tf.reshape(logits, tf.shape(inputs["input_ids"])[:2])}


@register
class ModelForNextSentencePrediction(Model):
    """Next sentence prediction: ``logits`` [B, 2]; ``labels`` int [B], 0 if the second sentence follows the first."""

    head = "next-sentence-prediction"
    targets = {"labels": "logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        self.next_sentence = dense(2, "next_sentence", **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.next_sentence(self.pooler(hidden_states, training=training))}


@register
class ModelForPreTraining(ModelForMaskedLM):
    """Masked language model with a sentence pair head (BERT, ALBERT).

    Its outputs are ``prediction_logits`` [B, T, V] and ``seq_relationship_logits`` or ``sop_logits`` [B, 2];
    its labels ``labels`` int [B, T] and ``next_sentence_label`` or ``sentence_order_label`` int [B].

    Attributes:
        names: Output and label of each ``config.sentence_head``.
    """

    head = "pretraining"
    names = {
        "next_sentence": ("seq_relationship_logits", "next_sentence_label"),
        "sentence_order": ("sop_logits", "sentence_order_label"),
    }

    @property
    def targets(self) -> dict[str, str]:
        """Label name to output name, for both labels."""
        logits, label = self.names[self.config.sentence_head]
        return {"labels": "prediction_logits", label: logits}

    def _build_head(self, options: dict[str, Any]) -> None:
        super()._build_head(options)
        c = self.config
        outputs = c.num_labels if c.sentence_head == "sentence_order" else 2
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        setattr(self, c.sentence_head, dense(outputs, c.sentence_head, **options))

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        c = self.config
        logits, _ = self.names[c.sentence_head]
        x = self.pooler(hidden_states, training=training)
        if c.sentence_head == "sentence_order":
            x = self.dropout(x, training=training)
        return {"prediction_logits": self._logits(hidden_states), logits: getattr(self, c.sentence_head)(x)}

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        logits, label = self.names[self.config.sentence_head]
        masked = losses.cross_entropy(out["prediction_logits"], inputs["labels"], sample_weight)
        return masked + losses.cross_entropy(out[logits], inputs[label], sample_weight)


@register
class ModelForReplacedTokenDetection(Model):
    """ELECTRA's discriminator: ``logits`` [B, T], positive for replaced tokens; ``labels`` [B, T], 1 for replaced."""

    head = "replaced-token-detection"
    targets = {"labels": "logits"}

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        return {"logits": self.discriminator(hidden_states)}

    def _loss(
        self, out: Mapping[str, Any], inputs: Mapping[str, Any], sample_weight: tf.Tensor | None = None
    ) -> tf.Tensor:
        mask = inputs.get("attention_mask")
        mask = tf.ones_like(inputs["input_ids"]) if mask is None else mask
        return losses.binary_cross_entropy(out["logits"], inputs["labels"], mask, sample_weight)


HEADS: dict[str, type[Model]] = {
    cls.head: cls
    for cls in (
        Model, ModelForMaskedLM, ModelForCausalLM, ModelForSeq2SeqLM, ModelForSequenceClassification,
        ModelForImageClassification, ModelForTokenClassification, ModelForQuestionAnswering, ModelForMultipleChoice,
        ModelForNextSentencePrediction, ModelForPreTraining, ModelForReplacedTokenDetection,
    )
}  # fmt: skip
"""Model class by head name; see duonlp.architectures.HEADS."""
