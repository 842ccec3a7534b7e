"""The base model, which the classes of heads.py extend with heads."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.checkpoints.pretrained import default_generation_config, fresh_plan
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.strategies.cache import check_cache
from duonlp.heads import counts_labels, standard_batch
from duonlp.inputs import check_inputs, main_input, named_inputs
from duonlp.labels import array_of
from duonlp.parameters import pooling_of
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from tfnlp import ops
from tfnlp.embeddings import Embeddings, default_position_ids
from tfnlp.encoder_decoder import EncoderDecoder
from tfnlp.head_layers import Pooler
from tfnlp.pretrained import Pretrained, dtype_policy, fill
from tfnlp.quantization.layers import replace_layers
from tfnlp.quantization.quantize import quantize_in_place
from tfnlp.steps.saving import register
from tfnlp.trainer_mixin import TrainerMixin
from tfnlp.transformer import Cache, Stack, attention_biases


@register
# pyrefly: ignore[inconsistent-inheritance]  # from_config takes more arguments than Keras' own
class Model(Pretrained, EncoderDecoder, TrainerMixin, keras.Model):
    """Base model: embeddings and transformer layers.

    Its outputs are ``last_hidden_state`` [B, T, D], and ``pooler_output`` [B, D] if the family has a pooler.
    For an encoder-decoder these are the decoder's, and ``encoder_last_hidden_state`` [B, S, D] comes with them.

    Args:
        config: Architecture and sizes of the model.
        dtype: Compute dtype; norms, softmax, pooling and losses stay in float32, and in float16 what LayerConfig says.
        param_dtype: Storage dtype of the parameters.
        seed: Seed of the initial parameters; None leaves them at zero, to be filled.
        options: Arguments of keras.Model, such as ``name``.
    """

    head = "base"

    def __init__(
        self, config: TransformerConfig, *, dtype: str = "float32", param_dtype: str = "float32", seed: int | None = 0,
        **options: Any,
    ):  # fmt: skip
        # autocast is False in all layers: Keras would cast the float32 biases of attention scores to half
        # precision.
        super().__init__(dtype=dtype_policy(dtype, param_dtype), autocast=False, **options)
        self.__dict__.pop("quantize", None)  # Keras' wrapper of the method below, which knows only Keras' own schemes
        self.config = config
        self.generation_config = default_generation_config(config)
        options = {"dtype": self.dtype_policy}
        self.embeddings = Embeddings(config.embedding, config.hidden_size, config.norm, **options)
        setattr(self, config.stack, Stack(config, name=config.stack, **options))
        if config.decoder is not None:
            decoder, has_words = config.as_decoder(), not config.decoder.shares_words
            self.decoder_embeddings = Embeddings(
                decoder.embedding, decoder.hidden_size, decoder.norm, has_word_embeddings=has_words,
                name="decoder_embeddings", **options,
            )  # fmt: skip
            self.decoder = Stack(decoder, name="decoder", **options)
        pooling = pooling_of(config, self.head)
        if pooling is not None:
            self.pooler = Pooler(pooling, config.hidden_size, config.norm, **options)
        self._build_head(options)
        if config.quantization is not None:
            replace_layers(self, config)
        self.build()
        if seed is not None:
            fill(self, fresh_plan(config, self.head, seed))

    def build(self, input_shape: Any = None) -> None:
        for layer in self.layers:
            # Only the layers of heads read the shape, and only its last axis.
            layer.build((None, self.config.hidden_size))

    # pyrefly: ignore[bad-override]  # Keras' schemes have other options
    def quantize(self, mode: str | None = None, batches: Any = None, config: Any = None, **settings: Any) -> None:
        """Quantize the model in place; see :func:`tfnlp.quantize`, which returns a new model and leaves this one as it is.

        Args:
            mode: A scheme, such as "int8".
            batches: Calibration data, for schemes that need it.
            config: Keras' own configuration, which is not supported.
            settings: Fields of QuantizationSettings.

        Raises:
            InputError: See tfnlp.quantize.
        """
        if config is not None:
            raise InputError(
                f"config is a {type(config).__name__}; pass a scheme and fields of QuantizationSettings instead"
            )
        quantize_in_place(self, mode, batches, **settings)

    def _counts_labels(self, batch: Mapping[str, Any]) -> bool:
        return not self._has_own_loss() or counts_labels(self.head, self.config, batch)

    def _build_head(self, options: dict[str, Any]) -> None:
        """Create the layers of the head."""

    def _head(self, hidden_states: tf.Tensor, inputs: dict[str, Any], training: bool | None) -> dict[str, Any]:
        """Return the head's outputs for the last hidden states [B, T, D]."""
        out = {"last_hidden_state": hidden_states}
        if self.config.pooler is not None:
            mask = inputs.get("attention_mask")
            out["pooler_output"] = self.pooler(hidden_states, attention_mask=mask, training=training)
        return out

    def __call__(
        self, input_ids: Array | Mapping[str, Array] | None = None, attention_mask: Array | None = None,
        token_type_ids: Array | None = None, position_ids: Array | None = None, *, output_hidden_states: bool = False,
        output_attentions: bool = False, decoder_input_ids: Array | None = None,
        decoder_attention_mask: Array | None = None, decoder_position_ids: Array | None = None,
        cache: Cache | None = None, cache_index: int | Array | None = None, training: bool | None = None,
        **further: Array,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model.

        Args:
            input_ids: int [B, T]; or the main input of a model that reads no tokens; or a dict of all inputs, as ``fit``
                passes them.
            attention_mask: [B, T], 1 on real tokens and 0 on padding; None if all tokens are real. With a
                cache: [B, S]. All heads except multiple choice, sequence classification and replaced token
                detection also take [B, T, T], 1 where a query may attend to a key (packed documents).
            token_type_ids: int [B, T], or None for zeros.
            position_ids: int [B, T], or None for the family's default.
            output_hidden_states: Whether to add ``hidden_states`` to the outputs, a tuple of [B, T, D]; for an
                encoder-decoder ``encoder_hidden_states`` and ``decoder_hidden_states``.
            output_attentions: Whether to add ``attentions``, a tuple of [B, N, T, S]; for an encoder-decoder
                ``encoder_attentions``, ``decoder_attentions`` and ``cross_attentions``.
            decoder_input_ids: int [B, U], input of an encoder-decoder's decoder. By default the labels shifted
                to the right (duonlp.inputs.shift_right), or the source for families that do so.
            decoder_attention_mask: [B, U], or None if all tokens are real.
            decoder_position_ids: int [B, U], or None for the family's default.
            cache: Keys and values of earlier positions, see transformer.init_cache. Every layer has a slot for each
                position; ``generate`` keeps fewer where attention has a window.
            cache_index: Number of positions in the cache.
            training: Whether to apply dropout.
            further: Other inputs of ``config.inputs``, such as ``pixel_values`` float [B, channels, height, width]; and
                labels of the head (``labels``, ``start_positions``, ...) in any form of :mod:`duonlp.labels`, which add
                ``loss`` to the outputs.

        Returns:
            Dict of tensors, and of the cache and tuples of tensors where requested.

        Raises:
            InputError: Ids are outside the vocabulary, a sequence is longer than the positions, shapes do not match, or
                the loss does not take the labels.
        """
        check_process()
        other = {
            "attention_mask": attention_mask,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask,
            "decoder_position_ids": decoder_position_ids,
            **further,
        }
        inputs = named_inputs(self.config, input_ids)
        inputs |= {name: value for name, value in other.items() if value is not None}
        inputs = {name: value for name, value in inputs.items() if value is not None}
        check_inputs(self.config, self.head, inputs, cached=cache is not None)
        if cache is not None:
            check_cache(self.config.layers, cache, inputs["input_ids"], cache_index)
        dtypes = {spec.name: np.dtype(spec.dtype) for spec in self.config.inputs}
        inputs = {name: _to_tensor(name, value, dtypes.get(name)) for name, value in inputs.items()}
        return super().__call__(
            inputs, output_hidden_states=output_hidden_states, output_attentions=output_attentions, cache=cache,
            cache_index=cache_index, training=training,
        )  # fmt: skip

    def call(
        self, inputs: dict[str, Any], output_hidden_states: bool = False, output_attentions: bool = False,
        cache: Cache | None = None, cache_index: int | tf.Tensor | None = None, training: bool | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model on a dict of tensors, see :meth:`__call__`."""
        inputs = standard_batch(ops, self.head, self.config, inputs)
        hidden_states, outputs = self._body(
            inputs, output_hidden_states, output_attentions, cache, cache_index, training
        )
        pooling = pooling_of(self.config, self.head)
        if pooling is not None and pooling.token == "all":
            hidden_states = self.pooler(hidden_states, training=training)
        out = self._head(hidden_states, inputs, training)
        if self.targets and all(name in inputs for name in self.targets):
            out["loss"] = self._loss(out, inputs)
        return out | outputs

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | tf.Tensor | None, training: bool | None,
    ) -> tuple[tf.Tensor, dict[str, Any]]:  # fmt: skip
        """Return the last hidden states [B, T, D] and a dict of the requested additional outputs."""
        if self.config.decoder is not None:
            return self._encode_and_decode(inputs, output_hidden_states, output_attentions, training)
        main, position_ids = inputs[main_input(self.config)], inputs.get("position_ids")
        if position_ids is None:
            past = 0 if cache_index is None else cache_index
            mask = inputs.get("attention_mask") if cache is None else None
            position_ids = default_position_ids(self.config.embedding, main, past, mask)
        x = self.embeddings(main, inputs.get("token_type_ids"), position_ids, training=training)
        length = tf.shape(x)[1]
        key_length = length if cache is None else tf.shape(cache["step_0"]["value"])[2]
        first_query = 0 if cache is None or cache_index is None else cache_index
        lengths, layers = (length, key_length), self.config.layers
        bias = attention_biases(layers, inputs.get("attention_mask"), *lengths, self.config.causal, first_query)
        stack = getattr(self, self.config.stack)
        slots = None if cache_index is None else (cache_index,) * len(layers.windows)
        x, states, attentions, cache = stack(x, bias, position_ids, cache=cache, cache_index=slots, training=training)
        outputs: dict[str, Any] = {"hidden_states": tuple(states)} if output_hidden_states else {}
        outputs |= {"attentions": tuple(attentions)} if output_attentions else {}
        return x, outputs | ({} if cache is None else {"cache": cache})

    def _last_index(self, inputs: Mapping[str, Any]) -> tf.Tensor | None:
        """Return the index int [B] of the token to classify by: the last end-of-text token, or the last real one.

        Padding is recognized by pad_token_id, or by the mask if the model has none. None if the model classifies by another.
        """
        if self.config.classification.token not in ("last_eos", "last_non_padding"):
            return None
        input_ids, attention_mask = inputs["input_ids"], inputs.get("attention_mask")
        columns = tf.range(tf.shape(input_ids)[1])
        if self.config.classification.token == "last_eos":
            is_candidate = tf.equal(input_ids, self.config.eos_token_id)
        elif self.config.pad_token_id is not None:
            is_candidate = tf.not_equal(input_ids, self.config.pad_token_id)
        elif attention_mask is None:
            is_candidate = tf.ones_like(input_ids, tf.bool)
        else:
            is_candidate = tf.not_equal(attention_mask, 0)
        return tf.argmax(columns * tf.cast(is_candidate, tf.int32), axis=-1, output_type=tf.int32)


def _to_tensor(name: str, value: Array, dtype: np.dtype | None) -> tf.Tensor | keras.KerasTensor:
    """Convert an array or nested lists to a tensor, of a dtype if that is of its kind; symbolic inputs stay as they are."""
    if tf.is_tensor(value) or isinstance(value, keras.KerasTensor):
        return value
    value = np.asarray(array_of(name, value))
    if dtype is not None and (value.dtype.kind in "iu" if dtype.kind == "i" else value.dtype.kind in "iuf"):
        value = value.astype(dtype, copy=False)
    return tf.convert_to_tensor(value)
