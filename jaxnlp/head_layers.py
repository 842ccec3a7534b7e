"""Layers used by the heads."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from duonlp.config import LMHeadConfig, NormConfig, PoolingConfig
from duonlp.dtypes import without_float16
from jaxnlp.layers import ACTIVATIONS, Embed, Linear, dropout, make_norm


class Pooler(nnx.Module):
    """Pool the hidden states of a sequence into one vector; PoolingConfig says how."""

    def __init__(
        self, config: PoolingConfig, hidden_size: int, norm: NormConfig, *, dtype: DTypeLike, param_dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.dense:
            self.dense = Linear(hidden_size, config.size or hidden_size, use_bias=config.dense_bias, **options)
        if config.norm:
            self.norm = make_norm(norm, hidden_size, **options)

    def __call__(
        self, hidden_states: jax.Array, last_index: jax.Array | None = None, attention_mask: jax.Array | None = None,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:  # fmt: skip
        """Pool [B, T, D] into [B, D]; or, where ``config.token`` is "all", transform [B, T, D].

        Args:
            hidden_states: [B, T, D].
            last_index: int [B], index of the last real token or of the last end-of-text token. Required where
                ``config.token`` is "last_non_padding" or "last_eos".
            attention_mask: [B, T], 1 on the real tokens, which are averaged where ``config.token`` is "mean"; None
                if all are real.
            rngs: Random streams with ``dropout``; None for no dropout.
        """
        token = self.config.token
        if token == "all":
            x = hidden_states
        elif token == "mean_with_padding" or (token == "mean" and attention_mask is None):
            x = hidden_states.mean(axis=1)
        elif token == "mean":
            wide = hidden_states.astype(without_float16(hidden_states.dtype))  # the sum may exceed 65504
            mask = jnp.expand_dims(attention_mask != 0, -1).astype(wide.dtype)  # [B, T, 1]
            x = ((wide * mask).sum(axis=1) / jnp.maximum(mask.sum(axis=1), 1)).astype(hidden_states.dtype)
        elif token in ("last_non_padding", "last_eos"):
            assert last_index is not None, f"pooling {token!r} needs last_index"
            x = jnp.take_along_axis(hidden_states, last_index.reshape(-1, 1, 1), axis=1)[:, 0]
        else:
            x = hidden_states[:, 0 if token == "first" else -1]
        x = dropout(x, self.config.dropout_before, rngs)
        x = ACTIVATIONS[self.config.activation](self.dense(x) if self.config.dense else x)
        return self.norm(x) if self.config.norm else x


class LMHead(nnx.Module):
    """Language modeling head: map hidden states to vocabulary logits.

    A tied head is passed the word table in each call; it holds no reference to it.
    """

    def __init__(
        self, config: LMHeadConfig, hidden_size: int, embedding_size: int, vocab_size: int, norm: NormConfig, *,
        dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.config = config
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        if config.transform:
            self.transform = Linear(hidden_size, embedding_size, use_bias=config.transform_bias, **options)
            self.norm = make_norm(norm, embedding_size, **options)
        if not config.tied:
            self.output = Linear(embedding_size, vocab_size, use_bias=False, **options)
        if config.bias:
            self.bias = nnx.Param(jnp.zeros((vocab_size,), param_dtype))

    def __call__(self, hidden_states: jax.Array, word_embeddings: Embed) -> jax.Array:
        """Map hidden states [B, T, D] to logits [B, T, V]; a tied head multiplies with ``word_embeddings``."""
        x = hidden_states * hidden_states.shape[-1] ** -0.5 if self.config.scale else hidden_states
        if self.config.transform:
            x = self.norm(ACTIVATIONS[self.config.activation](self.transform(x)))
        if self.config.tied:
            x = word_embeddings.attend(x)
        else:
            x = self.output(x)
        if not self.config.bias:
            return x
        bias = self.bias[...].astype(x.dtype)
        return x + (jax.lax.stop_gradient(bias) if self.config.fixed_bias else bias)


class Discriminator(nnx.Module):
    """ELECTRA's head, which scores whether each token was replaced: dense, activation, dense to one logit."""

    def __init__(self, hidden_size: int, activation: str, *, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        self.activation = activation
        options = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.dense = Linear(hidden_size, hidden_size, **options)
        self.output = Linear(hidden_size, 1, **options)

    def __call__(self, hidden_states: jax.Array) -> jax.Array:
        """Map hidden states [B, T, D] to logits [B, T]."""
        return self.output(ACTIVATIONS[self.activation](self.dense(hidden_states)))[..., 0]
