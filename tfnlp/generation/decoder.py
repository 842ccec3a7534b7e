"""What a language model brings to the decoding loop; see shared.generation.search."""

import tensorflow as tf

from tfnlp.transformer import MASKED, init_cache


class Decoder:
    """Mixin of the language models that continue text."""

    def start_cache(self, rows: int, slots: int):
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
        """Continue prompts; see tfnlp.generation.generate."""
        from tfnlp.generation import generate

        return generate(self, input_ids, attention_mask, generation_config, **options)
