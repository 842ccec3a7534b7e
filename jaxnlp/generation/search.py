"""Greedy decoding: the prompt in one pass, then one compiled loop over a preallocated cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxnlp.pretrained import merge, split
from jaxnlp.transformer import init_cache
from shared.generation import prepare_prompt


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
    graphdef, params = split(model)
    new_ids, steps = _greedy(
        params, prompt.input_ids, prompt.attention_mask, prompt.position_ids, prompt.next_position, prompt.done,
        prompt.eos_ids, np.int32(prompt.padding), np.int32(prompt.new_tokens), graphdef=graphdef, room=prompt.room,
    )  # fmt: skip
    return prompt.finish(new_ids, int(steps))


@functools.partial(jax.jit, static_argnames=("graphdef", "room"))
def _greedy(
    params, input_ids, attention_mask, position_ids, next_position, done, eos_ids, padding, new_tokens, *, graphdef, room
):  # fmt: skip
    """Returns new ids [B, room], of which the first ``steps`` columns were decided, and ``steps``."""
    model = merge(graphdef, params)
    batch, length = input_ids.shape
    cache = init_cache(model.config, batch, length + room, model.dtype)
    # Slots that hold no token yet are hidden by the causal mask, so they may count as real from the start.
    mask = jnp.concatenate([attention_mask, jnp.ones((batch, room), attention_mask.dtype)], axis=1)
    logits, cache = model.next_logits(input_ids, mask, position_ids, cache, 0)

    def choose(step, logits, done, new_ids):
        token = jnp.where(done, padding, jnp.argmax(logits, axis=-1).astype(jnp.int32))  # [B]
        new_ids = jax.lax.dynamic_update_slice(new_ids, jnp.expand_dims(token, 1), (0, step))
        return token, done | jnp.any(jnp.expand_dims(token, 1) == eos_ids, axis=1), new_ids

    def unfinished(state):
        step, _, _, done, _ = state
        return (step < new_tokens) & ~jnp.all(done)

    def extend(state):
        step, token, cache, done, new_ids = state
        position = jnp.expand_dims(next_position + step - 1, 1)
        logits, cache = model.next_logits(jnp.expand_dims(token, 1), mask, position, cache, length + step - 1)
        token, done, new_ids = choose(step, logits, done, new_ids)
        return step + 1, token, cache, done, new_ids

    new_ids = jnp.full((batch, room), padding, jnp.int32)
    token, done, new_ids = choose(0, logits, done, new_ids)
    state = jax.lax.while_loop(unfinished, extend, (jnp.int32(1), token, cache, done, new_ids))
    return state[-1], state[0]
