"""Training FLOPs per token, counted from a model's config, and model FLOPs utilization (MFU).

Only matrix products count, at two FLOPs per multiply-add; norms, activations, softmax, embedding lookups and biases do not, as
is usual in the literature. The backward pass costs twice the forward pass: one product for the gradient of each operand.
Rematerialization is work of the hardware, not of the model, and is not counted.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from duonlp.config import AttentionConfig, TransformerConfig
from duonlp.errors import InputError


@dataclass(frozen=True)
class TokenFlops:
    """Forward FLOPs per token by component, and their sums.

    Attention scores and values count as if each token attended to the whole sequence, or to its whole window, as in PaLM's
    appendix B; the `_causal` sums count half of that.

    Attributes:
        embedding: Projection of narrow embeddings to the hidden size (ALBERT, ELECTRA).
        projections: Query, key, value and output projections of attention.
        scores: Queries times keys.
        values: Probabilities times values.
        feed_forward: Two matrices, or three if gated.
        head: Language-model head including its transform.
    """

    embedding: int
    projections: int
    scores: int
    values: int
    feed_forward: int
    head: int

    @property
    def matrices(self) -> int:
        """Forward FLOPs of products with parameters: twice the number of those parameters."""
        return self.embedding + self.projections + self.feed_forward + self.head

    @property
    def forward(self) -> int:
        """Forward FLOPs with full attention."""
        return self.matrices + self.scores + self.values

    @property
    def forward_causal(self) -> float:
        """Forward FLOPs without the masked half of causal attention."""
        return self.matrices + (self.scores + self.values) / 2

    @property
    def training(self) -> int:
        """Forward and backward FLOPs with full attention, on which MFU is usually based."""
        return 3 * self.forward

    @property
    def training_causal(self) -> float:
        """Forward and backward FLOPs without the masked half of causal attention."""
        return 3 * self.forward_causal


def token_flops(config: TransformerConfig, sequence_length: int) -> TokenFlops:
    """Count the FLOPs per token of a language model with one stack.

    Every position goes through the head, as in training, including that of masked language models.

    Args:
        config: Configuration of the model. Layer weights that are applied several times count each time.
        sequence_length: Tokens per sequence.

    Raises:
        InputError: The length is below 1 or beyond the model's positions.
    """
    if not 1 <= sequence_length <= config.max_length:
        raise InputError(
            f"sequence_length is {sequence_length}; it must be from 1 to {config.max_length}, the model's maximum"
        )
    hidden, table = config.hidden_size, config.embedding
    attentions, blocks = zip(*((layer.attention, layer.feed_forward) for layer in config.layers))
    scores = sum(2 * c.size * _reach(c, sequence_length, config.causal) for c in attentions)
    head_size = table.size if config.lm_head.transform else hidden
    transform = hidden * table.size if config.lm_head.transform else 0
    return TokenFlops(
        embedding=2 * table.size * hidden if table.projection else 0,
        projections=sum(2 * hidden * 2 * (c.size + c.kv_size) for c in attentions),
        scores=scores,
        values=scores,
        feed_forward=sum(
            2 * (3 if block.gated else 2) * hidden * block.size for block in blocks
        ),  # the gate is the third
        head=2 * (transform + head_size * table.vocab_size),
    )


def _reach(attention: AttentionConfig, length: int, causal: bool) -> int:
    """Return the number of keys that a token attends to, causal masks aside."""
    window = attention.window
    return length if window is None else min(length, window if causal else 2 * window - 1)


@dataclass(frozen=True)
class PairFlops:
    """Forward FLOPs of an encoder-decoder on a source and a target, and their sums.

    Attributes:
        source_length: Tokens of the source.
        target_length: Tokens of the target.
        source: Per source token: the encoder, and the cross-attention keys and values of the decoder layers.
        target: Per target token: the decoder, its cross-attention, and the head.
        self_attention: Per target token: scores and values of the decoder's self-attention; also part of `target`.
    """

    source_length: int
    target_length: int
    source: TokenFlops
    target: TokenFlops
    self_attention: int

    @property
    def forward(self) -> int:
        """Forward FLOPs of the pair with full attention."""
        return self.source_length * self.source.forward + self.target_length * self.target.forward

    @property
    def forward_causal(self) -> float:
        """Forward FLOPs without the masked half of the decoder's self-attention."""
        return self.forward - self.target_length * self.self_attention / 2

    @property
    def training(self) -> int:
        """Forward and backward FLOPs with full attention."""
        return 3 * self.forward

    @property
    def training_causal(self) -> float:
        """Forward and backward FLOPs without the masked half of the decoder's self-attention."""
        return 3 * self.forward_causal


