"""ELECTRA's pretraining: a generator fills in masked tokens, and a discriminator finds those it got wrong.

Clark et al. 2020, https://arxiv.org/abs/2003.10555. Both engines train the pair with these functions over ``ops``, and draw
the same tokens from the same logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from duonlp.config import TransformerConfig
from duonlp.errors import InputError
from duonlp.generation.threefry import threefry2x32
from duonlp.heads import IGNORED, ROW_MASK
from duonlp.parameters import parameters
from duonlp.typing import Array, Batch, Ops

HASH_FACTORS = -1640531535, -2048144777
"""Odd int32 that mix the ids of a row into hashes: 0x9E3779B1 and 0x85EBCA77, primes of xxHash."""

GENERATOR, DISCRIMINATOR = "generator", "discriminator"
"""Names of the two models among the trained parameters, and of their losses in the log with ``_loss`` after them."""


@dataclass(frozen=True)
class ReplacedTokens:
    """Settings of the objective; the defaults are the paper's.

    Attributes:
        discriminator_weight: Factor of the discriminator's loss; that of the generator's is 1.
        temperature: Divisor of the generator's logits before a token is drawn.
        share_embeddings: Whether the generator uses the discriminator's embeddings, all but their projection.
        seed: Seed of the drawn tokens.

    Raises:
        InputError: A value is out of range.
    """

    discriminator_weight: float = 50.0
    temperature: float = 1.0
    share_embeddings: bool = True
    seed: int = 0

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
) -> dict[str, tuple[Array, Array, float]]:
    """Return the terms of the loss of a batch: ``generator_loss``, over masked tokens, and ``discriminator_loss``, over all.

    Args:
        ops: ``tfnlp.ops`` or ``jaxnlp.ops``.
        losses: ``tfnlp.losses`` or ``jaxnlp.losses``.
        settings: Settings of the objective.
        generator: Token ids int [B, T] -> logits [B, T, V].
        discriminator: Token ids int [B, T] -> logits [B, T], positive for replaced tokens.
        batch: ``input_ids`` int [B, T] with masked tokens, ``labels`` int [B, T] (the original tokens where they are masked and
            -100 elsewhere), and optionally ``attention_mask`` [B, T] and :data:`duonlp.heads.ROW_MASK`.

    Returns:
        {name: (sum, count, factor)}; the loss is the total of factor * sum / count.
    """
    ids, labels, attended = batch["input_ids"], batch["labels"], batch.get("attention_mask")
    if batch.get(ROW_MASK) is not None:
        rows = ops.expand_dims(ops.cast(batch[ROW_MASK], "bool"), 1)  # [B, 1]
        labels = ops.where(rows, labels, IGNORED)
        attended = rows & (ids == ids if attended is None else ops.cast(attended, "bool"))
    logits = generator(ids)  # [B, T, V]
    total, count = losses.cross_entropy_sum(logits, labels)
    drawn = draw_tokens(ops, ops.stop_gradient(logits), ids, settings.temperature, settings.seed)
    is_masked = labels != IGNORED
    original = ops.where(is_masked, labels, ids)
    corrupted = ops.where(is_masked, drawn, ids)
    is_replaced = ops.cast(corrupted != original, "int32")
    found, tokens = losses.binary_cross_entropy_sum(discriminator(corrupted), is_replaced, attended)
    return {
        f"{GENERATOR}_loss": (total, count, 1.0),
        f"{DISCRIMINATOR}_loss": (found, tokens, settings.discriminator_weight),
    }


def mask_unlabeled_rows(ops: Ops, batch: Batch) -> dict[str, Array]:
    """Return a batch to evaluate, with a row mask that leaves out rows without labels: they fill up held-out batches."""
    labeled = ops.any(batch["labels"] != IGNORED, axis=1)  # [B]
    return {**batch, ROW_MASK: ops.cast(labeled, "int32")}


def draw_tokens(ops: Ops, logits: Array, input_ids: Array, temperature: float = 1.0, seed: int = 0) -> Array:
    """Draw a token from softmax(logits / temperature) at each position, by inverting the cumulative distribution.

    The random number of a position depends on the ids of its row, its column and the seed alone: not on the row's place in the
    batch, so that devices, hosts and microbatches draw what one device would. Masking differs between epochs, and so do draws.

    Args:
        ops: duonlp.numpy_ops, or an engine's ops module.
        logits: [B, T, V].
        input_ids: int [B, T], what the logits were computed from.
        temperature: Divisor of the logits.
        seed: Seed of the draws.

    Returns:
        int32 [B, T].
    """
    columns = ops.expand_dims(ops.arange(ops.size(input_ids, 1)), 0)  # [1, T]
    odd, ids = 2 * columns + 1, ops.cast(input_ids, "int32")
    # Hashes of the rows [B, 1]: sums of ids times odd numbers, modulo 2**32.
    hashes = [ops.cast(ops.sum(ids * (odd * factor), axis=1, keepdims=True), "uint32") for factor in HASH_FACTORS]
    key = ops.bit_xor(hashes[0], ops.cast(seed, "uint32")), hashes[1]
    counter = [ops.cast(part + 0 * ids, "uint32") for part in (columns, 0)]  # [B, T]
    bits, _ = threefry2x32(ops, key, counter)
    # 23 bits plus one half: strictly between 0 and 1, and exact in float32
    uniform = (ops.cast(ops.cast(ops.shift_right(bits, 9), "int32"), "float32") + 0.5) * 2.0**-23  # [B, T]
    cumulative = ops.cumsum(ops.exp(ops.log_softmax(ops.cast(logits, "float32") / temperature)))  # [B, T, V]
    threshold = ops.expand_dims(uniform, -1) * cumulative[..., -1:]  # the total differs from 1 by rounding
    return ops.minimum(ops.sum(ops.cast(cumulative <= threshold, "int32"), axis=-1), ops.size(logits, 2) - 1)


def check_generator(discriminator: Any, generator: Any) -> None:
    """Raise InputError unless two models have the heads and the vocabulary of a discriminator and its generator."""
    heads, expected = (discriminator.head, generator.head), ("replaced-token-detection", "masked-lm")
    if heads != expected:
        raise InputError(f"the discriminator and the generator have the heads {heads}; they must be {expected}")
    sizes = [model.config.embedding.vocab_size for model in (discriminator, generator)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"the discriminator has a vocabulary of {sizes[0]} tokens and the generator one of {sizes[1]}; use one tokenizer"
        )


def shared_embeddings(
    settings: ReplacedTokens, discriminator: TransformerConfig, generator: TransformerConfig
) -> tuple[str, ...]:
    """Return the names of the embedding layers that a generator shares with its discriminator; () if it shares none.

    Raises:
        InputError: The embeddings differ in size or kind.
    """
    if not settings.share_embeddings:
        return ()
    first, second = (
        {
            path: parameter.shape
            for path, parameter in parameters(config).items()
            if path.startswith("embeddings/") and not path.startswith("embeddings/projection/")
        }
        for config in (discriminator, generator)
    )
    if first != second:
        different = sorted({path for path in {*first, *second} if first.get(path) != second.get(path)})
        raise InputError(
            f"the embeddings cannot be shared: {', '.join(different)} differ; give both models one embedding_size, or set "
            "share_embeddings to False"
        )
    return tuple(dict.fromkeys(path.split("/")[1] for path in first))
