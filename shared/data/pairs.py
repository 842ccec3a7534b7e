"""Batches of documents and summaries for an encoder-decoder: tokenised once, padded to a few lengths, in a shuffled order."""

import hashlib
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from shared.data.manifest import tokenizer_hash
from shared.data.order import MOST_SEED, check_seed, permuted
from shared.data.pair_collator import SHORTEST, PairCollator, token_ids
from shared.data.summaries import Pair
from shared.data.token_rows import TokenRows, TokenRowsBuilder
from shared.errors import InputError

TOKENISED_TOGETHER = 1024  # pairs
POOL = 64
"""Batches' worth of shuffled pairs that are sorted by length before they are cut into batches."""

CACHE_VERSION = 1


class PairBatches:
    """The batches of pairs, epoch by epoch: any batch of any epoch from the seed and two numbers.

    Each epoch has every pair once, in an order of its own. Pairs of like lengths come together (shuffled pairs are sorted
    within pools of 64 batches, and the batches shuffled), and lengths are padded to a few, none less than a quarter of the
    longest, so that little is padding and few shapes are compiled. Every batch has `batch_size` rows: the last one is filled
    up with rows whose labels are all -100.

    Attributes:
        documents, references, ids: of the pairs, in their order: the texts, tuples of all their summaries, and names.
        sources, targets: `TokenRows`, cut as the collator says.
    """

    def __init__(
        self,
        pairs: Iterable[Pair],
        collator: PairCollator,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        texts: bool = True,
        cache: str | Path | None = None,
        host_index: int = 0,
        host_count: int = 1,
    ):
        """Tokenises all pairs.

        Args:
            pairs: read once, as a stream; such as `read_pairs` gives.
            collator: what tokenises and pads.
            batch_size: rows of the batch, over all hosts.
            seed: decides the order; from 0 to 2**64 - 1.
            shuffle: False: the pairs' own order, each epoch, as evaluation wants it.
            drop_last: leave out the pairs that fill no batch, others in each epoch, rather than fill it up.
            texts: keep `documents` and `references`. Without them a large dataset takes its tokens' memory alone.
            cache: a folder that the ids are kept in, and mapped into memory from: the next time nothing is tokenised. What
                is kept goes by a hash of the texts, the tokenizer and the collator's lengths. (A stream is held in memory
                while it is hashed.)
            host_index: which host this is; it gets its share of each batch's rows, in shapes that all hosts agree on.
            host_count: how many hosts there are.

        Raises:
            InputError: there are no pairs (or, with `drop_last`, not enough for a batch), the collator refuses one, or a
                number is out of range.
        """
        if host_count < 1 or not 0 <= host_index < host_count:
            raise InputError(f"host_index is {host_index} of {host_count} hosts; it must be from 0 to host_count - 1")
        if not isinstance(batch_size, (int, np.integer)) or batch_size < 1 or batch_size % host_count:
            raise InputError(
                f"batch_size is {batch_size}, over {host_count} hosts; it must be a multiple of the hosts, from 1 on"
            )
        self.collator = collator
        self.batch_size = int(batch_size)
        self.seed = check_seed(seed)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.hosts = host_index, host_count
        self.ids: list[str] = []
        self._documents: list[str] | None = [] if texts else None
        self._references: list[tuple[str, ...]] | None = [] if texts else None
        self.sources, self.targets = self._cached(pairs, Path(cache)) if cache is not None else self._tokenised(pairs)
        if not len(self.sources):
            raise InputError("there are no pairs to make batches of; look at what was read")
        self._widths = self._padded_widths()
        if not len(self):
            raise InputError(
                f"batch_size is {batch_size} and there are {len(self.sources)} pairs; with drop_last there is no batch: take "
                "a smaller one"
            )

    def __len__(self) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(len(self.sources), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    @property
    def documents(self) -> list[str]:
        """The documents, in the pairs' order."""
        return self._kept(self._documents)

    @property
    def references(self) -> list[tuple[str, ...]]:
        """All the summaries of each document, in the pairs' order."""
        return self._kept(self._references)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yields an epoch's batches, from its batch `first` on: where a run that was stopped goes on.

        Returns:
            Dicts of int32 arrays: input_ids, attention_mask [B, S], decoder_input_ids, labels [B, T]; B is
            batch_size / host_count.

        Raises:
            InputError: there is no such epoch or batch.
        """
        order = self.order(number)
        if not 0 <= first <= len(order):
            raise InputError(f"first is {first}; an epoch has {len(order)} batches, from 0 on")
        return map(self._batch, order[first:])

    def order(self, number: int) -> np.ndarray:
        """Which pair each row of each batch of an epoch is, int64 [len(self), batch_size]; -1 where one is filled up."""
        if isinstance(number, bool) or number < 0:
            raise InputError(f"the epoch is {number}; epochs begin at 0")
        count, size = len(self.sources), self.batch_size
        order = np.arange(count)
        if self.shuffle:
            order = permuted(order, count, self.seed, number)
            # What is left over is any pairs, not the longest of a pool.
            order = np.concatenate(
                [*map(self._sorted, _pools(order[: count - count % size], POOL * size)), order[count - count % size :]]
            )
        filled = np.full(-(-count // size) * size, -1, np.int64)
        filled[:count] = order
        batches = filled.reshape(-1, size)
        whole = count // size
        if self.shuffle and whole:
            places = permuted(np.arange(whole), whole, (self.seed + 1) % MOST_SEED, number)
            batches[:whole] = batches[places]
        return batches[: len(self)]

    def _padded_widths(self) -> np.ndarray:
        """What each row of sources and of targets is padded to by itself, int64 [2, pairs]; a batch goes by the widest."""
        lengths = np.stack([self.sources.lengths, self.targets.lengths])
        # Shapes of short rows cost as much to compile as those of long ones, and save little: there are none of them.
        least = tuple(max(SHORTEST, longest // 4) for longest in lengths.max(axis=1).tolist())
        found = np.empty_like(lengths)
        for side in (0, 1):
            different, inverse = np.unique(lengths[side], return_inverse=True)
            widths = [self.collator.widths(length, length, least)[side] for length in different.tolist()]
            found[side] = np.array(widths)[inverse]
        return found

    def _sorted(self, pool: np.ndarray) -> np.ndarray:
        return pool[np.lexsort((self.sources.lengths[pool], self._widths[1, pool], self._widths[0, pool]))]

    def _batch(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        real = rows[rows >= 0]
        widths = tuple(self._widths[:, real].max(axis=1).tolist())
        host, hosts = self.hosts
        share = len(rows) // hosts
        mine = rows[host * share : (host + 1) * share]
        if mine[0] < 0:  # nothing but what fills up: it repeats another host's row
            batch = self.collator.batch(self.sources, self.targets, np.concatenate([real[:1], mine]), widths)
            return {name: values[1:] for name, values in batch.items()}
        return self.collator.batch(self.sources, self.targets, mine, widths)

    def _kept(self, texts: list | None) -> list:
        if texts is None:
            raise InputError("the texts were not kept (texts=False); make the batches with texts=True")
        return texts

    def _take(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        for pair in pairs:
            self.ids.append(pair.id)
            if self._documents is not None:
                self._documents.append(pair.document)
                self._references.append(pair.summaries)
            yield pair

    def _tokenised(self, pairs: Iterable[Pair]) -> tuple[TokenRows, TokenRows]:
        sources, targets = TokenRowsBuilder(), TokenRowsBuilder()
        taken, first = self._take(pairs), 0
        while some := list(itertools.islice(taken, TOKENISED_TOGETHER)):
            for source, target in zip(*self.collator.encode(some, first), strict=True):
                sources.add(source)
                targets.add(target)
            first += len(some)
        return sources.build(), targets.build()

    def _cached(self, pairs: Iterable[Pair], cache: Path) -> tuple[TokenRows, TokenRows]:
        pairs = list(pairs)
        folder = cache / _key(pairs, self.collator)
        try:
            rows = _opened(folder, len(pairs))
        except InputError:
            self._write(pairs, folder)
            return _opened(folder, len(pairs))
        for _ in self._take(pairs):
            pass
        return rows

    def _write(self, pairs: list[Pair], folder: Path) -> None:
        """Writes the ids under another name, which is changed once all are there; what is damaged gives way."""
        sources, targets = self._tokenised(pairs)
        if not len(sources):
            raise InputError("there are no pairs to make batches of; look at what was read")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            sources.save(partial, "sources")
            targets.save(partial, "targets")
            shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(partial, folder)
            except OSError:
                if not folder.is_dir():  # another process has just put the same there
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _pools(order: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (order[start : start + size] for start in range(0, len(order), size))


def _opened(folder: Path, count: int) -> tuple[TokenRows, TokenRows]:
    rows = TokenRows.open(folder, "sources"), TokenRows.open(folder, "targets")
    if {len(each) for each in rows} != {count}:
        raise InputError(f"{str(folder)!r} has not the ids of {count} pairs; remove it")
    return rows


def _key(pairs: Sequence[Pair], collator: PairCollator) -> str:
    """A name that changes with everything that the ids depend on."""
    tokenizer = collator.tokenizer
    probes = [token_ids(tokenizer, ["a"], targets=targets) for targets in (False, True)]  # special tokens, languages
    settings = [
        CACHE_VERSION, tokenizer_hash(tokenizer), probes, tokenizer.truncation_side, collator.prefix,
        collator.source_limit, collator.max_target_length,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(settings).encode())
    for pair in pairs:
        digest.update(json.dumps([pair.document, pair.summaries[:1]]).encode())
    return digest.hexdigest()[:32]
