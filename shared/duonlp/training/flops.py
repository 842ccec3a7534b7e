"""What a token costs in training, counted from the model's config, and what share of the hardware that uses.

Matrix products are counted, two FLOPs a multiply-add; norms, activations, softmax, embeddings and biases are not, as
everywhere in the literature. The backward pass is twice the forward: one product for the gradient of each operand.
What is computed a second time (rematerialisation) is the hardware's work and not the model's, so it is left out.
"""

import math
from dataclasses import dataclass, replace

from duonlp.config import TransformerConfig
from duonlp.errors import InputError


@dataclass(frozen=True)
class TokenFlops:
    """FLOPs of the forward pass, a token, by where they are spent, and their sums.

    Attention's scores and values are counted as if each token attended to the whole sequence, which is what PaLM's
    appendix B does and what a dense kernel computes; `_causal` sums have half of that.

    embedding: the projection of narrow embeddings to the hidden size (ALBERT, ELECTRA).
    projections: queries, keys, values and the output of attention.
    scores: queries times keys.
    values: probabilities times values.
    feed_forward: two matrices, or three when it is gated.
    head: the language-model head, its transform included.
    """

    embedding: int
    projections: int
    scores: int
    values: int
    feed_forward: int
    head: int

    @property
    def matrices(self) -> int:
        """Products with parameters, in the forward pass; half of it is the number of those parameters."""
        return self.embedding + self.projections + self.feed_forward + self.head

    @property
    def forward(self) -> int:
        """The forward pass, attention in full."""
        return self.matrices + self.scores + self.values

    @property
    def forward_causal(self) -> float:
        """The forward pass when no work is spent on tokens that come later."""
        return self.matrices + (self.scores + self.values) / 2

    @property
    def training(self) -> int:
        """Forward and backward, attention in full: what an MFU is usually of."""
        return 3 * self.forward

    @property
    def training_causal(self) -> float:
        """Forward and backward when no work is spent on tokens that come later."""
        return 3 * self.forward_causal


def token_flops(config: TransformerConfig, sequence_length: int) -> TokenFlops:
    """FLOPs of one token of a language model of one stack, counted exactly but for what the module leaves out.

    Every position goes through the head, as it does in training, masked language models included.

    Args:
        config: the model; a set of layer weights that is applied many times is counted many times.
        sequence_length: tokens in a row.

    Raises:
        InputError: the length is below 1 or beyond the model's positions.
    """
    if not 1 <= sequence_length <= config.max_length:
        raise InputError(f"a sequence of {sequence_length} tokens does not fit a model of 1 to {config.max_length}")
    hidden, layers, table = config.hidden_size, config.num_layers, config.embedding
    width = config.attention.num_heads * config.attention.head_dim
    matrices = 3 if config.feed_forward.gated else 2  # a gate is one more from the hidden size
    head_size = table.size if config.lm_head.transform else hidden
    transform = hidden * table.size if config.lm_head.transform else 0
    return TokenFlops(
        embedding=2 * table.size * hidden if table.projection else 0,
        projections=2 * layers * 4 * hidden * width,
        scores=2 * layers * sequence_length * width,
        values=2 * layers * sequence_length * width,
        feed_forward=2 * layers * matrices * hidden * config.feed_forward.size,
        head=2 * (transform + head_size * table.vocab_size),
    )


@dataclass(frozen=True)
class PairFlops:
    """FLOPs of an encoder-decoder on a source and a target.

    source: of each source token: the encoder, and the keys and values that the decoder's layers make of it.
    target: of each target token: the decoder, its attention to the source, and the head.
    self_attention: of each target token, scores and values of the decoder's attention to itself, which are in `target` too.
    """

    source_length: int
    target_length: int
    source: TokenFlops
    target: TokenFlops
    self_attention: int

    @property
    def forward(self) -> int:
        """The forward pass of the pair, attention in full."""
        return self.source_length * self.source.forward + self.target_length * self.target.forward

    @property
    def forward_causal(self) -> float:
        """The forward pass when no work is spent on tokens that come later, which the decoder alone has."""
        return self.forward - self.target_length * self.self_attention / 2

    @property
    def training(self) -> int:
        """Forward and backward, attention in full."""
        return 3 * self.forward

    @property
    def training_causal(self) -> float:
        """Forward and backward when no work is spent on tokens that come later."""
        return 3 * self.forward_causal


def pair_flops(config: TransformerConfig, source_length: int, target_length: int) -> PairFlops:
    """FLOPs of an encoder-decoder on one source and one target, counted exactly but for what the module leaves out.

    Args:
        config: an encoder-decoder's.
        source_length, target_length: tokens of each.

    Raises:
        InputError: the model is no encoder-decoder, or a length is below 1 or beyond the model's positions.
    """
    if config.decoder is None:
        raise InputError(f"a {config.model_type} is no encoder-decoder; count its tokens with token_flops")
    own, hidden = config.as_decoder(), config.hidden_size
    layers, cross = own.num_layers, config.decoder.cross_attention
    inner = cross.num_heads * cross.head_dim
    source, target = token_flops(config, source_length), token_flops(own, target_length)
    return PairFlops(
        source_length,
        target_length,
        source=replace(source, projections=source.projections + 2 * layers * 2 * hidden * inner, head=0),
        target=replace(
            target,
            projections=target.projections + 2 * layers * 2 * hidden * inner,
            scores=target.scores + 2 * layers * source_length * inner,
            values=target.values + 2 * layers * source_length * inner,
        ),
        self_attention=target.scores + target.values,
    )


def block_flops(config: TransformerConfig, objective, block_length: int) -> float:
    """FLOPs of training for each token of a block of text, attention in full.

    Args:
        config: the model's.
        objective: from duonlp.data.objectives.language_modelling; an encoder-decoder's says how long its sources and targets are.
        block_length: tokens of a block.
    """
    if config.decoder is None:
        return token_flops(config, block_length).training
    return pair_flops(config, *objective.lengths(block_length)).training / block_length


def six_n(num_parameters: int) -> int:
    """The rule of thumb for a training token, 6 FLOPs a parameter (Kaplan et al. 2020, section 2.1).

    It forgets attention's scores and values. Kaplan's N leaves the embeddings out; a tied head multiplies by them.
    """
    return 6 * num_parameters


def palm_flops(num_parameters: int, config: TransformerConfig, sequence_length: int) -> int:
    """FLOPs of a training token as PaLM's appendix B has them (Chowdhery et al. 2022): 6N + 12 L H Q T.

    Args:
        num_parameters: N, all of the model's.
        config: for L layers of H heads of width Q.
        sequence_length: T, tokens in a row.
    """
    attention = config.attention
    return 6 * num_parameters + 12 * config.num_layers * attention.num_heads * attention.head_dim * sequence_length


def mfu(tokens_per_second: float, flops_per_token: float, peak: float) -> float:
    """Model FLOPs utilisation, a share: the model's FLOP/s over what the hardware could do (PaLM, appendix B).

    Args:
        tokens_per_second: over all devices.
        flops_per_token: of training, such as :attr:`TokenFlops.training`.
        peak: FLOP/s of all devices together, such as ``chips * CHIPS["v5e"].peak_flops_bf16``.

    Raises:
        InputError: the peak is not a positive number.
    """
    if not (math.isfinite(peak) and peak > 0):
        raise InputError(f"a peak of {peak} FLOP/s is not allowed; give that of all devices together, above 0")
    return tokens_per_second * flops_per_token / peak
