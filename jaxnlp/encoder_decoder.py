"""The body of an encoder-decoder: one stack reads the source, the other reads the target so far and looks at the source."""

import jax.numpy as jnp

from duonlp.seq2seq import decoder_input_ids
from jaxnlp import ops
from jaxnlp.transformer import attention_bias


class EncoderDecoder:
    """Mixin of the model classes, for configurations that have a decoder."""

    def encode(self, input_ids, attention_mask=None, position_ids=None, rngs=None):
        """The encoder alone: what Stack gives for a source [B, S]."""
        if position_ids is None:
            position_ids = self._default_positions(input_ids, 0)
        x = self.embeddings(input_ids, None, position_ids, rngs)
        bias = attention_bias(attention_mask, x.shape[1], x.shape[1], causal=False)
        index = jnp.arange(x.shape[1])[None]
        return self.encoder(x, bias + self.encoder.relative_bias(index, index), rngs=rngs)

    @property
    def decoder_words(self):
        """The decoder's table of words: its own, or the encoder's."""
        shared = self.config.decoder.shares_words
        return self.embeddings.word_embeddings if shared else self.decoder_embeddings.word_embeddings

    def _encode_and_decode(self, inputs, output_hidden_states, output_attentions, rngs):
        """The decoder's last hidden states, and what else was asked for."""
        mask = inputs["attention_mask"]
        source, encoder_states, encoder_attentions, _ = self.encode(
            inputs["input_ids"], mask, inputs["position_ids"], rngs
        )
        ids, position_ids = decoder_input_ids(ops, inputs, self.config, self.head), inputs["decoder_position_ids"]
        if position_ids is None:
            position_ids = self._default_positions(ids, 0, self.config.decoder.embedding)
        x = self.decoder_embeddings(ids, None, position_ids, rngs, self.decoder_words)
        bias = attention_bias(inputs["decoder_attention_mask"], x.shape[1], x.shape[1], causal=True)
        index = jnp.arange(x.shape[1])[None]
        source_bias = attention_bias(mask, x.shape[1], source.shape[1], causal=False)
        x, states, attentions, _ = self.decoder(
            x, bias + self.decoder.relative_bias(index, index), rngs=rngs,
            source=(self.decoder.keys_and_values(source), source_bias),
        )  # fmt: skip
        more = {"encoder_last_hidden_state": source}
        if output_hidden_states:
            more |= {"decoder_hidden_states": tuple(states), "encoder_hidden_states": tuple(encoder_states)}
        if output_attentions:
            own, cross = zip(*attentions)
            more |= {
                "decoder_attentions": own,
                "cross_attentions": cross,
                "encoder_attentions": tuple(encoder_attentions),
            }
        return x, more
