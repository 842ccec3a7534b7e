"""One class a head. Every family runs through these; what differs between families is in the configuration."""

from collections.abc import Mapping

import keras
import numpy as np
import tensorflow as tf

from duonlp.checkpoints.pretrained import default_generation_config, fresh_plan
from duonlp.config import TransformerConfig
from duonlp.inputs import DECODER_INPUTS, TOKEN_INPUTS, check_inputs
from duonlp.parameters import pooling_of
from tfnlp import losses
from tfnlp.embeddings import Embeddings
from tfnlp.encoder_decoder import EncoderDecoder
from tfnlp.generation.decoder import Decoder, Seq2SeqDecoder
from tfnlp.head_layers import Discriminator, LMHead, Pooler
from tfnlp.layers import Dropout, dense
from tfnlp.pretrained import Pretrained, dtype_policy, fill
from tfnlp.trainer_mixin import Fit
from tfnlp.transformer import Stack, attention_bias

register = keras.saving.register_keras_serializable(package="tfnlp")


@register
class Model(Pretrained, EncoderDecoder, Fit, keras.Model):
    """Embeddings and layers: the base model. Its output has ``last_hidden_state`` [B, T, D], and ``pooler_output``
    [B, D] where the family has a pooler. An encoder-decoder's is its decoder's, and it has ``encoder_last_hidden_state``.

    Args:
        config: what to build.
        dtype: what is computed in; norms, softmax and losses stay in float32.
        param_dtype: what the parameters are stored as.
        seed: for the parameters; None leaves them at zero, to be filled.
    """

    head = "base"
    targets: dict[str, str] = {}
    """What the head learns from, each with the output that is held against it."""

    def __init__(self, config: TransformerConfig, *, dtype="float32", param_dtype="float32", seed=0, **options):
        # autocast: False everywhere, or Keras would round the float32 masks that attention adds to its scores
        super().__init__(dtype=dtype_policy(dtype, param_dtype), autocast=False, **options)
        self.config = config
        self.generation_config = default_generation_config(config)
        options = {"dtype": self.dtype_policy}
        self.embeddings = Embeddings(config.embedding, config.hidden_size, config.norm, **options)
        setattr(self, config.stack, Stack(config, name=config.stack, **options))
        if config.decoder is not None:
            own, words = config.as_decoder(), not config.decoder.shares_words
            self.decoder_embeddings = Embeddings(
                own.embedding, own.hidden_size, own.norm, words=words, name="decoder_embeddings", **options
            )
            self.decoder = Stack(own, name="decoder", **options)
        pooling = pooling_of(config, self.head)
        if pooling is not None:
            self.pooler = Pooler(pooling, config.hidden_size, **options)
        self._build_head(options)
        self.build()
        if seed is not None:
            fill(self, fresh_plan(config, self.head, seed))

    def build(self, input_shape=None):
        for layer in self.layers:
            # Only the layers of a head read shapes, and they read the width alone.
            layer.build((None, self.config.hidden_size))

    def _build_head(self, options):
        """Make the layers of the head."""

    def _head(self, hidden_states, inputs, training):
        """The head's outputs for the last hidden states [B, T, D]."""
        out = {"last_hidden_state": hidden_states}
        if self.config.pooler is not None:
            out["pooler_output"] = self.pooler(hidden_states, training=training)
        return out

    def _loss(self, out, inputs, sample_weight=None):
        """The head's loss over the labels in ``inputs``."""
        ((labels, output),) = self.targets.items()
        return losses.cross_entropy(out[output], inputs[labels], sample_weight)

    def __call__(
        self, input_ids=None, attention_mask=None, token_type_ids=None, position_ids=None, *,
        output_hidden_states=False, output_attentions=False, decoder_input_ids=None, decoder_attention_mask=None,
        decoder_position_ids=None, cache=None, cache_index=None, training=None, **labels,
    ):  # fmt: skip
        """Run the model.

        Args:
            input_ids: int [B, T]; or a dict of all inputs, as ``fit`` feeds it.
            attention_mask: [B, T], 1 on real tokens and 0 on padding; all real when None. With a cache: [B, S].
                Or [B, T, T], 1 where a query may look (documents packed into one row), but for sequence heads.
            token_type_ids: int [B, T], or None for zeros.
            position_ids: int [B, T], or None to derive them as the family does.
            decoder_input_ids, decoder_attention_mask, decoder_position_ids: the same of an encoder-decoder's decoder, [B, U]
                each. Without ids it reads the labels moved one to the right (duonlp.seq2seq.shift_right), or the source so.
            output_hidden_states, output_attentions: add ``hidden_states``, ``attentions`` (tuples) to the output; of an
                encoder-decoder ``encoder_...``, ``decoder_...`` and ``cross_attentions``.
            cache, cache_index: keys and values of earlier positions (transformer.init_cache), and how many there are.
            training: whether dropout drops.
            labels: what the head learns from (``labels``, ``start_positions``, ...): adds ``loss`` to the output.

        Returns:
            dict of tensors.

        Raises:
            InputError: ids beyond the vocabulary, sequences longer than the positions, shapes that do not fit.
        """
        more = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "decoder_position_ids": decoder_position_ids,
            **labels,
        }
        inputs = dict(input_ids) if isinstance(input_ids, Mapping) else {"input_ids": input_ids}
        inputs |= {name: value for name, value in more.items() if value is not None}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_inputs(self.config, self.head, inputs, cached=cache is not None)
        inputs = {name: _tensor(name, value) for name, value in inputs.items()}
        return super().__call__(
            inputs, output_hidden_states=output_hidden_states, output_attentions=output_attentions, cache=cache,
            cache_index=cache_index, training=training,
        )  # fmt: skip

    def call(
        self, inputs, output_hidden_states=False, output_attentions=False, cache=None, cache_index=None, training=None
    ):
        """What __call__ does, once the inputs are a dict of tensors."""
        hidden_states, more = self._body(inputs, output_hidden_states, output_attentions, cache, cache_index, training)
        out = self._head(hidden_states, inputs, training)
        if self.targets and all(name in inputs for name in self.targets):
            out["loss"] = self._loss(out, inputs)
        return out | more

    def _body(self, inputs, output_hidden_states, output_attentions, cache, cache_index, training):
        """The last hidden states, and whatever else of the body was asked for."""
        if self.config.decoder is not None:
            return self._encode_and_decode(inputs, output_hidden_states, output_attentions, training)
        input_ids, position_ids = inputs["input_ids"], inputs.get("position_ids")
        if position_ids is None:
            position_ids = self._default_positions(input_ids, 0 if cache_index is None else cache_index)
        x = self.embeddings(input_ids, inputs.get("token_type_ids"), position_ids, training=training)
        length = tf.shape(input_ids)[1]
        key_length = length if cache is None else tf.shape(cache["step_0"]["value"])[2]
        first_query = 0 if cache is None else cache_index
        bias = attention_bias(inputs.get("attention_mask"), length, key_length, self.config.causal, first_query)
        stack = getattr(self, self.config.stack)
        x, states, attentions, cache = stack(x, bias, cache=cache, cache_index=cache_index, training=training)
        more = {"hidden_states": tuple(states)} if output_hidden_states else {}
        more |= {"attentions": tuple(attentions)} if output_attentions else {}
        return x, more | ({} if cache is None else {"cache": cache})

    def _default_positions(self, input_ids, past, embedding=None):
        """What duonlp.positions.position_ids gives, for a caller who passes none: [B, T], or [1, T] if rows are alike."""
        e = self.config.embedding if embedding is None else embedding
        if e.positions_skip_padding:
            real = tf.cast(tf.not_equal(input_ids, e.position_offset - 1), tf.int32)
            return (tf.cumsum(real, axis=1) + past) * real + e.position_offset - 1
        return tf.expand_dims(e.position_offset + past + tf.range(tf.shape(input_ids)[1]), 0)

    def _last_index(self, input_ids, attention_mask):
        """[B]: the last token that is not padding, told by its id, or by the mask where it has none; or the last eos."""
        columns = tf.range(tf.shape(input_ids)[1])
        if self.config.classification.token == "last_eos":
            real = tf.equal(input_ids, self.config.eos_token_id)
        elif self.config.pad_token_id is not None:
            real = tf.not_equal(input_ids, self.config.pad_token_id)
        else:
            real = tf.ones_like(input_ids, tf.bool) if attention_mask is None else tf.not_equal(attention_mask, 0)
        return tf.argmax(columns * tf.cast(real, tf.int32), axis=-1, output_type=tf.int32)


