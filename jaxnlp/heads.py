"""One class a head. Every family runs through these; what differs between families is in the configuration."""

import jax.numpy as jnp
from flax import nnx

from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.inputs import check_inputs
from duonlp.parameters import pooling_of
from jaxnlp import losses
from jaxnlp.embeddings import Embeddings
from jaxnlp.encoder_decoder import EncoderDecoder
from jaxnlp.generation.decoder import Decoder, Seq2SeqDecoder
from jaxnlp.head_layers import Discriminator, LMHead, Pooler
from jaxnlp.layers import Linear, dropout
from jaxnlp.pretrained import Pretrained
from jaxnlp.transformer import Stack, attention_bias


class Model(Pretrained, EncoderDecoder, nnx.Module):
    """Embeddings and layers: the base model. Its output has ``last_hidden_state`` [B, T, D], and ``pooler_output``
    [B, D] where the family has a pooler. An encoder-decoder's is its decoder's, and it has ``encoder_last_hidden_state``.

    Args:
        config: what to build.
        dtype: what is computed in; norms, softmax and losses stay in float32.
        param_dtype: what the parameters are stored as.
    """

    head = "base"

    def __init__(self, config: TransformerConfig, *, dtype=jnp.float32, param_dtype=jnp.float32, rngs):
        self.config = config
        self.generation_config = default_generation_config(config)
        self.dtype, self.param_dtype = jnp.dtype(dtype), jnp.dtype(param_dtype)
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype, "rngs": rngs}
        self.embeddings = Embeddings(config.embedding, config.hidden_size, config.norm, **options)
        setattr(self, config.stack, Stack(config, **options))
        if config.decoder is not None:
            own, words = config.as_decoder(), not config.decoder.shares_words
            self.decoder_embeddings = Embeddings(own.embedding, own.hidden_size, own.norm, words=words, **options)
            self.decoder = Stack(own, **options)
        pooling = pooling_of(config, self.head)
        if pooling is not None:
            self.pooler = Pooler(pooling, config.hidden_size, **options)
        self._build_head(options)

    def _build_head(self, options):
        """Make the layers of the head."""

    def _head(self, hidden_states, inputs, rngs):
        """The head's outputs for the last hidden states [B, T, D], with ``loss`` when there are labels."""
        out = {"last_hidden_state": hidden_states}
        if self.config.pooler is not None:
            out["pooler_output"] = self.pooler(hidden_states, rngs=rngs)
        return out

    def __call__(
        self, input_ids, attention_mask=None, token_type_ids=None, position_ids=None, *, output_hidden_states=False,
        output_attentions=False, decoder_input_ids=None, decoder_attention_mask=None, decoder_position_ids=None, cache=None,
        cache_index=None, rngs=None, **labels,
    ):  # fmt: skip
        """Run the model.

        Args:
            input_ids: int [B, T].
            attention_mask: [B, T], 1 on real tokens and 0 on padding; all real when None. With a cache: [B, S].
                Or [B, T, T], 1 where a query may look (documents packed into one row), but for sequence heads.
            token_type_ids: int [B, T], or None for zeros.
            position_ids: int [B, T], or None to derive them as the family does.
            decoder_input_ids, decoder_attention_mask, decoder_position_ids: the same of an encoder-decoder's decoder, [B, U]
                each. Without ids it reads the labels moved one to the right (duonlp.seq2seq.shift_right), or the source so.
            output_hidden_states, output_attentions: add ``hidden_states``, ``attentions`` (tuples) to the output; of an
                encoder-decoder ``encoder_...``, ``decoder_...`` and ``cross_attentions``.
            cache, cache_index: keys and values of earlier positions (transformer.init_cache), and how many there are.
            rngs: nnx.Rngs with a ``dropout`` stream to train with dropout; None for none.
            labels: what the head learns from (``labels``, ``start_positions``, ...): adds ``loss`` to the output.

        Returns:
            dict of arrays.

        Raises:
            InputError: ids beyond the vocabulary, sequences longer than the positions, shapes that do not fit.
        """
        inputs = {
            "input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids, **labels,
        }  # fmt: skip
        check_inputs(self.config, self.head, inputs, cached=cache is not None)
        inputs = {name: None if value is None else jnp.asarray(value) for name, value in inputs.items()}
        hidden_states, more = self._body(inputs, output_hidden_states, output_attentions, cache, cache_index, rngs)
        return self._head(hidden_states, inputs, rngs) | more

    def _body(self, inputs, output_hidden_states, output_attentions, cache, cache_index, rngs):
        """The last hidden states, and whatever else of the body was asked for."""
        if self.config.decoder is not None:
            return self._encode_and_decode(inputs, output_hidden_states, output_attentions, rngs)
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
        position_ids = inputs["position_ids"]
        if position_ids is None:
            position_ids = self._default_positions(input_ids, 0 if cache_index is None else cache_index)
        x = self.embeddings(input_ids, inputs["token_type_ids"], position_ids, rngs)
        length = input_ids.shape[1]
        key_length = length if cache is None else cache["step_0"]["value"].shape[2]
        first_query = 0 if cache is None else cache_index
        bias = attention_bias(attention_mask, length, key_length, self.config.causal, first_query)
        stack = getattr(self, self.config.stack)
        x, states, attentions, cache = stack(x, bias, cache, cache_index, rngs)
        more = {"hidden_states": tuple(states)} if output_hidden_states else {}
        more |= {"attentions": tuple(attentions)} if output_attentions else {}
        return x, more | ({} if cache is None else {"cache": cache})

    def _default_positions(self, input_ids, past, embedding=None):
        """What duonlp.positions.position_ids gives, for a caller who passes none."""
        e = self.config.embedding if embedding is None else embedding
        if e.positions_skip_padding:
            real = (input_ids != e.position_offset - 1).astype(jnp.int32)
            return (jnp.cumsum(real, axis=1) + past) * real + e.position_offset - 1
        return jnp.broadcast_to(e.position_offset + past + jnp.arange(input_ids.shape[1]), input_ids.shape)

    def _last_index(self, input_ids, attention_mask):
        """[B]: the last token that is not padding, told by its id, or by the mask where it has none; or the last eos."""
        columns = jnp.arange(input_ids.shape[1])
        if self.config.classification.token == "last_eos":
            return jnp.argmax(columns * (input_ids == self.config.eos_token_id), axis=-1)
        if self.config.pad_token_id is not None:
            return jnp.argmax(columns * (input_ids != self.config.pad_token_id), axis=-1)
        mask = jnp.ones_like(input_ids) if attention_mask is None else attention_mask != 0
        return jnp.argmax(columns * mask, axis=-1)

    def train(self, **attributes):
        """Refused: it would change nothing, since dropout is on exactly when a call is given rngs."""
        raise InputError("dropout is on when a call is given random numbers: model(..., rngs=nnx.Rngs(dropout=key))")


