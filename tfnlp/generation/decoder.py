"""What a language model brings to the decoding loop; see duonlp.generation.strategies.search."""

import tensorflow as tf

from tfnlp import ops
from tfnlp.transformer import MASKED, attention_bias, init_cache


class Decoder:
    """Mixin of the language models that continue text."""

    def start_cache(self, rows: int, slots: int, source=None):
        """Room for the keys and values of ``slots`` tokens of ``rows`` texts."""
        return init_cache(self.config, rows, slots, self.compute_dtype)

    def extend_cache(self, cache, slots: int):
        """The cache with ``slots`` more, free, behind."""
        rows, more = [(0, 0), (0, 0)], (0, slots)
        pads = {"key": [*rows, (0, 0), more], "value": [*rows, more, (0, 0)]}
        return {step: {name: tf.pad(x, pads[name]) for name, x in layer.items()} for step, layer in cache.items()}

    def decode(self, input_ids, position_ids, visible, cache, index):
        """Run tokens [B, n], each of which sees the slots ``visible`` [B, n, slots] says; theirs are ``index`` and on.

        Returns:
            hidden states [B, n, D], the cache with these tokens in it.
        """
        x = self.embeddings(input_ids, None, position_ids, training=False)
        bias = tf.where(tf.expand_dims(visible, 1), 0.0, MASKED)  # [B, 1, n, slots]
        x, _, _, cache = getattr(self, self.config.stack)(x, bias, cache=cache, cache_index=index, training=False)
        return x, cache

    def next_logits(self, hidden_states):
        """[B, n, D] -> [B, n, V]: of the token after each."""
        return self.lm_head(hidden_states, word_embeddings=self.embeddings.word_embeddings)

    def generate(self, input_ids, attention_mask=None, generation_config=None, **options):
        """Continue prompts, or write to a source; see tfnlp.generation.generate."""
        from tfnlp.generation import generate

        return generate(self, input_ids, attention_mask, generation_config, **options)


class Seq2SeqDecoder(Decoder):
    """Mixin of the encoder-decoders.

    Their cache has, beside what the tokens of the text leave, the keys and values of the source (``source``), which are
    computed once and shared by all beams, what of it is padding (``source_mask``), and, where distances count, the position
    of each slot (``position``): beams lie beside each other, so that the slot does not tell it.
    """

    def start_cache(self, rows: int, slots: int, source=None):
        """The same, with a source read: (input_ids, attention_mask), int [rows, S] each."""
        input_ids, attention_mask = source
        hidden_states = self.encode(input_ids, attention_mask, training=False)[0]
        cache = init_cache(self.config.as_decoder(), rows, slots, self.compute_dtype)
        cache |= {"source": self.decoder.keys_and_values(hidden_states), "source_mask": attention_mask}
        if self.config.decoder.attention.relative_buckets:
            cache["position"] = tf.zeros((rows, slots), tf.int32)
        return cache

    def extend_cache(self, cache, slots: int):
        """The cache with ``slots`` more, free, behind."""
        kept = {name: cache[name] for name in ("source", "source_mask")}
        own = {name: layer for name, layer in cache.items() if name.startswith("step_")}
        if "position" in cache:
            kept["position"] = tf.pad(cache["position"], [(0, 0), (0, slots)])
        return super().extend_cache(own, slots) | kept

    def decode(self, input_ids, position_ids, visible, cache, index):
        """As Decoder's."""
        embedding, new = self.config.decoder.embedding, {}
        offset = 0 if embedding.positions == "none" else embedding.position_offset
        x = self.decoder_embeddings(input_ids, None, position_ids + offset, training=False, words=self.decoder_words)
        bias = tf.where(tf.expand_dims(visible, 1), 0.0, MASKED)  # [B, 1, n, slots]
        if "position" in cache:
            new["position"] = ops.update(cache["position"], position_ids, (0, index))
            bias = bias + self.decoder.relative_bias(position_ids, new["position"])
        mask = cache["source_mask"]
        source_bias = attention_bias(mask, x.shape[1], mask.shape[1], causal=False)
        own = {name: layer for name, layer in cache.items() if name.startswith("step_")}
        x, _, _, own = self.decoder(
            x, bias, cache=own, cache_index=index, training=False, source=(cache["source"], source_bias)
        )
        return x, cache | own | new

    def next_logits(self, hidden_states):
        """[B, n, D] -> [B, n, V]: of the token after each."""
        return self.lm_head(hidden_states, word_embeddings=self.decoder_words)