def _tensor(name, value):
    """A tensor from whatever has numbers; symbolic inputs stay as they are."""
    if tf.is_tensor(value) or isinstance(value, keras.KerasTensor):
        return value
    value = np.asarray(value)
    if name in (*TOKEN_INPUTS, *DECODER_INPUTS) and value.dtype.kind in "iu":
        value = value.astype(np.int32, copy=False)
    return tf.convert_to_tensor(value)


@register
class ModelForMaskedLM(Model):
    """``logits`` [B, T, V]; ``labels`` int [B, T], -100 where nothing is masked."""

    head = "masked-lm"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm.epsilon, **options)

    def _logits(self, hidden_states):
        return self.lm_head(hidden_states, word_embeddings=self.embeddings.word_embeddings)

    def _head(self, hidden_states, inputs, training):
        return {"logits": self._logits(hidden_states)}


@register
class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """``logits`` [B, T, V]; ``labels`` int [B, T], usually the input_ids: they are shifted inside."""

    head = "causal-lm"

    def _loss(self, out, inputs, sample_weight=None):
        return losses.cross_entropy(*self._align(out["logits"], inputs["labels"], sample_weight))

    def _align(self, logits, labels, sample_weight):
        per_token = sample_weight is not None and sample_weight.shape.rank == 2
        return logits[:, :-1], labels[:, 1:], sample_weight[:, 1:] if per_token else sample_weight


