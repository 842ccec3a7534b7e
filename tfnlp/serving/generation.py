"""Endpoint of text generation."""

from collections import Counter

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.pipelines.pipeline import Pipeline
from duonlp.tasks.text_generation import TextGenerationTask
from tfnlp.generation.export import generate_function
from tfnlp.heads import Model
from tfnlp.serving.endpoint import Endpoint
from tfnlp.text.characters import dense, indices
from tfnlp.text.detokenizer import Detokenizer


class TextGeneration(Endpoint[TextGenerationTask]):
    """Continued prompts, by the compiled loop of ``model.generate``.

    Args:
        model: See Endpoint.
        pipe: See Endpoint.
        batch_size: Number of prompts of a call.
        prompt_length: Largest number of tokens of a prompt.

    Raises:
        InputError: The options are not supported in a graph, or prompt and new tokens exceed the model's positions.
    """

    task = "text-generation"
    options = ("batch_size", "prompt_length")

    def __init__(self, model: Model, pipe: Pipeline, batch_size: int = 1, prompt_length: int = 64) -> None:
        super().__init__(model, pipe)
        options = self._options
        config = options.resolved
        if (
            config.do_sample
            or config.num_return_sequences > 1
            or options.return_tensors
            or options.handle_long_generation
        ):
            raise InputError(
                "do_sample, num_return_sequences, return_tensors and handle_long_generation cannot be exported with a tokenizer; "
                "leave them out, or use tfnlp.generation.export_generate"
            )
        ones = np.ones(prompt_length, np.int32).tolist()
        arguments = self._task.arguments(self._task.group(ones, options, 0, Counter()), options)
        self._function, _ = generate_function(model, batch_size, prompt_length, **arguments)
        self._shape = batch_size, prompt_length
        self._detokenizer = Detokenizer(
            pipe.tokenizer, options.skip_special_tokens, options.clean_up_tokenization_spaces
        )

    def signature(self) -> list[tf.TensorSpec]:
        """Return the input ``text`` string [batch_size]."""
        return [tf.TensorSpec([self._shape[0]], tf.string, name="text")]

    def serve(self, *texts: tf.Tensor) -> dict[str, tf.Tensor]:
        """Return ``generated_text`` string [batch_size]."""
        (text,) = texts
        batch, length = self._shape
        special = self._options.add_special_tokens is not False
        prompts = tf.strings.join([self._task.prefix(self._options), text])
        rows = self.tokenizer.rows(prompts, special=special)
        fits = tf.reduce_all((rows.lengths <= length) & (rows.lengths > 0))
        message = (
            f"a prompt has no tokens, or more than the {length} of prompt_length; export with a larger prompt_length"
        )
        with tf.control_dependencies([tf.debugging.Assert(fits, [message])]):
            ids, mask = (
                tf.ensure_shape(dense(x, rows.lengths, fill, length, left=True), [batch, length])
                for x, fill in ((rows.ids, self._task.pad_token_id), (tf.ones_like(rows.ids), 0))
            )
        generate = tf.function(self._function, jit_compile=True, autograph=False)
        new = generate(input_ids=ids, attention_mask=mask)["sequences"][:, length:]
        # Up to the first token that ends a text.
        ends = tf.reduce_any(
            tf.expand_dims(new, 2) == np.array([*self._options.resolved.eos_ids, -1], np.int32), axis=2
        )
        before = tf.cumsum(tf.cast(ends, tf.int32), axis=1, exclusive=True) == 0
        tokens = tf.gather(tf.reshape(new, [-1]), indices(tf.reshape(before, [-1])))
        result = self._detokenizer(tokens, tf.reduce_sum(tf.cast(before, tf.int32), 1))
        return {"generated_text": tf.strings.join([text, result]) if self._options.return_full_text else result}
