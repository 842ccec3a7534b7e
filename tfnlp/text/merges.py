"""Byte pair encoding (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909) as TensorFlow operations."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from tfnlp.text.characters import FLAT, changes, indices, places, row_ids, shifted
from tfnlp.text.subwords import Subwords, byte_values, hash_table, in_characters, string_table

NEVER = np.int64(2**62)
"""Rank of pairs that are not merged."""

CONTENT = 1 << 32
"""A merge is stored as rank x CONTENT + id of the result."""


def byte_letters() -> list[str]:
    """Return the letters that stand for the bytes 0 to 255 in GPT-2's vocabulary."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


class BytePairs(tf.Module):
    """Merge pairs of adjacent symbols, the pair of the lowest rank first, from left to right.

    The words of a batch are one list of symbols; each round merges, in every word, the pair of its lowest rank.

    Args:
        spec: The model in tokenizer.json, whose vocabulary is that of bytes (ByteLevel).

    Raises:
        InputError: The model has options that cannot be put in a graph.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        unsupported = {
            name: spec.get(name) for name in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout")
            if spec.get(name)
        }  # fmt: skip
        vocabulary = spec["vocab"]
        letters = byte_letters()
        missing = [letter for letter in letters if letter not in vocabulary]
        if missing and spec.get("unk_token") is not None:
            unsupported["unk_token"] = spec["unk_token"]
        if unsupported:
            raise InputError(
                f"BPE with {unsupported} cannot be put in a graph; use a byte-level vocabulary without them"
            )
        self._symbols = np.array([vocabulary.get(letter, -1) for letter in letters], np.int32)
        self._ignores_merges = bool(spec.get("ignore_merges"))
        merges: dict[tuple[int, int], tuple[int, int]] = {}
        for rank, merge in enumerate(spec["merges"]):
            first, second = merge.split(" ") if isinstance(merge, str) else merge
            merges[vocabulary[first], vocabulary[second]] = rank, vocabulary[first + second]
        self._size = max(vocabulary.values(), default=0) + 1
        self._single = not is_ordered(merges)
        keys = [first * self._size + second for first, second in merges]
        self._merges = hash_table(keys, [rank * CONTENT + new for rank, new in merges.values()], int(NEVER), tf.int64)
        bytes_of = {letter: byte for byte, letter in enumerate(letters)}
        whole = {
            bytes(bytes_of[c] for c in token): number for token, number in vocabulary.items() if all(c in bytes_of for c in token)
        }  # fmt: skip
        self._words = string_table(whole)

    def __call__(self, words: tf.Tensor) -> Subwords:
        """Return the subwords of words, string [U]."""
        ids = tf.gather(tf.constant(self._symbols), byte_values(words))
        sizes = tf.strings.length(words)
        owners = row_ids(sizes)
        begins = places(sizes, owners)
        ends = begins + 1
        if self._ignores_merges:  # words of the vocabulary are left as they are
            whole = tf.gather(tf.cast(self._words.lookup(words), tf.int32), owners)
            ids = tf.where((whole >= 0) & (begins > 0), -1, tf.where(whole >= 0, whole, ids))
            ends = tf.where(whole >= 0, tf.gather(sizes, owners), ends)
        known = ids >= 0  # without an unknown token, unknown symbols are left out
        ids, owners, begins, ends = (tf.boolean_mask(x, known) for x in (ids, owners, begins, ends))
        pairs = self._pairs(ids, owners)
        ids, owners, begins, ends, _ = tf.while_loop(
            lambda *state: tf.reduce_any(state[-1] < NEVER),
            partial(self._merge, tf.size(words)),
            (ids, owners, begins, ends, pairs),
            shape_invariants=(FLAT,) * 5,
        )
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(owners), owners, tf.size(words))
        return in_characters(words, Subwords(ids, begins, ends, lengths))

    def _pairs(self, ids: tf.Tensor, owners: tf.Tensor) -> tf.Tensor:
        """Return the merge of each symbol with the next one of its word, int64 [n], or NEVER."""
        ids = tf.cast(ids, tf.int64)
        values = self._merges.lookup(ids * self._size + shifted(ids, 1, 0))
        return tf.where(shifted(changes(owners), 1, True), NEVER, values)

    def _merge(
        self, count: tf.Tensor, ids: tf.Tensor, owners: tf.Tensor, begins: tf.Tensor, ends: tf.Tensor, pairs: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Merge, in each word, the pair of the lowest rank wherever it is, or only where it is first."""
        lowest = tf.gather(tf.math.unsorted_segment_min(pairs, owners, count), owners)
        merges = (pairs == lowest) & (pairs < NEVER)
        # Of overlapping ones, as in "aaa", every second is merged.
        index = tf.range(tf.size(ids))
        begins_run = ~(merges & shifted(merges, -1, False)) | changes(owners)
        run = tf.gather(indices(begins_run), tf.cumsum(tf.cast(begins_run, tf.int32)) - 1)
        merges &= (index - run) % 2 == 0
        if self._single:
            first = tf.math.unsorted_segment_min(tf.where(merges, index, tf.size(ids)), owners, count)
            merges &= index == tf.gather(first, owners)
        ids = tf.where(merges, tf.cast(tf.math.floormod(pairs, CONTENT), tf.int32), ids)
        ends = tf.where(merges, shifted(ends, 1, 0), ends)
        keep = indices(~shifted(merges, -1, False))
        ids, owners, begins, ends = (tf.gather(x, keep) for x in (ids, owners, begins, ends))
        return ids, owners, begins, ends, self._pairs(ids, owners)


def is_ordered(merges: Mapping[tuple[int, int], tuple[int, int]]) -> bool:
    """Return whether no merge has a lower rank than one that creates a part of it, so that equal pairs may be merged at once."""
    latest: dict[int, int] = {}
    for rank, new in merges.values():
        latest[new] = max(rank, latest.get(new, -1))
    return all(
        rank > max(latest.get(first, -1), latest.get(second, -1)) for (first, second), (rank, _) in merges.items()
    )
