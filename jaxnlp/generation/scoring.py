"""Score texts by the log probability that a language model assigns to them."""

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from duonlp.generation.scoring import compute_perplexity, pad_texts, sum_logprobs
from duonlp.typing import Array
from jaxnlp.pretrained import merge, split

if TYPE_CHECKING:
    from jaxnlp.model import Model


def sequence_logprob(model: "Model", ids: Array, input_len: int = 1, attention_mask: Array | None = None) -> np.ndarray:
    """Return the log probability of each text given its first ``input_len`` tokens.

    Same as ``sequence_logprob`` in chapter 5 of "Natural Language Processing with Transformers".

    Args:
        model: Causal language model.
        ids: int [B, T], padded on either side where attention_mask is 0.
        input_len: Length of the prompt, including padding on the left; at least 1, since the first token has no
            context.
        attention_mask: [B, T], or None.

    Returns:
        Sums of natural logarithms, float64 [B].

    Raises:
        InputError: Shapes do not match, ids are outside the vocabulary, or there is nothing to score.
    """
    return sum_logprobs(token_logprobs(model, ids, attention_mask), attention_mask, input_len)


def perplexity(model: "Model", ids: Array, input_len: int = 1, attention_mask: Array | None = None) -> np.ndarray:
    """Return exp(-mean log probability of the tokens after ``input_len``), float64 [B]; see sequence_logprob."""
    return compute_perplexity(token_logprobs(model, ids, attention_mask), attention_mask, input_len)


def token_logprobs(model: "Model", ids: Array, attention_mask: Array | None = None) -> np.ndarray:
    """Return the log probability of each token given those before it, float32 [B, T - 1], for tokens 1, 2, ..."""
    inputs, rows, columns = pad_texts(model.config, ids, attention_mask)
    graphdef, params = split(model)
    return np.asarray(_token_logprobs(params, inputs, graphdef=graphdef))[:rows, : columns - 1]


@functools.partial(jax.jit, static_argnames="graphdef")
def _token_logprobs(params, inputs, *, graphdef):
    logits = merge(graphdef, params)(**inputs)["logits"].astype(jnp.float32)
    next_ids = jnp.expand_dims(inputs["input_ids"][:, 1:], -1)
    return jnp.take_along_axis(jax.nn.log_softmax(logits[:, :-1]), next_ids, axis=-1)[..., 0]
