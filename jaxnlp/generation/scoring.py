"""How likely a model finds a text."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from duonlp.generation.scoring import compute_perplexity, pad_texts, sum_logprobs
from jaxnlp.pretrained import merge, split


def sequence_logprob(model, ids, input_len: int = 1, attention_mask=None) -> np.ndarray:
    """The log probability of each text after its first ``input_len`` tokens, which are given.

    As ``sequence_logprob`` of chapter 5 of "Natural Language Processing with Transformers".

    Args:
        ids: int [B, T]; padding on either side where attention_mask is 0.
        input_len: tokens of the prompt, padding on the left included, at least 1: the first token has no context.
        attention_mask: [B, T], or None.

    Returns:
        float64 [B]: sums of natural logarithms.

    Raises:
        InputError: shapes that do not fit, ids beyond the vocabulary, nothing left to score.
    """
    return sum_logprobs(token_logprobs(model, ids, attention_mask), attention_mask, input_len)


def perplexity(model, ids, input_len: int = 1, attention_mask=None) -> np.ndarray:
    """exp of minus the mean log probability of the tokens after ``input_len``: float64 [B]; see sequence_logprob."""
    return compute_perplexity(token_logprobs(model, ids, attention_mask), attention_mask, input_len)


def token_logprobs(model, ids, attention_mask=None) -> np.ndarray:
    """The log probability of every token given those before it: float32 [B, T - 1], for tokens 1, 2, ..."""
    inputs, rows, columns = pad_texts(model.config, ids, attention_mask)
    graphdef, params = split(model)
    return np.asarray(_token_logprobs(params, inputs, graphdef=graphdef))[:rows, : columns - 1]


@functools.partial(jax.jit, static_argnames="graphdef")
def _token_logprobs(params, inputs, *, graphdef):
    logits = merge(graphdef, params)(**inputs)["logits"].astype(jnp.float32)
    next_ids = jnp.expand_dims(inputs["input_ids"][:, 1:], -1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), next_ids, axis=-1)[..., 0]
