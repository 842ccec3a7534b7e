"""Batch documents and summaries for an encoder-decoder: tokenized once, padded to a few lengths, shuffled."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from duonlp.data.pairs.collator import SHORTEST, PairCollator, token_ids
from duonlp.data.pairs.summaries import Pair
from duonlp.data.rows.length_batches import TOKENIZER_BATCH, LengthBatches, cache_key, load_or_build_rows
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder
from duonlp.errors import InputError

T = TypeVar("T")

CACHE_VERSION = 1


class PairBatches(LengthBatches):
    """Batches of pairs, epoch by epoch, with random access by seed, epoch and batch number.

    Each epoch contains every pair once, in its own order. Pairs of similar length are batched together (shuffled pairs
    are sorted within pools of 64 batches, then the batches are shuffled) and padded to one of a few lengths, none below a
    quarter of the longest, so there is little padding and few shapes are compiled. Every batch has `batch_size` rows; the
    last one is filled up with rows whose labels are all -100.

    Attributes:
        documents: Text of each document, in the order of the pairs.
        references: Tuple of all summaries of each document, in the order of the pairs.
        ids: Name of each pair.
        sources: Token ids of the documents, truncated as the collator specifies.
        targets: Token ids of the summaries, truncated as the collator specifies.
    """

    row_noun = "pairs"

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
        """Tokenize all pairs.

        Args:
            pairs: Pairs such as those from `read_pairs`; iterated over once.
            collator: Tokenizes and pads.
            batch_size: Global batch size, over all hosts.
            seed: Seed of the order, in [0, 2**64).
            shuffle: Whether each epoch has an order of its own. If False, every epoch has the pairs' order, which is what
                evaluation needs.
            drop_last: Whether to drop the incomplete last batch (different pairs in each epoch) instead of filling it up.
            texts: Whether to keep `documents` and `references`. Without them, only the token ids stay in memory.
            cache: Folder to cache the ids in; later runs memory-map them instead of tokenizing. The key is a hash of the
                texts, the tokenizer and the collator's lengths. All pairs are held in memory while they are hashed.
            host_index: Index of this host, which gets its share of each batch's rows. All hosts see the same shapes.
            host_count: Number of hosts.

        Raises:
            InputError: There are no pairs (or, with `drop_last`, too few for a batch), the collator rejects a pair, or a
                number is out of range.
        """
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        self.collator = collator
        self.ids: list[str] = []
        self._documents: list[str] | None = [] if texts else None
        self._references: list[tuple[str, ...]] | None = [] if texts else None
        if cache is None:
            self.sources, self.targets = self._tokenize(pairs)
        else:
            self.sources, self.targets = self._tokenize_cached(pairs, Path(cache))
        self.check_count()
        self._widths = self._padded_widths()

    @property
    def documents(self) -> list[str]:
        """Documents, in the order of the pairs."""
        return self._require_texts(self._documents)

    @property
    def references(self) -> list[tuple[str, ...]]:
        """All summaries of each document, in the order of the pairs."""
        return self._require_texts(self._references)

    def epoch(self, number: int, first: int = 0) -> Iterator[dict[str, np.ndarray]]:
        """Yield the batches of an epoch.

        Args:
            number: Number of the epoch, from 0.
            first: Batch to start from, to resume within an epoch.

        Returns:
            An iterator over dicts of int32 arrays: input_ids and attention_mask [B, S], decoder_input_ids and labels
            [B, T], where B is batch_size / host_count.

        Raises:
            InputError: The epoch or the batch does not exist.
        """
        return super().epoch(number, first)

    @property
    def _count(self) -> int:
        return len(self.sources)

    def _padded_widths(self) -> np.ndarray:
        """Return the widths that each row alone is padded to, int64 [2, pairs]; a batch takes the maximum of its rows."""
        lengths = np.stack([self.sources.lengths, self.targets.lengths])  # [2, pairs]
        # Shapes for very short rows take as long to compile as others and save little.
        longest_source, longest_target = lengths.max(axis=1).tolist()
        least = (max(SHORTEST, longest_source // 4), max(SHORTEST, longest_target // 4))
        padded = np.empty_like(lengths)
        for side in (0, 1):
            unique, inverse = np.unique(lengths[side], return_inverse=True)
            widths = [self.collator.widths(length, length, least)[side] for length in unique.tolist()]
            padded[side] = np.array(widths)[inverse]
        return padded

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort((self.sources.lengths[rows], self._widths[1, rows], self._widths[0, rows]))]

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        widths = tuple(self._widths[:, batch].max(axis=1).tolist())
        return self.collator.batch(self.sources, self.targets, rows, widths)

    def _require_texts(self, texts: list[T] | None) -> list[T]:
        if texts is None:
            raise InputError("the batches were made with texts=False; make them with texts=True to keep the texts")
        return texts

    def _collect_texts(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield the pairs, keeping their ids and, if requested, their texts."""
        for pair in pairs:
            self.ids.append(pair.id)
            if self._documents is not None and self._references is not None:
                self._documents.append(pair.document)
                self._references.append(pair.summaries)
            yield pair

    def _tokenize(self, pairs: Iterable[Pair]) -> tuple[TokenRows, TokenRows]:
        sources, targets = TokenRowsBuilder(), TokenRowsBuilder()
        stream, first = self._collect_texts(pairs), 0
        while chunk := list(itertools.islice(stream, TOKENIZER_BATCH)):
            for source, target in zip(*self.collator.encode(chunk, first), strict=True):
                sources.add(source)
                targets.add(target)
            first += len(chunk)
        return sources.build(), targets.build()

    def _tokenize_cached(self, pairs: Iterable[Pair], cache: Path) -> tuple[TokenRows, TokenRows]:
        pairs = list(pairs)
        if not pairs:
            return self._tokenize(pairs)  # check_count raises

        def tokenize() -> tuple[TokenRows, TokenRows]:
            return self._tokenize(pairs)

        sources, targets = load_or_build_rows(
            cache / _cache_key(pairs, self.collator), ("sources", "targets"), len(pairs), tokenize, self.row_noun
        )
        if not self.ids:  # nothing was tokenized
            for _ in self._collect_texts(pairs):
                pass
        return sources, targets


def _cache_key(pairs: Sequence[Pair], collator: PairCollator) -> str:
    """Return a name that changes with everything that the ids depend on."""
    tokenizer = collator.tokenizer
    probes = [token_ids(tokenizer, ["a"], targets=targets) for targets in (False, True)]  # special tokens, languages
    settings = [
        CACHE_VERSION, tokenizer_hash(tokenizer), probes, tokenizer.truncation_side, collator.prefix,
        collator.source_limit, collator.max_target_length,
    ]  # fmt: skip
    return cache_key(settings, ([pair.document, pair.summaries[:1]] for pair in pairs))