def pair_flops(config: TransformerConfig, source_length: int, target_length: int) -> PairFlops:
    """Count the FLOPs of an encoder-decoder on one source and one target.

    Args:
        config: Configuration of an encoder-decoder.
        source_length: Tokens of the source.
        target_length: Tokens of the target.

    Raises:
        InputError: The model is not an encoder-decoder, or a length is below 1 or beyond the model's positions.
    """
    if config.decoder is None:
        raise InputError(f"{config.model_type} is not an encoder-decoder; use token_flops")
    decoder, hidden = config.as_decoder(), config.hidden_size
    cross = [layer.cross_attention for layer in decoder.layers if layer.cross_attention is not None]
    queries, keys = sum(c.size for c in cross), sum(c.kv_size for c in cross)
    source, target = token_flops(config, source_length), token_flops(decoder, target_length)
    return PairFlops(
        source_length,
        target_length,
        source=replace(source, projections=source.projections + 2 * 2 * hidden * keys, head=0),
        target=replace(
            target,
            projections=target.projections + 2 * 2 * hidden * queries,
            scores=target.scores + 2 * source_length * queries,
            values=target.values + 2 * source_length * queries,
        ),
        self_attention=target.scores + target.values,
    )


def block_flops(config: TransformerConfig, objective: Any, block_length: int) -> float:
    """Return the training FLOPs per token of a block of text, with full attention.

    Args:
        config: Configuration of the model.
        objective: Objective from duonlp.data.objectives.language_modelling. For an encoder-decoder its ``lengths`` gives
            the source and target lengths.
        block_length: Tokens per block.
    """
    if config.decoder is None:
        return token_flops(config, block_length).training
    return pair_flops(config, *objective.lengths(block_length)).training / block_length


def six_n(num_parameters: int) -> int:
    """Return the estimate of 6 training FLOPs per token and parameter (Kaplan et al. 2020, section 2.1).

    It ignores attention scores and values. Kaplan's N excludes the embeddings, although a tied head multiplies by them.
    """
    return 6 * num_parameters


def palm_flops(num_parameters: int, config: TransformerConfig, sequence_length: int) -> int:
    """Return the training FLOPs per token by PaLM's appendix B (Chowdhery et al. 2022): 6N + 12 L H Q T.

    Args:
        num_parameters: N, the number of all parameters.
        config: Configuration with L layers of H heads of width Q, which may differ between layers.
        sequence_length: T, tokens per sequence.
    """
    return 6 * num_parameters + 12 * sum(layer.attention.size for layer in config.layers) * sequence_length


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Return the model FLOPs utilization, in [0, 1]: achieved over peak FLOP/s (PaLM, appendix B).

    Args:
        tokens_per_second: Throughput over all devices.
        flops_per_token: Training FLOPs per token, such as :attr:`TokenFlops.training`.
        peak: Peak FLOP/s of all devices together, such as ``chips * CHIPS["v5e"].peak_flops_bf16``.

    Raises:
        InputError: The peak is not a positive number.
    """
    if not (math.isfinite(peak) and peak > 0):
        raise InputError(f"the peak is {peak} FLOP/s; give the positive total of all devices")
    return tokens_per_second * flops_per_token / peak
