"""Batches of blocks: any step's batch, from the seed and the step alone.

The training stream is all blocks in a shuffled order, then all of them in another order, without end. A position in
it is one whole number, which is all that a checkpoint needs to keep of the data.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from duonlp.data.objectives.language_modelling import IGNORED
from duonlp.data.rows.order import check_seed, permuted
from duonlp.errors import InputError

if TYPE_CHECKING:
    from duonlp.data.blocks.reader import Blocks

Objective = Callable[[np.ndarray, np.ndarray | None, np.ndarray, int], dict[str, np.ndarray]]


class Batches:
    """The batches of a training run, without end: `batches[step]` for any step from 0 on.

    A batch goes on where the last one ended, across the borders of epochs, so that each epoch has every block once. Of
    the global batch of B rows, host h of H has rows h x B / H to (h + 1) x B / H: what a step trains on does not depend
    on the number of hosts, and a run may go on with another number.
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
        """Reads nothing yet.

        Args:
            blocks: what `open_blocks` returns.
            objective: what `duonlp.data.objective` returns.
            batch_size: rows of the global batch, over all hosts.
            seed: decides the order and the objective's draws; from 0 to 2**64 - 1.
            shuffle: False: the blocks' own order, each epoch.
            host_index: which host this is.
            host_count: how many hosts there are.
            first_block: the position in the stream where step 0 begins: the blocks that earlier runs have consumed.

        Raises:
            InputError: there are no blocks or fewer than `batch_size`, the batch cannot be divided by the hosts, or a
                number is out of range.
        """
        _check(blocks, batch_size, host_index, host_count)
        if batch_size > len(blocks):
            raise InputError(
                f"batch_size is {batch_size} and there are {len(blocks)} blocks; a batch would hold a block twice: take "
                "a smaller batch, shorter blocks or more text"
            )
        if first_block < 0:
            raise InputError(f"first_block is {first_block}; a stream begins at 0")
        self.blocks = blocks
        self.objective = objective
        self.batch_size = batch_size
        self.seed = check_seed(seed)
        self.shuffle = shuffle
        self.host_index = host_index
        self.host_count = host_count
        self.first_block = first_block

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """Returns this host's rows of the step's batch: `input_ids`, `labels`, ..., int32 [batch_size / host_count, T].

        Raises:
            InputError: `step` is negative, or a block cannot be read.
        """
        positions = self.positions(step)
        rows = self.blocks.read(self.block_indices(positions))
        return self.objective(rows["input_ids"], rows.get("segment_ids"), positions, self.seed)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        """Yields the batches from step 0 on, without end."""
        step = 0
        while True:
            yield self[step]
            step += 1

    def positions(self, step: int) -> np.ndarray:
        """Returns where this host's rows of a step stand in the stream, int64 [batch_size / host_count]."""
        if step < 0:
            raise InputError(f"step is {step}; steps begin at 0")
        rows = self.batch_size // self.host_count
        start = self.first_block + int(step) * self.batch_size + self.host_index * rows
        return np.arange(start, start + rows, dtype=np.int64)

    def block_indices(self, positions: np.ndarray) -> np.ndarray:
        """Returns which block is at each position of the stream, int64 [n]."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), len(self.blocks))
        return permuted(places, len(self.blocks), self.seed, epochs) if self.shuffle else places

    def next_block(self, step: int) -> int:
        """Returns the position after a step: the `first_block` of a run that goes on after it."""
        if step < 0:
            raise InputError(f"step is {step}; steps begin at 0")
        return self.first_block + (int(step) + 1) * self.batch_size


class HeldOutBatches:
    """All blocks once, in order: a finite sequence of batches."""

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
        """As `held_out_batches`."""
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
        """Returns this host's rows of a batch, int32 [batch_size / host_count, T]; raises IndexError past the end."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        rows = self.batch_size // self.host_count
        start = index * self.batch_size + self.host_index * rows
        positions = np.arange(start, start + rows, dtype=np.int64)
        # What fills the last batch up is the last block again, with nothing to predict.
        filling = positions >= len(self.blocks)
        indices = np.minimum(positions, len(self.blocks) - 1)
        read = self.blocks.read(indices)
        batch = self.objective(read["input_ids"], read.get("segment_ids"), positions, self.seed)
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
    """Returns all blocks once, in order, for evaluation: the same batches, and the same masks, each time.

    Args:
        blocks: what `open_blocks` returns.
        objective: what `duonlp.data.objective` returns.
        batch_size: rows of the global batch, over all hosts. The last batch is filled up with rows whose labels are all
            -100, so that every batch has one shape.
        seed: of the objective's draws.
        host_index: which host this is.
        host_count: how many hosts there are.

    Returns:
        A sequence: `len()`, `[index]` and iteration give dicts of int32 [batch_size / host_count, T].

    Raises:
        InputError: there are no blocks, the batch cannot be divided by the hosts, or a number is out of range.
    """
    return HeldOutBatches(blocks, objective, batch_size, seed=seed, host_index=host_index, host_count=host_count)


def _check(blocks: "Blocks", batch_size: int, host_index: int, host_count: int):
    if len(blocks) == 0:
        raise InputError("there are no blocks to make batches of; prepare some text first (write_blocks)")
    if host_count < 1 or not 0 <= host_index < host_count:
        raise InputError(f"host_index is {host_index} of host_count {host_count}; it must be from 0 to host_count - 1")
    if batch_size < 1 or batch_size % host_count:
        raise InputError(
            f"batch_size is {batch_size}, over {host_count} hosts; it must be a multiple of the hosts, such as "
            f"{max(1, -(-batch_size // host_count)) * host_count}"
        )
