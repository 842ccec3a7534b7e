"""The cache protocol by which language models take part in decoding; see duonlp.generation.strategies.search."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from duonlp.config import TransformerConfig
from duonlp.generation import GenerationConfig, GenerationOutput
from duonlp.typing import Array
from tfnlp import ops
from tfnlp.embeddings import Embeddings
from tfnlp.head_layers import LMHead
from tfnlp.layers import Embed
from tfnlp.transformer import MASKED, Biases, Cache, Stack, StackOutput, attention_bias, init_cache


class Decoder:
    """Mixin of causal language models for decoding.

    Attributes:
        config: The model's configuration.
        compute_dtype: Compute dtype.
        embeddings: Token embeddings, with the word table.
        lm_head: Language modeling head.
    """

    config: TransformerConfig
    compute_dtype: str
    embeddings: Embeddings
    lm_head: LMHead

    def start_cache(self, rows: int, slots: int, source: tuple[tf.Tensor, tf.Tensor] | None = None) -> Cache:
        """Return an empty cache for ``slots`` tokens of ``rows`` texts."""
        return init_cache(self.config, rows, slots, self.compute_dtype)

    def decode(
        self, input_ids: tf.Tensor, position_ids: tf.Tensor, visible: Sequence[tf.Tensor], cache: Cache,
        index: Sequence[int | tf.Tensor], token_type_ids: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, Cache]:  # fmt: skip
        """Run n tokens per text.

        Args:
            input_ids: int [B, n].
            position_ids: int [B, n].
            visible: For each of ``config.layers.windows``: bool [B, n, slots], the slots that each token attends to.
            cache: Cache with the keys and values of earlier tokens.
            index: For each of them: slot of the first of these tokens; the others follow.
            token_type_ids: int [B, n], or None.

        Returns:
            Hidden states [B, n, D], and the cache with these tokens added.
        """
        x = self.embeddings(input_ids, token_type_ids, position_ids, training=False)
        stack = getattr(self, self.config.stack)
        x, _, _, cache = stack(x, _biases(visible), position_ids, cache=cache, cache_index=tuple(index), training=False)
        return x, cache

    def next_logits(self, hidden_states: tf.Tensor) -> tf.Tensor:
        """Map hidden states [B, n, D] to the logits of the next token [B, n, V]."""
        return self.lm_head(hidden_states, word_embeddings=self.embeddings.word_embeddings)

    def generate(
        self, input_ids: Array, attention_mask: Array | None = None,
        generation_config: GenerationConfig | Mapping[str, Any] | None = None, **options: Any,
    ) -> np.ndarray | GenerationOutput:  # fmt: skip
        """Generate text; see tfnlp.generation.generate."""
        from tfnlp.generation import generate

        model: Any = self  # the final class is a model.Model
        return generate(model, input_ids, attention_mask, generation_config, **options)


class Seq2SeqDecoder(Decoder):
    """Mixin of encoder-decoders for decoding.

    Besides the keys and values of the target ("step_i"), the cache holds:

      - ``source``: keys and values of the source, {"step_i": {"key": [B, N, H, S], "value": [B, N, S, H]}},
        computed once and shared by all beams;
      - ``source_mask``: int [B, S], 0 on padding of the source;
      - ``position``: int32 [B, slots], the position of the token in each slot; only with relative position
        biases. Beams share a row, so the slot does not determine the position.

    Attributes:
        decoder: Layers over the target.
        decoder_embeddings: Embeddings of the target.
        decoder_word_embeddings: Word table of the target.
        encode: Runs the encoder, see encoder_decoder.EncoderDecoder.
    """

    decoder: Stack
    decoder_embeddings: Embeddings
    decoder_word_embeddings: Embed
    encode: Callable[..., StackOutput]

    def start_cache(self, rows: int, slots: int, source: tuple[tf.Tensor, tf.Tensor] | None = None) -> Cache:
        """Encode the source and return a cache for ``slots`` tokens of ``rows`` texts.

        Args:
            rows: Number of texts.
            slots: Number of tokens.
            source: Input ids and attention mask of the sources, int [rows, S] each.
        """
        assert source is not None, "an encoder-decoder needs a source"
        input_ids, attention_mask = source
        hidden_states = self.encode(input_ids, attention_mask, training=False)[0]
        cache = init_cache(self.decoder.config, rows, slots, self.compute_dtype)
        cache |= {"source": self.decoder.keys_and_values(hidden_states), "source_mask": attention_mask}
        if self.decoder.config.attention.relative_buckets:
            cache["position"] = tf.zeros((rows, slots), tf.int32)
        return cache

    def decode(
        self, input_ids: tf.Tensor, position_ids: tf.Tensor, visible: Sequence[tf.Tensor], cache: Cache,
        index: Sequence[int | tf.Tensor], token_type_ids: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, Cache]:  # fmt: skip
        """Run n tokens per text, see Decoder.decode."""
        embedding, updates = self.decoder.config.embedding, {}
        offset = 0 if embedding.positions == "none" else embedding.position_offset
        x = self.decoder_embeddings(
            input_ids, None, position_ids + offset, training=False, word_embeddings=self.decoder_word_embeddings
        )
        biases = _biases(visible)
        if "position" in cache:
            updates["position"] = ops.update(cache["position"], position_ids, (0, index[0]))
            relative = self.decoder.relative_bias(position_ids, updates["position"])
            biases = tuple(bias + relative for bias in biases)
        mask = cache["source_mask"]
        source_bias = attention_bias(mask, x.shape[1], mask.shape[1], causal=False)
        x, _, _, target_cache = self.decoder(
            x,
            biases,
            position_ids,
            cache=_target_cache(cache),
            cache_index=tuple(index),
            training=False,
            source=(cache["source"], source_bias),
        )
        return x, cache | target_cache | updates

    def next_logits(self, hidden_states: tf.Tensor) -> tf.Tensor:
        """Map hidden states [B, n, D] to the logits of the next token [B, n, V]."""
        return self.lm_head(hidden_states, word_embeddings=self.decoder_word_embeddings)


def _biases(visible: Sequence[tf.Tensor]) -> Biases:
    """Return the biases of masks [B, n, slots]: [B, 1, n, slots] each."""
    return tuple(tf.where(tf.expand_dims(x, 1), 0.0, MASKED) for x in visible)


def _target_cache(cache: Cache) -> Cache:
    """Return the part of an encoder-decoder's cache that a Stack takes: keys and values of the target."""
    return {name: layer for name, layer in cache.items() if name.startswith("step_")}
