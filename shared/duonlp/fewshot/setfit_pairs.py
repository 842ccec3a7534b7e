"""Pairs of labeled texts for contrastive training, computed from their numbers, so that n texts need O(n) memory.

Pairs and sampling strategies are those of setfit 1.2's ContrastiveDataset (Tunstall et al. 2022,
https://arxiv.org/abs/2209.11055): of all unordered pairs of texts, each text with itself included, those with a label in
common are positive, and the others negative.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from duonlp.data.labelled.batches import TextInputs
from duonlp.data.labelled.texts import LabelledTexts
from duonlp.data.rows.length_batches import POOL
from duonlp.data.rows.order import SEED_LIMIT, check_seed, permuted
from duonlp.errors import InputError
from duonlp.heads import ROW_MASK
from duonlp.training.objectives.contrastive import SIMILARITY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

STRATEGIES = ("oversampling", "undersampling", "unique")

BLOCK = 256
"""Number of label sets that are compared with all others at a time."""


class PairSampler:
    """The positive and negative pairs of labeled texts, with random access by epoch and number.

    A pair is computed from its number, by arithmetic over the number of texts with each label (for multi-label texts, with each
    set of labels), so that memory is O(n). With S distinct sets of labels, preparing takes O(S^2) time.

    As in setfit, a multi-label text without any label has no positive pair: even with itself it is a negative one.

    Args:
        labels: int [n], one label per text; or [n, C], not 0 for each label of a text (multi-label).
        strategy: Pairs of an epoch. "unique" has every pair once. "oversampling" has as many positive as negative pairs, those of
            the rarer kind repeated. "undersampling" has as many, too, but only a part of the more frequent kind, another one in
            each epoch.
        iterations: Instead of a strategy, this number of positive and of negative pairs per text, as setfit's num_iterations.
        seed: Seed of the order, in [0, 2**64).

    Attributes:
        positives: Number of distinct positive pairs.
        negatives: Number of distinct negative pairs.
        drawn: Numbers of positive and of negative pairs in an epoch.

    Raises:
        InputError: The labels have another shape, a setting is invalid, or there are no positive or no negative pairs.
    """

    def __init__(
        self,
        labels: Sequence[int] | np.ndarray,
        strategy: str = "oversampling",
        *,
        iterations: int | None = None,
        seed: int = 0,
    ):
        labels = np.asarray(labels)
        if labels.ndim not in (1, 2) or not len(labels):
            raise InputError(
                f"labels have shape {list(labels.shape)}; they must be [n] or [n, C] for at least one text"
            )
        check_strategy(strategy, iterations)
        self.seed = check_seed(seed)
        self._group(labels)
        texts = len(labels)
        pairs = texts * (texts + 1) // 2
        self.positives = int(self._ends[True][-1])
        self.negatives = pairs - self.positives
        if not self.negatives:
            raise InputError(
                f"each of the {texts} texts has a label in common with every other, so there are no negative pairs; "
                "add texts with another label"
            )
        if not self.positives:
            raise InputError(
                f"none of the {texts} texts has a label, so there are no positive pairs; add texts with labels"
            )
        counts = self.positives, self.negatives
        choices = {"unique": counts, "oversampling": (max(counts),) * 2, "undersampling": (min(counts),) * 2}
        self.drawn = choices[strategy] if iterations is None else (iterations * texts,) * 2

    def __len__(self) -> int:
        """Return the number of pairs in an epoch."""
        return sum(self.drawn)

    def pairs(self, numbers: np.ndarray, epoch: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return pairs of an epoch by number.

        Args:
            numbers: Numbers in range(len(self)), int [m]. Where an epoch has as many positive as negative pairs, these alternate.
            epoch: Epoch, from 0; each has an order of its own.

        Returns:
            Indices of the first and of the second texts, int64 [m] each, and the similarity of each pair, float32 [m]: 1 for
            positive ones, else 0.
        """
        numbers = np.asarray(numbers, np.int64)
        if self.drawn[0] == self.drawn[1]:
            positive, ranks = numbers % 2 == 0, numbers // 2
        else:  # each pair once
            ranks = permuted(numbers, len(self), self.seed, epoch)
            positive = ranks < self.positives
            ranks = np.where(positive, ranks, ranks - self.positives)
        first, second = np.empty_like(numbers), np.empty_like(numbers)
        for kind, count in ((True, self.positives), (False, self.negatives)):
            rows = np.flatnonzero(positive == kind)
            seed = (self.seed + 1 + kind) % SEED_LIMIT
            shuffled = permuted(ranks[rows] % count, count, seed, epoch)
            first[rows], second[rows] = self._texts_of(shuffled, kind)
        return first, second, positive.astype(np.float32)

    def _group(self, labels: np.ndarray) -> None:
        """Sort the texts by their label, or set of labels, and count the pairs of each such group with itself and later ones."""
        if labels.ndim == 1:
            names, group = np.unique(labels, return_inverse=True)
            self._sets, has_labels = None, np.ones(len(names), bool)
        else:
            packed = np.ascontiguousarray(np.packbits(labels != 0, axis=1))
            rows = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0] if packed.shape[1] else np.zeros(len(labels))
            _, first, group = np.unique(rows, return_index=True, return_inverse=True)
            self._sets = (labels[first] != 0).astype(np.float32)  # [S, C]
            has_labels = self._sets.any(axis=1)
        self._order = np.argsort(group, kind="stable")
        self._sizes = np.bincount(group)  # [S]
        self._starts = np.cumsum(self._sizes) - self._sizes
        later = len(labels) - self._starts - self._sizes  # texts of later groups
        common = np.zeros(len(self._sizes), np.int64) if self._sets is None else self._count_common(self._sets)
        own = self._sizes * (self._sizes + 1) // 2
        # By kind of pair: pairs within each group, partners of each of its texts in later groups, and running sums of both.
        self._within = {True: np.where(has_labels, own, 0), False: np.where(has_labels, 0, own)}
        self._partners = {True: common, False: later - common}
        self._ends = {
            kind: np.cumsum(self._within[kind] + self._sizes * self._partners[kind]) for kind in (True, False)
        }

    def _count_common(self, sets: np.ndarray) -> np.ndarray:
        """Return the number of texts of later groups that have a label in common with those of each group, int64 [S].

        Args:
            sets: Labels of each group, float32 [S, C].
        """
        counts = []
        for start in range(0, len(self._sizes), BLOCK):
            rows = np.arange(start, min(start + BLOCK, len(self._sizes)))
            common = sets[rows] @ sets[start:].T > 0  # [rows, S - start]
            common &= np.arange(start, len(self._sizes)) > rows[:, None]
            counts.append(common @ self._sizes[start:])
        return np.concatenate(counts).astype(np.int64)

    def _texts_of(self, numbers: np.ndarray, positive: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return the two texts of each pair of a kind by its number among these."""
        ends, within, partners = self._ends[positive], self._within[positive], self._partners[positive]
        group = np.searchsorted(ends, numbers, side="right")
        offset = numbers - (ends - within - self._sizes * partners)[group]
        is_within = offset < within[group]
        # Pairs within a group are (i, j) with i <= j, in the order (0, 0), (0, 1), (1, 1), (0, 2), ...
        column = ((np.sqrt(8.0 * offset + 1) - 1) / 2).astype(np.int64)
        column -= column * (column + 1) // 2 > offset  # rounding
        column += (column + 1) * (column + 2) // 2 <= offset
        row, rank = np.divmod(offset - within[group], np.maximum(partners[group], 1))
        first = np.where(is_within, offset - column * (column + 1) // 2, row) + self._starts[group]
        second = np.where(is_within, self._starts[group] + column, self._partner(group, rank, positive, ~is_within))
        return self._order[first], self._order[second]

    def _partner(self, group: np.ndarray, rank: np.ndarray, positive: bool, needed: np.ndarray) -> np.ndarray:
        """Return the place of each pair's partner: the rank-th one in groups later than `group`."""
        places = self._starts[group] + self._sizes[group] + rank
        if self._sets is None:  # single-label: all texts of later groups are negative
            return places
        for number in np.unique(group[needed]):
            rows = np.flatnonzero(needed & (group == number))
            later = slice(number + 1, None)
            sizes = self._sizes[later] * ((self._sets[later] @ self._sets[number] > 0) == positive)
            ends = np.cumsum(sizes)
            partner = np.searchsorted(ends, rank[rows], side="right")
            places[rows] = self._starts[later][partner] + rank[rows] - (ends - sizes)[partner]
        return places


def check_strategy(strategy: str, iterations: int | None) -> None:
    """Raise InputError unless a strategy exists, and the number of iterations is None or positive."""
    if strategy not in STRATEGIES:
        raise InputError(f"strategy is {strategy!r}; it must be one of {', '.join(STRATEGIES)}")
    if iterations is not None and (isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1):
        raise InputError(f"iterations is {iterations!r}; it must be a positive integer, or None to use the strategy")


class ContrastiveBatches:
    """Batches of pairs of texts, epoch by epoch, with random access by seed, epoch and batch number.

    Texts are tokenized once and padded to one of a few lengths. Pairs of similar lengths are batched together, within pools of
    64 batches, if there are several lengths. The last batch is filled up with rows that count for nothing.

    A batch is a dict of arrays: the model's inputs, int32 [B, 2, T]; "similarity", float32 [B], 1 for pairs with a label in
    common and else 0; and "row_mask", int32 [B], 0 for rows that fill up the batch.

    Args:
        texts: Labeled texts.
        tokenizer: Tokenizer of the model.
        batch_size: Pairs per batch.
        strategy: See :class:`PairSampler`.
        iterations: See :class:`PairSampler`.
        max_length: Maximum number of tokens of a text, special tokens included; longer ones are truncated.
        widths: Lengths to pad to; by default the useful ones of duonlp.data.labelled.batches.WIDTHS.
        seed: Seed of the pairs' order.

    Attributes:
        sampler: The pairs.

    Raises:
        InputError: As of PairSampler; or a text has no tokens, or a number is out of range.
    """

    def __init__(
        self,
        texts: LabelledTexts,
        tokenizer: "PreTrainedTokenizerBase",
        batch_size: int,
        *,
        strategy: str = "oversampling",
        iterations: int | None = None,
        max_length: int,
        widths: Sequence[int] | None = None,
        seed: int = 0,
    ):
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise InputError(f"batch_size is {batch_size!r}; it must be a positive integer")
        self.batch_size, self.seed = int(batch_size), seed
        self.sampler = PairSampler(texts.labels, strategy, iterations=iterations, seed=seed)
        self._inputs = TextInputs("", tokenizer, texts.texts, max_length, widths, None)

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.sampler) // self.batch_size)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Return an iterator over the batches of an epoch.

        Args:
            number: Epoch, from 0.
            first: Index of the first batch to yield, for resuming within the epoch.

        Raises:
            InputError: The epoch is negative, or `first` is out of range.
        """
        if isinstance(number, bool) or number < 0:
            raise InputError(f"epoch is {number}; it must be a non-negative integer")
        if not 0 <= first <= len(self):
            raise InputError(f"first is {first}; it must be from 0 to {len(self)}, the number of batches in an epoch")
        return self._batches(number, first)

    def _batches(self, number: int, first: int) -> Iterator[dict[str, np.ndarray]]:
        for pool in range(first // POOL, -(-len(self) // POOL)):
            start = pool * POOL * self.batch_size
            pairs = self.sampler.pairs(np.arange(start, min(start + POOL * self.batch_size, len(self.sampler))), number)
            for rows in self._order(pairs, number, pool)[max(first - pool * POOL, 0) :]:
                yield self._collate(*(values[rows] for values in pairs))

    def _order(self, pairs: Sequence[np.ndarray], number: int, pool: int) -> list[np.ndarray]:
        """Return the rows of each batch of a pool of pairs."""
        size, count = self.batch_size, len(pairs[0])
        order, full = np.arange(count), count // size
        if len(self._inputs.widths) == 1 or not full:
            return [order[start : start + size] for start in range(0, count, size)]
        lengths = self._inputs.ids.lengths[np.stack(pairs[:2])].max(axis=0)
        order[: full * size] = np.argsort(lengths[: full * size], kind="stable")
        places = permuted(np.arange(full), full, (self.seed + 3) % SEED_LIMIT, number + (pool << 32))
        return [order[place * size :][:size] for place in places] + [order[full * size :]] * (full * size < count)

    def _collate(self, first: np.ndarray, second: np.ndarray, similarity: np.ndarray) -> dict[str, np.ndarray]:
        filling = self.batch_size - len(first)
        texts = np.pad(np.stack([first, second], axis=1), ((0, filling), (0, 0)), mode="edge")  # [B, 2]
        arrays = self._inputs.arrays(texts.ravel(), texts.ravel())
        return {name: values.reshape(*texts.shape, -1) for name, values in arrays.items()} | {
            SIMILARITY: np.pad(similarity, (0, filling)),
            ROW_MASK: (np.arange(self.batch_size) < len(first)).astype(np.int32),
        }
