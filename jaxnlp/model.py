"""The base model, which the classes of heads.py extend with heads."""

from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.checkpoints.pretrained import default_generation_config
from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.strategies.cache import check_cache
from duonlp.heads import loss_terms, outputs_of, standard_batch
from duonlp.inputs import check_inputs, main_input
from duonlp.labels import array_of
from duonlp.parameters import pooling_of
from duonlp.typing import Array
from duonlp.util.frameworks import check_process
from jaxnlp import losses, ops
from jaxnlp.embeddings import Embeddings, default_position_ids
from jaxnlp.encoder_decoder import EncoderDecoder
from jaxnlp.head_layers import Pooler
from jaxnlp.pretrained import Pretrained
from jaxnlp.quantization.layers import replace_layers
from jaxnlp.transformer import Cache, Stack, attention_biases


class Model(Pretrained, EncoderDecoder, nnx.Module):
    """Base model: embeddings and transformer layers.

    Its outputs are ``last_hidden_state`` [B, T, D], and ``pooler_output`` [B, D] if the family has a pooler.
    For an encoder-decoder these are the decoder's, and ``encoder_last_hidden_state`` [B, S, D] comes with them.

    Args:
        config: Architecture and sizes of the model.
        dtype: Compute dtype; norms, softmax, pooling and losses stay in float32, and in float16 what LayerConfig says.
        param_dtype: Storage dtype of the parameters.
        rngs: Random streams that initialize the parameters.
    """

    head = "base"

    def __init__(
        self, config: TransformerConfig, *, dtype: DTypeLike = jnp.float32, param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        self.generation_config = default_generation_config(config)
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
            self.pooler = Pooler(pooling, config.hidden_size, config.norm, **options)
        self._build_head(options)
        if config.quantization is not None:
            replace_layers(self, config.quantization)

    def _build_head(self, options: dict[str, Any]) -> None:
        """Create the layers of the head."""

    def _head(self, hidden_states: jax.Array, inputs: dict[str, Any], rngs: nnx.Rngs | None) -> dict[str, Any]:
        """Return the head's outputs for the last hidden states [B, T, D]."""
        out = {"last_hidden_state": hidden_states}
        if self.config.pooler is not None:
            out["pooler_output"] = self.pooler(hidden_states, attention_mask=inputs["attention_mask"], rngs=rngs)
        return out

    def __call__(
        self, input_ids: Array | None = None, attention_mask: Array | None = None, token_type_ids: Array | None = None,
        position_ids: Array | None = None, *, output_hidden_states: bool = False, output_attentions: bool = False,
        decoder_input_ids: Array | None = None, decoder_attention_mask: Array | None = None,
        decoder_position_ids: Array | None = None, cache: Cache | None = None, cache_index: int | Array | None = None,
        rngs: nnx.Rngs | None = None, **further: Array,
    ) -> dict[str, Any]:  # fmt: skip
        """Run the model.

        Args:
            input_ids: int [B, T]; or the main input of a model that reads no tokens.
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
            rngs: Random streams with ``dropout`` for training with dropout; None for no dropout.
            further: Other inputs of ``config.inputs``, such as ``pixel_values`` float [B, channels, height, width]; and
                labels of the head (``labels``, ``start_positions``, ...) in any form of :mod:`duonlp.labels`, which add
                ``loss`` to the outputs.

        Returns:
            Dict of arrays, and of the cache and tuples of arrays where requested.

        Raises:
            InputError: Ids are outside the vocabulary, a sequence is longer than the positions, shapes do not match, or
                the loss does not take the labels.
        """
        check_process()
        inputs = {
            main_input(self.config): input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids,
            "position_ids": position_ids, "decoder_input_ids": decoder_input_ids,
            "decoder_attention_mask": decoder_attention_mask, "decoder_position_ids": decoder_position_ids, **further,
        }  # fmt: skip
        check_inputs(self.config, self.head, inputs, cached=cache is not None)
        if cache is not None:
            check_cache(self.config.layers, cache, inputs["input_ids"], cache_index)
        arrays = {name: None if value is None else jnp.asarray(array_of(name, value)) for name, value in inputs.items()}
        inputs = standard_batch(ops, self.head, self.config, arrays)
        hidden_states, outputs = self._body(inputs, output_hidden_states, output_attentions, cache, cache_index, rngs)
        pooling = pooling_of(self.config, self.head)
        if pooling is not None and pooling.token == "all":
            hidden_states = self.pooler(hidden_states, rngs=rngs)
        out = self._head(hidden_states, inputs, rngs) | outputs
        targets = outputs_of(self.head, self.config)
        if targets and all(inputs.get(output.labels) is not None for output in targets):
            terms = loss_terms(ops, losses, self.head, self.config, out, inputs)
            out["loss"] = sum(losses.mean(total, count) for total, count in terms.values())
        return out

    def _body(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, cache: Cache | None,
        cache_index: int | jax.Array | None, rngs: nnx.Rngs | None,
    ) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        """Return the last hidden states [B, T, D] and a dict of the requested additional outputs."""
        if self.config.decoder is not None:
            return self._encode_and_decode(inputs, output_hidden_states, output_attentions, rngs)
        main, position_ids = inputs[main_input(self.config)], inputs["position_ids"]
        if position_ids is None:
            past = 0 if cache_index is None else cache_index
            mask = inputs["attention_mask"] if cache is None else None
            position_ids = default_position_ids(self.config.embedding, main, past, mask)
        x = self.embeddings(main, inputs.get("token_type_ids"), position_ids, rngs)
        length = x.shape[1]
        key_length = length if cache is None else cache["step_0"]["value"].shape[2]
        first_query = 0 if cache is None or cache_index is None else cache_index
        lengths, layers = (length, key_length), self.config.layers
        bias = attention_biases(layers, inputs["attention_mask"], *lengths, self.config.causal, first_query)
        stack = getattr(self, self.config.stack)
        slots = None if cache_index is None else (cache_index,) * len(layers.windows)
        x, states, attentions, cache = stack(x, bias, position_ids, cache, slots, rngs)
        outputs: dict[str, Any] = {"hidden_states": tuple(states)} if output_hidden_states else {}
        outputs |= {"attentions": tuple(attentions)} if output_attentions else {}
        return x, outputs | ({} if cache is None else {"cache": cache})

    def _last_index(self, inputs: Mapping[str, Any]) -> jax.Array | None:
        """Return the index int [B] of the token to classify by: the last end-of-text token, or the last real one.

        Padding is recognized by pad_token_id, or by the mask if the model has none. None if the model classifies by another.
        """
        if self.config.classification.token not in ("last_eos", "last_non_padding"):
            return None
        input_ids, attention_mask = inputs["input_ids"], inputs["attention_mask"]
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
