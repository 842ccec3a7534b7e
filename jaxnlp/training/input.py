"""Batches of blocks, read ahead of the training step with grain."""

from collections.abc import Iterator

import grain
import numpy as np

from duonlp.data.blocks.batches import Batches


class _Steps:
    """The batches of steps `first` to `last`, as grain's random access source: item i is that of step first + i."""

    def __init__(self, batches: Batches, first: int, last: int):
        self.batches, self.first, self.last = batches, first, last

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.batches[self.first + index]


def read_ahead(batches: Batches, first: int, last: int, *, threads: int = 2, ahead: int = 4) -> Iterator[dict]:
    """Yields this host's rows of the steps from `first` to before `last`, counted from 0.

    What a step reads depends on its number alone, so the state of the input is that number: it is saved with every
    checkpoint, and no batch is skipped or repeated, however far threads have read ahead.

    Args:
        threads: that read at the same time.
        ahead: batches held ready.

    Yields:
        dict of int32 [batch_size / host_count, T].
    """
    if first >= last:
        return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(_Steps(batches, first, last)).to_iter_dataset(options))
