"""Documents packed end to end into blocks of one length, and batches of those blocks."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from shared.errors import InputError


def pack_blocks(documents: Iterable[Sequence[int]], block_length: int, separator_id: int) -> np.ndarray:
    """Joins documents with `separator_id` after each, and cuts the stream into blocks.

    Every position of every block is a real token, so that no arithmetic is spent on padding; the remainder that
    does not fill a block is dropped (GPT-2, Radford et al. 2019).

    Args:
        documents: token ids of each document.
        block_length: tokens in a block.
        separator_id: the id that ends a document.

    Returns:
        int32 [blocks, block_length].

    Raises:
        InputError: the documents together are shorter than one block.
    """
    if block_length < 2:
        raise InputError(
            f"block_length is {block_length}; it must be at least 2, since a block predicts its next token"
        )
    pieces = []
    for document in documents:
        pieces.append(np.asarray(document, dtype=np.int32))
        pieces.append(np.asarray([separator_id], dtype=np.int32))
    stream = np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int32)
    count = len(stream) // block_length
    if count == 0:
        raise InputError(
            f"{len(stream)} tokens do not fill one block of {block_length}; give more text or a smaller block_length"
        )
    return stream[: count * block_length].reshape(count, block_length)


def shuffled_batches(blocks: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields batches of blocks without end, each epoch in another order that `seed` decides.

    Args:
        blocks: int32 [blocks, length].
        batch_size: blocks in a batch. An epoch's last partial batch is left out.
        seed: the same seed gives the same batches.

    Yields:
        int32 [batch_size, length].

    Raises:
        InputError: there are fewer blocks than `batch_size`.
    """
    if not 0 < batch_size <= len(blocks):
        raise InputError(f"batch_size is {batch_size}; it must be from 1 to {len(blocks)}, the number of blocks")
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(len(blocks))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            yield blocks[order[start : start + batch_size]]
        epoch += 1
