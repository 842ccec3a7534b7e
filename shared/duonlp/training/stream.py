"""Streams of training batches: each batch, what it counts for, and the position after it, which a checkpoint stores."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from duonlp.data.blocks.batches import Batches
from duonlp.errors import InputError
from duonlp.training.fit_loop import count_examples, describe_batches, endless_batches
from duonlp.training.generated import epoch_batches
from duonlp.typing import Batch, BatchStream

Position = Mapping[str, int]
"""Where a stream is; JSON-compatible."""


class Read(NamedTuple):
    """A batch read from a stream.

    Attributes:
        batch: Arrays [B, ...].
        count: Tokens or examples in it, over all hosts.
        ends_epoch: Whether it is the last of its epoch.
        position: Position of the next batch.
    """

    batch: Batch
    count: int
    ends_epoch: bool
    position: Position


class Stream(ABC):
    """Base of endless batches, the same from a given position on whenever they are read.

    Attributes:
        unit: What batches count: "tokens" or "examples".
        start: Position of the first batch.
    """

    unit: str
    start: Position

    @abstractmethod
    def read(self, position: Position, most: int) -> Iterator[Read]:
        """Return at most `most` batches from a position on."""

    @abstractmethod
    def epoch_before(self, position: Position) -> int:
        """Return the epoch, from 1, of the batch before a position."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return what identifies the data in run.json: a run can only be resumed on the same stream."""


class BlockStream(Stream):
    """Batches of blocks, addressed by step; each host reads its own rows.

    Args:
        batches: Batches of the run.
        read_ahead: ``(batches, first step, last step) -> batches``, which may prefetch; by default they are read in turn.
    """

    unit = "tokens"

    def __init__(self, batches: Batches, read_ahead: Callable[[Batches, int, int], Iterable[Batch]] | None = None):
        self.batches, self.start = batches, {"step": 0, "block": batches.first_block}
        self.read_ahead = read_ahead or (lambda batches, first, last: (batches[step] for step in range(first, last)))

    def read(self, position: Position, most: int) -> Iterator[Read]:
        """Return the batches of `most` steps from a position on."""
        first, tokens = position["step"], self.batches.batch_size * self.batches.blocks.block_length
        for step, batch in enumerate(self.read_ahead(self.batches, first, first + most), first):
            yield Read(batch, tokens, False, {"step": step + 1, "block": self.batches.next_block(step)})

    def epoch_before(self, position: Position) -> int:
        """Return the pass over the blocks, from 1, that the last block before a position belongs to."""
        return max(1, -(-position["block"] // len(self.batches.blocks)))

    def describe(self) -> dict[str, Any]:
        """Return what determines the batches."""
        batches, manifest = self.batches, self.batches.blocks.manifest
        names = ("block_length", "blocks", "documents_sha256", "tokenizer_hash", "segment_ids")
        return {name: getattr(manifest, name) for name in names} | {
            "objective": repr(batches.objective),
            "seed": batches.seed,
            "shuffle": batches.shuffle,
            "first_block": batches.first_block,
        }


class EpochStream(Stream):
    """Epochs of batches. Every host reads the same global batches and puts only its rows on its devices.

    Args:
        batches: An object with ``epoch(n)``, or an iterable that can be iterated over again.

    Raises:
        InputError: The batches are one host's share.
    """

    unit = "examples"

    def __init__(self, batches: BatchStream):
        host, hosts = getattr(batches, "hosts", (0, 1))
        if hosts > 1:
            raise InputError(
                f"the batches are the share of host {host} of {hosts}; make them with host_count=1, since every process reads "
                "whole batches and trains on its own rows"
            )
        self.batches, self.start = batches, {"epoch": 0, "batch": 0}

    def read(self, position: Position, most: int) -> Iterator[Read]:
        """Return at most `most` batches from a position on."""
        stream = endless_batches(self.batches, position["epoch"], position["batch"])
        for _, (epoch, index, batch, ends_epoch) in zip(range(most), stream):
            following = {"epoch": epoch + 1, "batch": 0} if ends_epoch else {"epoch": epoch, "batch": index + 1}
            yield Read(batch, count_examples(batch), ends_epoch, following)

    def first_epoch(self) -> Iterable[Batch]:
        """Return the batches of epoch 0, for evaluation."""
        return epoch_batches(self.batches)

    def epoch_before(self, position: Position) -> int:
        """Return the epoch, from 1, of the batch before a position."""
        return position["epoch"] + (position["batch"] > 0)

    def describe(self) -> dict[str, Any]:
        """Return the number of batches per epoch."""
        return describe_batches(self.batches)
