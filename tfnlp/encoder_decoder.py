"""The body of an encoder-decoder: an encoder of the source, and a decoder of the target that attends to it."""

from typing import Any, ClassVar

import keras
import tensorflow as tf

from duonlp.config import DecoderConfig, TransformerConfig
from duonlp.inputs import decoder_input_ids, main_input
from tfnlp import ops
from tfnlp.embeddings import Embeddings, default_position_ids
from tfnlp.layers import Embed
from tfnlp.transformer import Stack, StackOutput, attention_bias, attention_biases


class EncoderDecoder:
    """Mixin of the model classes, for configurations with a decoder.

    Attributes:
        config: The model's configuration.
        head: Name of the model's head.
        embeddings: Embeddings of the source, with the word table.
        encoder: Layers over the source.
        decoder_embeddings: Embeddings of the target.
        decoder: Layers over the target, with attention to the source.
    """

    config: TransformerConfig
    head: ClassVar[str]
    embeddings: Embeddings
    encoder: Stack
    decoder_embeddings: Embeddings
    decoder: Stack

    def encode(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor | None = None, position_ids: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> StackOutput:  # fmt: skip
        """Run the encoder on a source [B, S] and return the output of its Stack."""
        if position_ids is None:
            position_ids = default_position_ids(self.config.embedding, input_ids)
        x = self.embeddings(input_ids, None, position_ids, training=training)
        length = tf.shape(input_ids)[1]
        index = tf.expand_dims(tf.range(length), 0)
        biases = attention_biases(self.config.layers, attention_mask, length, length, causal=False)
        relative = self.encoder.relative_bias(index, index)
        return self.encoder(x, tuple(bias + relative for bias in biases), position_ids, training=training)

    @property
    def decoder_word_embeddings(self) -> Embed:
        """Word table of the decoder: its own, or the encoder's."""
        shared = self._decoder_config.shares_words
        return self.embeddings.word_embeddings if shared else self.decoder_embeddings.word_embeddings

    @property
    def _decoder_config(self) -> DecoderConfig:
        assert self.config.decoder is not None
        return self.config.decoder

    def _encode_and_decode(
        self, inputs: dict[str, Any], output_hidden_states: bool, output_attentions: bool, training: bool | None
    ) -> tuple[tf.Tensor, dict[str, Any]]:
        """Return the decoder's last hidden states [B, U, D] and a dict of the requested additional outputs."""
        mask = inputs.get("attention_mask")
        source, encoder_states, encoder_attentions, _ = self.encode(
            inputs[main_input(self.config)], mask, inputs.get("position_ids"), training
        )
        ids, position_ids = decoder_input_ids(ops, inputs, self.config, self.head), inputs.get("decoder_position_ids")
        if position_ids is None:
            position_ids = default_position_ids(self._decoder_config.embedding, ids)
        x = self.decoder_embeddings(
            ids, None, position_ids, training=training, word_embeddings=self.decoder_word_embeddings
        )
        length = tf.shape(ids)[1]
        index = tf.expand_dims(tf.range(length), 0)
        decoder_mask, layers = inputs.get("decoder_attention_mask"), self._decoder_config.layers
        biases = attention_biases(layers, decoder_mask, length, length, causal=True)
        relative = self.decoder.relative_bias(index, index)
        source_bias = attention_bias(mask, length, tf.shape(source)[1], causal=False)
        x, states, attentions, _ = self.decoder(
            x, tuple(bias + relative for bias in biases), position_ids, training=training,
            source=(self.decoder.keys_and_values(source), source_bias),
        )  # fmt: skip
        outputs: dict[str, Any] = {"encoder_last_hidden_state": source}
        if output_hidden_states:
            outputs |= {"decoder_hidden_states": tuple(states), "encoder_hidden_states": tuple(encoder_states)}
        if output_attentions:
            self_attentions, cross_attentions = zip(*attentions)
            outputs |= {
                "decoder_attentions": self_attentions,
                "cross_attentions": cross_attentions,
                "encoder_attentions": tuple(encoder_attentions),
            }
        return x, outputs
