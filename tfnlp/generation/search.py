"""Greedy decoding: the prompt in one pass, then one compiled loop over a preallocated cache."""

import keras
import numpy as np
import tensorflow as tf

from shared.generation import prepare_prompt
from tfnlp.transformer import init_cache


def generate(model, input_ids, attention_mask=None, generation_config=None, **options) -> np.ndarray:
    """Continue each prompt with its most likely next token until it ends or is long enough.

    Args:
        input_ids: int [B, T]; prompts shorter than T are padded on the left.
        attention_mask: [B, T], 0 on padding; all real when None.
        generation_config: a GenerationConfig; the model's own when None.
        options: fields of GenerationConfig to change for this call.

    Returns:
        int [B, T + n]: prompts and continuations; what stands after the end of a sequence is the pad token.

    Raises:
        InputError: an empty or too long prompt, ids beyond the vocabulary, an unknown option.
    """
    config = generation_config or model.generation_config
    prompt = prepare_prompt(model.config, config, input_ids, attention_mask, options)
    arrays = (
        prompt.input_ids, prompt.attention_mask, prompt.position_ids, prompt.next_position, prompt.done,
        prompt.eos_ids, np.int32(prompt.padding), np.int32(prompt.new_tokens),
    )  # fmt: skip
    new_ids, steps = _compiled(model)(*map(tf.convert_to_tensor, arrays), room=prompt.room)
    return prompt.finish(new_ids.numpy(), int(steps))


def _compiled(model):
    """The model's compiled loop, made once for the weights it has: quantisation and LoRA bring others."""
    weights = tuple(id(variable) for variable in model.variables)
    # Not as an attribute proper: Keras and TensorFlow would track and save it with the model.
    known = model.__dict__.get("_greedy")
    if known is None or known[0] != weights:

        def greedy(*arrays, room):
            return _greedy(model, *arrays, room=room)

        known = model.__dict__["_greedy"] = weights, tf.function(greedy, jit_compile=True, autograph=False)
    return known[1]


def _greedy(
    model, input_ids, attention_mask, position_ids, next_position, done, eos_ids, padding, new_tokens, *, room
):  # fmt: skip
    """Returns new ids [B, room], of which the first ``steps`` columns were decided, and ``steps``."""
    batch, length = input_ids.shape
    cache = init_cache(model.config, batch, length + room, model.compute_dtype)
    # Slots that hold no token yet are hidden by the causal mask, so they may count as real from the start.
    mask = tf.concat([attention_mask, tf.ones((batch, room), attention_mask.dtype)], axis=1)
    logits, cache = model.next_logits(input_ids, mask, position_ids, cache, 0)

    def choose(step, logits, done, new_ids):
        token = tf.where(done, padding, tf.argmax(logits, axis=-1, output_type=tf.int32))  # [B]
        new_ids = keras.ops.slice_update(new_ids, (0, step), tf.expand_dims(token, 1))
        return token, done | tf.reduce_any(tf.expand_dims(token, 1) == eos_ids, axis=1), new_ids

    def unfinished(step, token, cache, done, new_ids):
        return (step < new_tokens) & ~tf.reduce_all(done)

    def extend(step, token, cache, done, new_ids):
        position = tf.expand_dims(next_position + step - 1, 1)
        logits, cache = model.next_logits(tf.expand_dims(token, 1), mask, position, cache, length + step - 1)
        token, done, new_ids = choose(step, logits, done, new_ids)
        return step + 1, token, cache, done, new_ids

    new_ids = tf.fill((batch, room), padding)
    token, done, new_ids = choose(0, logits, done, new_ids)
    state = tf.while_loop(unfinished, extend, (tf.constant(1), token, cache, done, new_ids))
    return state[-1], state[0]