@register
class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """``logits`` [B, U, V] of the decoder; ``labels`` int [B, U], the targets, -100 where there is none: they are moved to
    the right inside, for the decoder to read."""

    head = "seq2seq-lm"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm.epsilon, **options)

    def _head(self, hidden_states, inputs, training):
        return {"logits": self.next_logits(hidden_states)}


@register
class ModelForSequenceClassification(Model):
    """``logits`` [B, C]; ``labels`` as ``problem_type`` wants them (losses.classification_loss)."""

    head = "sequence-classification"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        c = self.config
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        self.classifier = dense(c.num_labels, "classifier", bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states, inputs, training):
        last = self._last_index(inputs["input_ids"], inputs.get("attention_mask"))
        x = self.pooler(hidden_states, last_index=last, training=training)
        return {"logits": self.classifier(self.dropout(x, training=training))}

    def _loss(self, out, inputs, sample_weight=None):
        return losses.classification_loss(out["logits"], inputs["labels"], self.config.problem_type, sample_weight)


@register
class ModelForTokenClassification(Model):
    """``logits`` [B, T, C]; ``labels`` int [B, T], -100 on tokens that do not count."""

    head = "token-classification"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        self.dropout = Dropout(self.config.token_dropout, name="dropout", **options)
        self.classifier = dense(self.config.num_labels, "classifier", **options)

    def _head(self, hidden_states, inputs, training):
        return {"logits": self.classifier(self.dropout(hidden_states, training=training))}


@register
class ModelForQuestionAnswering(Model):
    """``start_logits``, ``end_logits`` [B, T]; ``start_positions``, ``end_positions`` int [B]."""

    head = "question-answering"
    targets = {"start_positions": "start_logits", "end_positions": "end_logits"}

    def _build_head(self, options):
        self.dropout = Dropout(self.config.qa_dropout, name="dropout", **options)
        self.qa_outputs = dense(2, "qa_outputs", **options)

    def _head(self, hidden_states, inputs, training):
        logits = self.qa_outputs(self.dropout(hidden_states, training=training))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}

    def _loss(self, out, inputs, sample_weight=None):
        spans = inputs["start_positions"], inputs["end_positions"]
        return losses.span_loss(out["start_logits"], out["end_logits"], *spans, sample_weight)


