"""Batches of blocks, where the seed and the step alone determine a batch.

The training stream is all blocks in a shuffled order, then all of them in another order, and so on
without end. A position in the stream is one integer, which is the only data state a checkpoint needs.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from duonlp.data.rows.order import check_seed, permuted
from duonlp.errors import InputError
from duonlp.heads import IGNORED

if TYPE_CHECKING:
    from duonlp.data.blocks.reader import Blocks

Objective = Callable[[np.ndarray, np.ndarray | None, np.ndarray, int], dict[str, np.ndarray]]
"""(input_ids int32 [B, T], segment_ids int32 [B, T] or None, stream positions int64 [B], seed) -> batch of arrays."""


class Batches:
    """Endless batches of a training run: `batches[step]` for any step from 0 on.

    Each batch continues where the previous one ended, across epoch borders, so each epoch has every
    block once. Of the global batch of B rows, host h of H gets rows h * B / H to (h + 1) * B / H. So
    what a step trains on does not depend on the number of hosts, and a run can resume on a different number.

    Attributes:
        blocks: Blocks to read.
        objective: Turns blocks into inputs and labels.
        batch_size: Rows of the global batch.
        seed: Seed of the order and of the objective's draws.
        shuffle: Whether blocks are shuffled.
        host_index: Index of this host.
        host_count: Number of hosts.
        first_block: Stream position where step 0 begins.
    """

    def __init__(
        self,
        blocks: "Blocks",
        objective: Objective,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        host_index: int = 0,
        host_count: int = 1,
        first_block: int = 0,
    ):
        """Check the settings without reading any block.

        Args:
            blocks: Blocks from `open_blocks`.
            objective: Objective from `duonlp.data.objective`.
            batch_size: Rows of the global batch, over all hosts.
            seed: Seed of the order and of the objective's draws, in [0, 2**64).
            shuffle: Whether to shuffle blocks differently in each epoch; False keeps their order on disk.
            host_index: Index of this host.
            host_count: Number of hosts.
            first_block: Stream position where step 0 begins: the number of blocks that earlier runs consumed.

        Raises:
            InputError: If there are no blocks or fewer than `batch_size`, the batch is not divisible by
                the hosts, or a number is out of range.
        """
        _check(blocks, batch_size, host_index, host_count)
        if batch_size > len(blocks):
            raise InputError(
                f"batch_size is {batch_size} but there are only {len(blocks)} blocks, so that a batch would repeat a block; "
                "use a smaller batch, shorter blocks or more text"
            )
        if first_block < 0:
            raise InputError(f"first_block is {first_block}; it must be at least 0")
        self.blocks = blocks
        self.objective = objective
        self.batch_size = batch_size
        self.seed = check_seed(seed)
        self.shuffle = shuffle
        self.host_index = host_index
        self.host_count = host_count
        self.first_block = first_block

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Return this host's rows of a step's batch: `input_ids`, `labels`, ..., int32 [batch_size / host_count, T].

        Raises:
            InputError: If `step` is negative, or a block cannot be read.
        """
        positions = self.positions(step)
        rows = self.blocks.read(self.block_indices(positions))
        return self.objective(rows["input_ids"], rows.get("segment_ids"), positions, self.seed)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches from step 0 on, without end."""
        step = 0
        while True:
            yield self[step]
            step += 1

    def positions(self, step: int) -> np.ndarray:
        """Return the stream positions of this host's rows of a step, int64 [batch_size / host_count]."""
        if step < 0:
            raise InputError(f"step is {step}; it must be at least 0")
        rows = self.batch_size // self.host_count
        start = self.first_block + int(step) * self.batch_size + self.host_index * rows
        return np.arange(start, start + rows, dtype=np.int64)

    def block_indices(self, positions: np.ndarray) -> np.ndarray:
        """Return the index of the block at each stream position, int64 [n]."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), len(self.blocks))
        return permuted(places, len(self.blocks), self.seed, epochs) if self.shuffle else places

    def next_block(self, step: int) -> int:
        """Return the stream position after a step: the `first_block` of a run that resumes there."""
        if step < 0:
            raise InputError(f"step is {step}; it must be at least 0")
        return self.first_block + (int(step) + 1) * self.batch_size


class HeldOutBatches:
    """All blocks once, in order, as a finite sequence of batches.

    Attributes:
        blocks: Blocks to read.
        objective: Turns blocks into inputs and labels.
        batch_size: Rows of the global batch.
        seed: Seed of the objective's draws.
        host_index: Index of this host.
        host_count: Number of hosts.
    """

    def __init__(
        self,
        blocks: "Blocks",
        objective: Objective,
        batch_size: int,
        *,
        seed: int = 0,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """See `held_out_batches`, which takes the same arguments."""
        _check(blocks, batch_size, host_index, host_count)
        self.blocks = blocks
        self.objective = objective
        self.batch_size = batch_size
        self.seed = check_seed(seed)
        self.host_index = host_index
        self.host_count = host_count

    def __len__(self) -> int:
        return -(-len(self.blocks) // self.batch_size)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Return this host's rows of a batch, int32 [batch_size / host_count, T]; raise IndexError past the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} is out of range for {len(self)} batches")
        share = self.batch_size // self.host_count
        start = index * self.batch_size + self.host_index * share
        positions = np.arange(start, start + share, dtype=np.int64)
        # The last block fills up the last batch, with all labels ignored.
        filling = positions >= len(self.blocks)
        indices = np.minimum(positions, len(self.blocks) - 1)
        rows = self.blocks.read(indices)
        batch = self.objective(rows["input_ids"], rows.get("segment_ids"), positions, self.seed)
        if filling.any():
            batch["labels"] = np.where(filling[:, None], np.int32(IGNORED), batch["labels"])
        return batch


def held_out_batches(
    blocks: "Blocks",
    objective: Objective,
    batch_size: int,
    *,
    seed: int = 0,
    host_index: int = 0,
    host_count: int = 1,
) -> HeldOutBatches:
    """Return all blocks once, in order, for evaluation: the same batches with the same masks each time.

    Args:
        blocks: Blocks from `open_blocks`.
        objective: Objective from `duonlp.data.objective`.
        batch_size: Rows of the global batch, over all hosts. The last batch is filled up with rows
            whose labels are all -100, so that every batch has the same shape.
        seed: Seed of the objective's draws.
        host_index: Index of this host.
        host_count: Number of hosts.

    Returns:
        A sequence: `len()`, `[index]` and iteration give dicts of int32 [batch_size / host_count, T].

    Raises:
        InputError: If there are no blocks, the batch is not divisible by the hosts, or a number is out of range.
    """
    return HeldOutBatches(blocks, objective, batch_size, seed=seed, host_index=host_index, host_count=host_count)


def _check(blocks: "Blocks", batch_size: int, host_index: int, host_count: int) -> None:
    if len(blocks) == 0:
        raise InputError("there are no blocks to batch; write some text with write_blocks first")
    if host_count < 1 or not 0 <= host_index < host_count:
        raise InputError(f"host_index is {host_index} of host_count {host_count}; it must be from 0 to host_count - 1")
    if batch_size < 1 or batch_size % host_count:
        raise InputError(
            f"batch_size is {batch_size} for {host_count} hosts; it must be a multiple of the number of hosts, such as "
            f"{max(1, -(-batch_size // host_count)) * host_count}"
        )