class ModelForMaskedLM(Model):
    """``logits`` [B, T, V]; ``labels`` int [B, T], -100 where nothing is masked."""

    head = "masked-lm"

    def _build_head(self, options):
        c = self.config
        sizes = c.hidden_size, c.embedding.size, c.embedding.vocab_size
        self.lm_head = LMHead(c.lm_head, *sizes, c.norm.epsilon, **options)

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.lm_head(hidden_states, self.embeddings.word_embeddings)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForCausalLM(Decoder, ModelForMaskedLM):
    """``logits`` [B, T, V]; ``labels`` int [B, T], usually the input_ids: they are shifted inside."""

    head = "causal-lm"

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.lm_head(hidden_states, self.embeddings.word_embeddings)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"][:, :-1], inputs["labels"][:, 1:])
        return out


class ModelForSeq2SeqLM(Seq2SeqDecoder, Model):
    """``logits`` [B, U, V] of the decoder; ``labels`` int [B, U], the targets, -100 where there is none: they are moved to
    the right inside, for the decoder to read."""

    head = "seq2seq-lm"

    def _build_head(self, options):
        c, words = self.config, self.config.as_decoder().embedding
        self.lm_head = LMHead(c.lm_head, c.hidden_size, words.size, words.vocab_size, c.norm.epsilon, **options)

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.next_logits(hidden_states)}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForSequenceClassification(Model):
    """``logits`` [B, C]; ``labels`` as ``problem_type`` wants them (losses.classification_loss)."""

    head = "sequence-classification"

    def _build_head(self, options):
        c = self.config
        self.classifier = Linear(c.hidden_size, c.num_labels, use_bias=c.classification.classifier_bias, **options)

    def _head(self, hidden_states, inputs, rngs):
        x = self.pooler(hidden_states, self._last_index(inputs["input_ids"], inputs["attention_mask"]), rngs)
        out = {"logits": self.classifier(dropout(x, self.config.classification.dropout, rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.classification_loss(out["logits"], inputs["labels"], self.config.problem_type)
        return out


class ModelForTokenClassification(Model):
    """``logits`` [B, T, C]; ``labels`` int [B, T], -100 on tokens that do not count."""

    head = "token-classification"

    def _build_head(self, options):
        self.classifier = Linear(self.config.hidden_size, self.config.num_labels, **options)

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.classifier(dropout(hidden_states, self.config.token_dropout, rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForQuestionAnswering(Model):
    """``start_logits``, ``end_logits`` [B, T]; ``start_positions``, ``end_positions`` int [B]."""

    head = "question-answering"

    def _build_head(self, options):
        self.qa_outputs = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states, inputs, rngs):
        logits = self.qa_outputs(dropout(hidden_states, self.config.qa_dropout, rngs))
        out = {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}
        spans = inputs.get("start_positions"), inputs.get("end_positions")
        if spans[0] is not None and spans[1] is not None:
            out["loss"] = losses.span_loss(out["start_logits"], out["end_logits"], *spans)
        return out


class ModelForMultipleChoice(Model):
    """Inputs [B, C, T], C choices each; ``logits`` [B, C]; ``labels`` int [B]."""

    head = "multiple-choice"

    def _build_head(self, options):
        self.classifier = Linear(self.config.hidden_size, 1, **options)

    def _body(self, inputs, output_hidden_states, output_attentions, cache, cache_index, rngs):
        per_token = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
        flat = {n: None if inputs[n] is None else inputs[n].reshape(-1, inputs[n].shape[-1]) for n in per_token}
        return super()._body(flat, output_hidden_states, output_attentions, cache, cache_index, rngs)

    def _head(self, hidden_states, inputs, rngs):
        x = self.pooler(hidden_states, rngs=rngs)
        logits = self.classifier(dropout(x, self.config.multiple_choice.dropout, rngs))
        out = {"logits": logits.reshape(inputs["input_ids"].shape[:2])}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


class ModelForNextSentencePrediction(Model):
    """``logits`` [B, 2]; ``labels`` int [B], 0 where the second sentence follows the first."""

    head = "next-sentence-prediction"

    def _build_head(self, options):
        self.next_sentence = Linear(self.config.hidden_size, 2, **options)

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.next_sentence(self.pooler(hidden_states, rngs=rngs))}
        if inputs.get("labels") is not None:
            out["loss"] = losses.cross_entropy(out["logits"], inputs["labels"])
        return out


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

    def _build_head(self, options):
        super()._build_head(options)
        c = self.config
        outputs = c.num_labels if c.sentence_head == "sentence_order" else 2
        setattr(self, c.sentence_head, Linear(c.hidden_size, outputs, **options))

    def _head(self, hidden_states, inputs, rngs):
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
    """ELECTRA's discriminator: ``logits`` [B, T], above 0 where a token was replaced; ``labels`` 0 or 1 [B, T]."""

    head = "replaced-token-detection"

    def _build_head(self, options):
        c = self.config
        self.discriminator = Discriminator(c.hidden_size, c.feed_forward.activation, **options)

    def _head(self, hidden_states, inputs, rngs):
        out = {"logits": self.discriminator(hidden_states)}
        if inputs.get("labels") is not None:
            mask = inputs["attention_mask"]
            mask = jnp.ones_like(inputs["input_ids"]) if mask is None else mask
            out["loss"] = losses.binary_cross_entropy(out["logits"], inputs["labels"], weights=mask)
        return out


HEADS = {
    cls.head: cls
    for cls in (
        Model, ModelForMaskedLM, ModelForCausalLM, ModelForSeq2SeqLM, ModelForSequenceClassification,
        ModelForTokenClassification, ModelForQuestionAnswering, ModelForMultipleChoice, ModelForNextSentencePrediction,
        ModelForPreTraining, ModelForReplacedTokenDetection,
    )
}  # fmt: skip
"""Head name (duonlp.architectures.HEADS) to class."""
