"""ELECTRA's pretraining: a generator fills in masked tokens, and a discriminator finds those it got wrong.

Clark et al. 2020, https://arxiv.org/abs/2003.10555. Both engines train the pair with these functions over ``ops``, and draw
the same tokens from the same logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from duonlp.errors import InputError
from duonlp.generation.threefry import threefry2x32
from duonlp.heads import IGNORED
from duonlp.typing import Array, Batch, Ops

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""Names of the two models among the trained parameters, and of their losses in the log with ``_loss`` after them."""


@dataclass(frozen=True)
class ReplacedTokens:
    """Settings of the objective; the defaults are the paper's.

    Attributes:
        discriminator_weight: Factor of the discriminator's loss; that of the generator's is 1.
        temperature: Divisor of the generator's logits before a token is drawn.
        share_embeddings: Whether the generator uses the discriminator's embeddings, all but their projection.

    Raises:
        InputError: A value is out of range.
    """

    discriminator_weight: float = 50.0
    temperature: float = 1.0
    share_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in ("discriminator_weight", "temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it must be positive")


def replaced_token_terms(
    ops: Ops,
    losses: ModuleType,
    settings: ReplacedTokens,
    generator: Callable[[Array], Array],
    discriminator: Callable[[Array], Array],
    batch: Batch,
    words: tuple[Array, Array],
    first_row: Array = 0,
) -> dict[str, tuple[Array, Array, float]]:
    """Return the terms of the loss of a batch: ``generator_loss``, over masked tokens, and ``discriminator_loss``, over all.

    Args:
        ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
        losses: ``tfnlp.losses`` or ``jaxnlp.losses``.
        settings: Settings of the objective.
        generator: Token ids int [B, T] -> logits [B, T, V].
        discriminator: Token ids int [B, T] -> logits [B, T], positive for replaced tokens.
        batch: ``input_ids`` int [B, T] with masked tokens, ``labels`` int [B, T] (the original tokens where they are masked and
            -100 elsewhere), and optionally ``attention_mask`` [B, T].
        words: Two uint32 [], such as a seed and the number of the step, which determine the draws together with a token's row
            and column.
        first_row: Number of the batch's first row among the rows that share `words`.

    Returns:
        {name: (sum, count, factor)}; the loss is the total of factor * sum / count.
    """
    ids, labels = batch["input_ids"], batch["labels"]
    logits = generator(ids)  # [B, T, V]
    total, count = losses.cross_entropy_sum(logits, labels)
    drawn = draw_tokens(ops, ops.stop_gradient(logits), settings.temperature, words, first_row)
    is_masked = labels != IGNORED
    original = ops.where(is_masked, labels, ids)
    corrupted = ops.where(is_masked, drawn, ids)
    is_replaced = ops.cast(corrupted != original, "int32")
    found, tokens = losses.binary_cross_entropy_sum(discriminator(corrupted), is_replaced, batch.get("attention_mask"))
    return {
        f"{GENERATOR}_loss": (total, count, 1.0),
        f"{DISCRIMINATOR}_loss": (found, tokens, settings.discriminator_weight),
    }


def draw_tokens(ops: Ops, logits: Array, temperature: float, words: tuple[Array, Array], first_row: Array = 0) -> Array:
    """Draw a token from softmax(logits / temperature) at each position, by inverting the cumulative distribution.

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        logits: [B, T, V].
        temperature: Divisor of the logits.
        words: As of :func:`replaced_token_terms`.
        first_row: As of :func:`replaced_token_terms`.

    Returns:
        int32 [B, T].
    """
    rows = ops.expand_dims(ops.arange(ops.size(logits, 0)) + first_row, 1)  # [B, 1]
    columns = ops.expand_dims(ops.arange(ops.size(logits, 1)), 0)  # [1, T]
    counter = ops.cast(rows + 0 * columns, "uint32"), ops.cast(0 * rows + columns, "uint32")
    key = [ops.reshape(ops.cast(word, "uint32"), (1, 1)) for word in words]
    bits, _ = threefry2x32(ops, key, counter)
    # 23 bits plus one half: strictly between 0 and 1, and exact in float32
    uniform = (ops.cast(ops.cast(ops.shift_right(bits, 9), "int32"), "float32") + 0.5) * 2.0**-23  # [B, T]
    cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.cast(logits, "float32") / temperature)))  # [B, T, V]
    threshold = ops.expand_dims(uniform, -1) * cumulative[..., -1:]  # the total differs from 1 by rounding
    return ops.minimum(ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1), ops.size(logits, 2) - 1)
