"""Batches of blocks, prefetched by grain."""

from collections.abc import Iterator
from types import ModuleType

import numpy as np

from duonlp.data.blocks.batches import Batches
from duonlp.errors import MissingExtraError


def import_grain() -> ModuleType:
    """Return the grain module; raise MissingExtraError if it is not installed."""
    try:
        import grain
    except ImportError as error:
        raise MissingExtraError('pretraining requires grain; install it with pip install "duonlp[pretrain]"') from error
    return grain


class _Steps:
    """Grain's random-access source of the batches of steps `first` to before `last`: item i is step first + i."""

    def __init__(self, batches: Batches, first: int, last: int):
        self.batches, self.first, self.last = batches, first, last

    def __len__(self) -> int:
        return max(0, self.last - self.first)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.batches[self.first + index]


def read_ahead(
    batches: Batches, first: int, last: int, *, threads: int = 2, ahead: int = 4
) -> Iterator[dict[str, np.ndarray]]:
    """Return an iterator over this host's batches of the steps from `first` to before `last`, counted from 0.

    `threads` read `ahead` batches. A batch depends on its step alone, so the step is all the input state that a checkpoint
    needs: on resume no batch is skipped or repeated, however far the threads have read ahead.

    Raises:
        MissingExtraError: grain is not installed.
    """
    grain = import_grain()
    if first >= last:
        return iter(())
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
    return iter(grain.MapDataset.source(_Steps(batches, first, last)).to_iter_dataset(options))
