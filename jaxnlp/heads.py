"""Model classes, one per head, for all families: the configuration holds everything in which families differ."""

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.checkpoints.pretrained import own_generation_config
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.inputs import check_inputs
from duonlp.parameters import pooling_of
from duonlp.typing import Array
from jaxnlp import losses
from jaxnlp.embeddings import Embeddings, default_position_ids
from jaxnlp.encoder_decoder import EncoderDecoder
from jaxnlp.generation.decoder import Decoder, Seq2SeqDecoder
from jaxnlp.head_layers import Discriminator, LMHead, Pooler
from jaxnlp.layers import Linear, dropout
from jaxnlp.pretrained import Pretrained
from jaxnlp.transformer import Cache, Stack, attention_bias


class Model(Pretrained, EncoderDecoder, nnx.Module):
    """Base model: embeddings and transformer layers.

    Its outputs are ``last_hidden_state`` [B, T, D], and ``pooler_output`` [B, D] if the family has a pooler. For an
    encoder-decoder these are the decoder's, and ``encoder_last_hidden_state`` [B, S, D] comes with them.

    Args:
        config: Architecture and sizes of the model.
        dtype: Compute dtype; norms, softmax and losses stay in float32.
        param_dtype: Storage dtype of the parameters.
        rngs: Random streams that initialize the parameters.
    """

    head = "base"

    def __init__(
        self, config: TransformerConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        self.generation_config = own_generation_config(config)
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        self.embeddings = Embeddings(config.embedding, config.hidden_size, config.norm, **options)
        setattr(self, config.stack, Stack(config, **options))
        if config.decoder is not None:
            decoder, has_words = config.as_decoder(), not config.decoder.shares_words
            self.decoder_embeddings = Embeddings(
                decoder.embedding, decoder.hidden_size, decoder.norm, has_word_embeddings=has_words, **options
            )
            self.decoder = Stack(decoder, **options)
        pooling = pooling_of(config, self.head)
        if pooling is not None:
            self.pooler = Pooler(pooling, config.hidden_size, **options)
        self._build_head(options)

    def _build_head(self, options: dict[str, Any]) -> None:
        """Create the layers of the head."""

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        """Return the head's outputs for the last hidden states [B, T, D], with ``loss`` if ``inputs`` has labels."""
        out = {"last_hidden_state": hidden_states}
        if self.config.pooler is not None:
            out["pooler_output"] = self.pooler(hidden_states, rngs=rngs)
        return out

    def __call__(
        self, input_ids: Array, attention_mask: Array | None = None, token_type_ids: Array | None = None,
        position_ids: Array | None = None, *, output_hidden_states: bool = False, output_attentions: bool = False,
        decoder_input_ids: Array | None = None, decoder_attention_mask: Array | None = None,
        decoder_position_ids: Array | None = None, cache: Cache | None = None, cache_index: int | Array | None = None,
        rngs: nnx.Rngs | None = None, **labels: Array,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model.

        Args:
            input_ids: int [B, T].
            attention_mask: [B, T], 1 on real tokens and 0 on padding; None if all tokens are real. With a cache: [B, S].
                Token-level heads also take [B, T, T], 1 where a query may attend to a key (packed documents).
            token_type_ids: int [B, T], or None for zeros.
            position_ids: int [B, T], or None for the family's default.
            output_hidden_states: Whether to add ``hidden_states`` to the outputs, a tuple of [B, T, D]; for an
                encoder-decoder ``encoder_hidden_states`` and ``decoder_hidden_states``.
            output_attentions: Whether to add ``attentions``, a tuple of [B, N, T, S]; for an encoder-decoder
                ``encoder_attentions``, ``decoder_attentions`` and ``cross_attentions``.
            decoder_input_ids: int [B, U], input of an encoder-decoder's decoder. By default the labels shifted to the
                right (duonlp.seq2seq.shift_right), or the source for families that do so.
            decoder_attention_mask: [B, U], or None if all tokens are real.
            decoder_position_ids: int [B, U], or None for the family's default.
            cache: Keys and values of earlier positions, see transformer.init_cache.
            cache_index: Number of positions in the cache.
            rngs: Random streams with ``dropout`` for training with dropout; None for no dropout.
            labels: Labels of the head (``labels``, ``start_positions``, ...), which add ``loss`` to the outputs.

        Returns:
            Dict of arrays, and of the cache and tuples of arrays where requested.

        Raises:
            InputError: Ids are outside the vocabulary, a sequence is longer than the positions, or shapes do not match.
        """
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids, **labels,
        }  # fmt: skip
        check_inputs(self.config, self.head, inputs, cached=cache is not None)
        inputs = {name: None if value is None else jnp.asarray(value) for name, value in inputs.items()}
        hidden_states, outputs = self._body(inputs, output_hidden_states, output_attentions, cache, cache_index, rngs)
        return self._head(hidden_states, inputs, rngs) | outputs

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | jax.Array | None, rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Return the last hidden states [B, T, D] and a dict of the requested additional outputs."""
        if self.config.decoder is not None:
            return self._encode_and_decode(inputs, output_hidden_states, output_attentions, rngs)
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        position_ids = inputs["position_ids"]
        if position_ids is None:
            past = 0 if cache_index is None else cache_index
            position_ids = default_position_ids(self.config.embedding, input_ids, past)
        x = self.embeddings(input_ids, inputs["token_type_ids"], position_ids, rngs)
        length = input_ids.shape[1]
        key_length = length if cache is None else cache["step_0"]["value"].shape[2]
        first_query = 0 if cache is None or cache_index is None else cache_index
        bias = attention_bias(attention_mask, length, key_length, self.config.causal, first_query)
        stack = getattr(self, self.config.stack)
        x, states, attentions, cache = stack(x, bias, cache, cache_index, rngs)
        outputs: dict[str, Any] = {"hidden_states": tuple(states)} if output_hidden_states else {}
        outputs |= {"attentions": tuple(attentions)} if output_attentions else {}
        return x, outputs | ({} if cache is None else {"cache": cache})

    def _last_index(self, input_ids: jax.Array, attention_mask: jax.Array | None) -> jax.Array:
        """Return the index int [B] of the token to classify by: the last end-of-text token, or the last real one.

        Padding is recognized by pad_token_id, or by the mask if the model has none.
        """
        columns = jnp.arange(input_ids.shape[1])
        if self.config.classification.token == "last_eos":
            return jnp.argmax(columns * (input_ids == self.config.eos_token_id), axis=-1)
        if self.config.pad_token_id is not None:
            return jnp.argmax(columns * (input_ids != self.config.pad_token_id), axis=-1)
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask != 0
        return jnp.argmax(columns * mask, axis=-1)

    def train(self, **attributes: Any) -> NoReturn:
        """Raise InputError: this would have no effect, since passing rngs to a call is what turns dropout on."""
        raise InputError("train() has no effect here; turn dropout on with model(..., rngs=nnx.Rngs(dropout=key))")


class ModelForMaskedLM(Model):
    """Masked language model: ``logits`` [B, T, V] from ``labels`` int [B, T], -100 at positions that are not masked."""

    head = "masked-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm.epsilon, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.lm_head(hidden_states, self.embeddings.word_embeddings)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """Causal language model: ``logits`` [B, T, V] from ``labels`` int [B, T], usually the input_ids.

    The loss shifts the labels, so that each position predicts the next token.
    """

    head = "causal-lm"

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.lm_head(hidden_states, self.embeddings.word_embeddings)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"][:, :-1], inputs["labels"][:, 1:])
        return out


class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """Encoder-decoder language model: decoder ``logits`` [B, U, V] from ``labels`` int [B, U], -100 on padding.

    Without decoder_input_ids, the decoder reads the labels shifted to the right.
    """

    head = "seq2seq-lm"

    def _build_head(self, options: dict[str, Any]) -> None:
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm.epsilon, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.next_logits(hidden_states)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForSequenceClassification(Model):
    """Sequence classifier: ``logits`` [B, C]; ``labels`` depend on ``problem_type``, see losses.classification_loss."""

    head = "sequence-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.classifier = Linear(c.hidden_size, c.num_labels, use_bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        x = self.pooler(hidden_states, self._last_index(inputs["input_ids"], inputs["attention_mask"]), rngs)
        out = {"logits": self.classifier(dropout(x, self.config.classification.dropout, rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.classification_loss(out["logits"], inputs["labels"], self.config.problem_type)
        return out


class ModelForTokenClassification(Model):
    """Token classifier: ``logits`` [B, T, C]; ``labels`` int [B, T], -100 on ignored tokens."""

    head = "token-classification"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.classifier = Linear(self.config.hidden_size, self.config.num_labels, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.classifier(dropout(hidden_states, self.config.token_dropout, rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForQuestionAnswering(Model):
    """Extractive question answering: ``start_logits``, ``end_logits`` [B, T]; ``start_positions``, ``end_positions`` [B]."""

    head = "question-answering"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.qa_outputs = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        logits = self.qa_outputs(dropout(hidden_states, self.config.qa_dropout, rngs))
        out = {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
        starts, ends = inputs.get("start_positions"), inputs.get("end_positions")
        if starts is not None and ends is not None:
            out["loss"] = losses.span_loss(out["start_logits"], out["end_logits"], starts, ends)
        return out


class ModelForMultipleChoice(Model):
    """Multiple choice among C texts: inputs [B, C, T], ``logits`` [B, C], ``labels`` int [B]."""

    head = "multiple-choice"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.classifier = Linear(self.config.hidden_size, 1, **options)

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | jax.Array | None, rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        per_token = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        flat = {n: None if inputs[n] is None else inputs[n].reshape(-1, inputs[n].shape[-1]) for n in per_token}
        return super()._body(flat, output_hidden_states, output_attentions, cache, cache_index, rngs)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        x = self.pooler(hidden_states, rngs=rngs)
        logits = self.classifier(dropout(x, self.config.multiple_choice.dropout, rngs))
        out = {"logits": logits.reshape(inputs["input_ids"].shape[:2])}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForNextSentencePrediction(Model):
    """Next sentence prediction: ``logits`` [B, 2]; ``labels`` int [B], 0 if the second sentence follows the first."""

    head = "next-sentence-prediction"

    def _build_head(self, options: dict[str, Any]) -> None:
        self.next_sentence = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.next_sentence(self.pooler(hidden_states, rngs=rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForPreTraining(ModelForMaskedLM):
    """Masked language model with a sentence pair head (BERT, ALBERT).

    Its outputs are ``prediction_logits`` [B, T, V] and ``seq_relationship_logits`` or ``sop_logits`` [B, 2]; its labels
    ``labels`` int [B, T] and ``next_sentence_label`` or ``sentence_order_label`` int [B].

    Attributes:
        names: Output and label of each ``config.sentence_head``.
    """

    head = "pretraining"
    names = {
        "next_sentence": ("seq_relationship_logits", "next_sentence_label"),
        "sentence_order": ("sop_logits", "sentence_order_label"),
    }

    def _build_head(self, options: dict[str, Any]) -> None:
        super()._build_head(options)
        c = self.config
        outputs = c.num_labels if c.sentence_head == "sentence_order" else 2
        setattr(self, c.sentence_head, Linear(c.hidden_size, outputs, **options))

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        c = self.config
        logits, label = self.names[c.sentence_head]
        x = self.pooler(hidden_states, rngs=rngs)
        if c.sentence_head == "sentence_order":
            x = dropout(x, c.classification.dropout, rngs)
        predictions = self.lm_head(hidden_states, self.embeddings.word_embeddings)
        out = {"prediction_logits": predictions, logits: getattr(self, c.sentence_head)(x)}
        if inputs.get("labels") is not None and inputs.get(label) is not None:
            masked = losses.cross_entropy(out["prediction_logits"], inputs["labels"])
            out["loss"] = masked + losses.cross_entropy(out[logits], inputs[label])
        return out


class ModelForReplacedTokenDetection(Model):
    """ELECTRA's discriminator: ``logits`` [B, T], positive for replaced tokens; ``labels`` [B, T], 1 for replaced."""

    head = "replaced-token-detection"

    def _build_head(self, options: dict[str, Any]) -> None:
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        out = {"logits": self.discriminator(hidden_states)}
        if inputs.get("labels") is not None:
            mask = inputs["attention_mask"]
            mask = jnp.ones_like(inputs["input_ids"]) if mask is None else mask
            out["loss"] = losses.binary_cross_entropy(out["logits"], inputs["labels"], weights=mask)
        return out


HEADS: dict[str, type[Model]] = {
    cls.head: cls
    for cls in (
        Model, ModelForMaskedLM, ModelForCausalLM, ModelForSeq2SeqLM, ModelForSequenceClassification,
        ModelForTokenClassification, ModelForQuestionAnswering, ModelForMultipleChoice, ModelForNextSentencePrediction,
        ModelForPreTraining, ModelForReplacedTokenDetection,
    )
}  # fmt: skip
"""Model class by head name; see duonlp.architectures.HEADS."""