@register
class ModelForMultipleChoice(Model):
    """Inputs [B, C, T], C choices each; ``logits`` [B, C]; ``labels`` int [B]."""

    head = "multiple-choice"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        self.dropout = Dropout(self.config.multiple_choice.dropout, name="dropout", **options)
        self.classifier = dense(1, "classifier", **options)

    def _body(self, inputs, output_hidden_states, output_attentions, cache, cache_index, training):
        length = tf.shape(inputs["input_ids"])[-1]
        flat = {name: tf.reshape(inputs[name], [-1, length]) for name in TOKEN_INPUTS if inputs.get(name) is not None}
        return super()._body(flat, output_hidden_states, output_attentions, cache, cache_index, training)

    def _head(self, hidden_states, inputs, training):
        x = self.pooler(hidden_states, training=training)
        logits = self.classifier(self.dropout(x, training=training))
        return {"logits": tf.reshape(logits, tf.shape(inputs["input_ids"])[:2])}


@register
class ModelForNextSentencePrediction(Model):
    """``logits`` [B, 2]; ``labels`` int [B], 0 where the second sentence follows the first."""

    head = "next-sentence-prediction"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        self.next_sentence = dense(2, "next_sentence", **options)

    def _head(self, hidden_states, inputs, training):
        return {"logits": self.next_sentence(self.pooler(hidden_states, training=training))}


@register
class ModelForPreTraining(ModelForMaskedLM):
    """Masked language model and sentence pair head together (BERT, ALBERT).

    ``prediction_logits`` [B, T, V], and ``seq_relationship_logits`` or ``sop_logits`` [B, 2]; ``labels`` int [B, T] with
    ``next_sentence_label`` or ``sentence_order_label`` int [B].
    """

    head = "pretraining"
    names = {
        "next_sentence": ("seq_relationship_logits", "next_sentence_label"),
        "sentence_order": ("sop_logits", "sentence_order_label"),
    }

    @property
    def targets(self):
        """Both labels, each with its output."""
        logits, label = self.names[self.config.sentence_head]
        return {"labels": "prediction_logits", label: logits}

    def _build_head(self, options):
        super()._build_head(options)
        c = self.config
        outputs = c.num_labels if c.sentence_head == "sentence_order" else 2
        self.dropout = Dropout(c.classification.dropout, name="dropout", **options)
        setattr(self, c.sentence_head, dense(outputs, c.sentence_head, **options))

    def _head(self, hidden_states, inputs, training):
        c = self.config
        logits, _ = self.names[c.sentence_head]
        x = self.pooler(hidden_states, training=training)
        if c.sentence_head == "sentence_order":
            x = self.dropout(x, training=training)
        return {"prediction_logits": self._logits(hidden_states), logits: getattr(self, c.sentence_head)(x)}

    def _loss(self, out, inputs, sample_weight=None):
        logits, label = self.names[self.config.sentence_head]
        masked = losses.cross_entropy(out["prediction_logits"], inputs["labels"], sample_weight)
        return masked + losses.cross_entropy(out[logits], inputs[label], sample_weight)


@register
class ModelForReplacedTokenDetection(Model):
    """ELECTRA's discriminator: ``logits`` [B, T], above 0 where a token was replaced; ``labels`` 0 or 1 [B, T]."""

    head = "replaced-token-detection"
    targets = {"labels": "logits"}

    def _build_head(self, options):
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states, inputs, training):
        return {"logits": self.discriminator(hidden_states)}

    def _loss(self, out, inputs, sample_weight=None):
        mask = inputs.get("attention_mask")
        mask = tf.ones_like(inputs["input_ids"]) if mask is None else mask
        return losses.binary_cross_entropy(out["logits"], inputs["labels"], mask, sample_weight)


HEADS = {
    cls.head: cls
    for cls in (
        Model, ModelForMaskedLM, ModelForCausalLM, ModelForSeq2SeqLM, ModelForSequenceClassification,
        ModelForTokenClassification, ModelForQuestionAnswering, ModelForMultipleChoice, ModelForNextSentencePrediction,
        ModelForPreTraining, ModelForReplacedTokenDetection,
    )
}  # fmt: skip
"""Head name (duonlp.architectures.HEADS) to class."""
