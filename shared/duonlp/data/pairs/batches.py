"""Batches of documents and summaries for an encoder-decoder: tokenised once, padded to a few lengths, in a shuffled order."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from duonlp.data.pairs.collator import SHORTEST, PairCollator, token_ids
from duonlp.data.pairs.summaries import Pair
from duonlp.data.rows.length_batches import TOKENIZER_BATCH, LengthBatches, cache_key, load_or_build_rows
from duonlp.data.rows.manifest import tokenizer_hash
from duonlp.data.rows.token_rows import TokenRows, TokenRowsBuilder
from duonlp.errors import InputError

CACHE_VERSION = 1


class PairBatches(LengthBatches):
    """The batches of pairs, epoch by epoch: any batch of any epoch from the seed and two numbers.

    Each epoch has every pair once, in an order of its own. Pairs of like lengths come together (shuffled pairs are sorted
    within pools of 64 batches, and the batches shuffled), and lengths are padded to a few, none less than a quarter of the
    longest, so that little is padding and few shapes are compiled. Every batch has `batch_size` rows: the last one is filled
    up with rows whose labels are all -100.

    Attributes:
        documents, references, ids: of the pairs, in their order: the texts, tuples of all their summaries, and names.
        sources, targets: `TokenRows`, cut as the collator says.
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
        super().__init__(batch_size, seed, shuffle, drop_last, host_index, host_count)
        self.collator = collator
        self.ids: list[str] = []
        self._documents: list[str] | None = [] if texts else None
        self._references: list[tuple[str, ...]] | None = [] if texts else None
        self.sources, self.targets = self._cached(pairs, Path(cache)) if cache is not None else self._tokenised(pairs)
        self.check_count()
        self._widths = self._padded_widths()

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
        return super().epoch(number, first)

    @property
    def _count(self) -> int:
        return len(self.sources)

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

    def _sort_by_length(self, rows: np.ndarray) -> np.ndarray:
        return rows[np.lexsort((self.sources.lengths[rows], self._widths[1, rows], self._widths[0, rows]))]

    def _collate(self, rows: np.ndarray, batch: np.ndarray) -> dict[str, np.ndarray]:
        widths = tuple(self._widths[:, batch].max(axis=1).tolist())
        return self.collator.batch(self.sources, self.targets, rows, widths)

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
        while some := list(itertools.islice(taken, TOKENIZER_BATCH)):
            for source, target in zip(*self.collator.encode(some, first), strict=True):
                sources.add(source)
                targets.add(target)
            first += len(some)
        return sources.build(), targets.build()

    def _cached(self, pairs: Iterable[Pair], cache: Path) -> tuple[TokenRows, TokenRows]:
        pairs = list(pairs)
        if not pairs:
            return self._tokenised(pairs)  # nothing to keep, as the caller finds

        def tokenised():
            return self._tokenised(pairs)

        rows = load_or_build_rows(
            cache / _key(pairs, self.collator), ("sources", "targets"), len(pairs), tokenised, self.row_noun
        )
        if not self.ids:
            for _ in self._take(pairs):
                pass
        return rows


def _key(pairs: Sequence[Pair], collator: PairCollator) -> str:
    """A name that changes with everything that the ids depend on."""
    tokenizer = collator.tokenizer
    probes = [token_ids(tokenizer, ["a"], targets=targets) for targets in (False, True)]  # special tokens, languages
    settings = [
        CACHE_VERSION, tokenizer_hash(tokenizer), probes, tokenizer.truncation_side, collator.prefix,
        collator.source_limit, collator.max_target_length,
    ]  # fmt: skip
    return cache_key(settings, ([pair.document, pair.summaries[:1]] for pair in pairs))
