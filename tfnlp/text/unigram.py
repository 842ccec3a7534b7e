"""Unigram language models of subwords (Kudo 2018, https://arxiv.org/abs/1804.10959) as TensorFlow operations."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from tfnlp.text.characters import FLAT, changes, code_points, indices, places, row_ids, shifted
from tfnlp.text.subwords import Subwords, hash_table

UNKNOWN_PENALTY = 10.0
"""How much less likely than the least likely subword an unknown character is, as in SentencePiece."""

BRANCH = 1 << 21
"""A branch of the trie is stored under node x BRANCH + code point."""

LONGEST = 1 << 16
"""More characters than any subword has."""


class Unigram(tf.Module):
    """The most likely subwords of each word; of equally likely ones, those that begin earlier.

    Probabilities are summed in float64 from left to right, as the tokenizer does, so that ties are the same.

    Args:
        spec: The model in tokenizer.json.

    Raises:
        InputError: The model has no unknown token, or falls back to bytes.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        if spec.get("byte_fallback") or spec.get("unk_id") is None:
            what = "byte_fallback=True" if spec.get("byte_fallback") else "no unknown token"
            raise InputError(
                f"a Unigram model with {what} cannot be put in a graph; use one with an unknown token only"
            )
        vocabulary = spec["vocab"]
        self._unknown = int(spec["unk_id"])
        self._unknown_score = min(score for _, score in vocabulary) - UNKNOWN_PENALTY
        branches: dict[tuple[int, int], int] = {}
        ids, scores = [-1], [0.0]
        for number, (token, score) in enumerate(vocabulary):
            node = 0
            for character in token:
                node = branches.setdefault((node, ord(character)), len(ids))
                if node == len(ids):
                    ids.append(-1)
                    scores.append(0.0)
            if node:
                ids[node], scores[node] = number, score
        self._ids, self._scores = np.array(ids, np.int32), np.array(scores, np.float64)
        self._longest = max(len(token) for token, _ in vocabulary)
        keys = [node * BRANCH + code for node, code in branches]
        self._trie = hash_table(keys, list(branches.values()), -1, tf.int64)

    def __call__(self, words: tf.Tensor) -> Subwords:
        """Return the subwords of words, string [U]."""
        codes, sizes = code_points(words)
        lattice = self._lattice(codes, sizes)
        chosen = search(lattice)
        ends = path_ends(lattice, chosen)
        edges = tf.gather(chosen, ends)
        ids, owners = tf.gather(lattice.ids, edges), tf.gather(lattice.owners, ends)
        base = tf.gather(tf.cumsum(sizes + 1, exclusive=True), owners)  # first slot of the word
        begins, ends = tf.gather(lattice.starts, edges) - base, ends - base
        # Adjacent unknown characters are one token.
        unknown = ids == self._unknown
        first = ~(unknown & shifted(unknown, -1, False)) | changes(owners)
        run = tf.cumsum(tf.cast(first, tf.int32)) - 1
        begins, ends = tf.math.segment_min(begins, run), tf.math.segment_max(ends, run)
        ids, owners = tf.boolean_mask(ids, first), tf.boolean_mask(owners, first)
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(owners), owners, tf.size(words))
        return Subwords(ids, begins, ends, lengths)

    def _lattice(self, flat: tf.Tensor, sizes: tf.Tensor) -> "Lattice":
        """Return the lattice of words of ``sizes`` characters, int32 [U], with these code points, int32 [C]."""
        count, word_of = tf.size(flat), row_ids(sizes)
        columns = places(sizes, word_of)
        rest = tf.gather(sizes, word_of) - columns  # number of characters from each one on

        def step(length: tf.Tensor, active: tf.Tensor, nodes: tf.Tensor, begins: Any, found: Any, lengths: Any) -> Any:
            codes_here = tf.cast(tf.gather(flat, active + length - 1), tf.int64)
            nodes = self._trie.lookup(nodes * BRANCH + codes_here)
            active, nodes = tf.boolean_mask(active, nodes >= 0), tf.boolean_mask(nodes, nodes >= 0)
            is_subword = tf.gather(tf.constant(self._ids), nodes) >= 0
            own = tf.boolean_mask(active, is_subword)
            begins, found = begins.write(length - 1, own), found.write(length - 1, tf.boolean_mask(nodes, is_subword))
            lengths = lengths.write(length - 1, tf.fill(tf.shape(own), length))
            goes_on = tf.gather(rest, active) > length
            return length + 1, tf.boolean_mask(active, goes_on), tf.boolean_mask(nodes, goes_on), begins, found, lengths

        dtypes = tf.int32, tf.int64, tf.int32
        arrays = [
            tf.TensorArray(kind, 0, dynamic_size=True, infer_shape=False, element_shape=[None]) for kind in dtypes
        ]
        _, _, _, *arrays = tf.while_loop(
            lambda length, active, *_: (length == 1) | (tf.size(active) > 0),
            step,
            (tf.constant(1), tf.range(count), tf.zeros([count], tf.int64), *arrays),
            shape_invariants=(FLAT[:0], FLAT, FLAT, *(array.flow.shape for array in arrays)),
        )
        begins, nodes, lengths = (array.concat() for array in arrays)
        ids, scores = tf.gather(tf.constant(self._ids), nodes), tf.gather(tf.constant(self._scores), nodes)
        single = tf.expand_dims(tf.boolean_mask(begins, lengths == 1), 1)
        unknown = indices(tf.scatter_nd(single, tf.ones_like(single[:, 0]), tf.expand_dims(count, 0)) == 0)
        penalty = tf.constant(self._unknown_score, tf.float64)
        return sorted_lattice(
            columns, word_of, sizes,
            begins=tf.concat([begins, unknown], 0),
            lengths=tf.concat([lengths, tf.ones_like(unknown)], 0),
            ids=tf.concat([ids, tf.fill(tf.shape(unknown), self._unknown)], 0),
            scores=tf.concat([scores, tf.fill(tf.shape(unknown), penalty)], 0),
        )  # fmt: skip


class Lattice(NamedTuple):
    """Every subword of every word, by the column of its end, then by its end, then the longest first.

    A word of n characters has n + 1 slots, the places between them. Slots are numbered throughout the words.

    Attributes:
        starts: int32 [E], slot where each begins.
        ends: int32 [E], slot where it ends.
        ids: int32 [E].
        scores: float64 [E].
        owners: int32 [S], the word of each slot.
        splits: int32 [longest + 2], range of the subwords that end in each column.
    """

    starts: tf.Tensor
    ends: tf.Tensor
    ids: tf.Tensor
    scores: tf.Tensor
    owners: tf.Tensor
    splits: tf.Tensor


def sorted_lattice(
    columns: tf.Tensor, word_of: tf.Tensor, sizes: tf.Tensor, begins: tf.Tensor, lengths: tf.Tensor, ids: tf.Tensor,
    scores: tf.Tensor,
) -> Lattice:  # fmt: skip
    """Return the lattice of subwords in order.

    Args:
        columns: int32 [C], column of each character in its word.
        word_of: int32 [C], its word.
        sizes: int32 [U], number of characters of each word.
        begins: int32 [E], first character of each subword.
        lengths: int32 [E], number of its characters.
        ids: int32 [E].
        scores: float64 [E].
    """
    starts = begins + tf.gather(word_of, begins)
    ends, column = starts + lengths, tf.gather(columns, begins) + lengths
    wide = tf.cast(column, tf.int64) * tf.cast(tf.size(columns) + tf.size(sizes), tf.int64) + tf.cast(ends, tf.int64)
    order = tf.argsort(wide * LONGEST - tf.cast(lengths, tf.int64))
    starts, ends, ids, scores, column = (tf.gather(x, order) for x in (starts, ends, ids, scores, column))
    last = tf.reduce_max(tf.concat([column, [0]], 0))
    splits = tf.searchsorted(column, tf.range(last + 2))
    return Lattice(starts, ends, ids, scores, row_ids(sizes + 1), splits)


def search(lattice: Lattice) -> tf.Tensor:
    """Return, for each slot, the last subword of the most likely path to it, int32 [S] (Viterbi 1967)."""
    slots = tf.size(lattice.owners)
    target = tf.cumsum(tf.cast(changes(lattice.ends), tf.int32)) - 1  # subwords with one end are adjacent

    def step(column: tf.Tensor, best: tf.Tensor, chosen: tf.Tensor) -> tuple[tf.Tensor, ...]:
        low, high = lattice.splits[column], lattice.splits[column + 1]
        scores = lattice.scores[low:high] + tf.gather(best, lattice.starts[low:high])
        group = target[low:high] - target[low]
        highest = tf.math.segment_max(scores, group)
        index = tf.where(scores == tf.gather(highest, group), tf.range(low, high), high)
        winners = tf.math.segment_min(index, group)  # the longest of equally likely ones
        places = tf.expand_dims(tf.gather(lattice.ends, winners), 1)
        best = tf.tensor_scatter_nd_update(best, places, highest)
        return column + 1, best, tf.tensor_scatter_nd_update(chosen, places, winners)

    start = tf.constant(1), tf.zeros([slots], tf.float64), tf.zeros([slots], tf.int32)
    return tf.while_loop(lambda column, *_: column + 1 < tf.size(lattice.splits), step, start)[2]


def path_ends(lattice: Lattice, chosen: tf.Tensor) -> tf.Tensor:
    """Return the slots where the subwords of the most likely paths end, int32 [n], in order."""
    previous = tf.gather(lattice.starts, chosen)
    is_start = changes(lattice.owners)
    ends = indices(shifted(is_start, 1, True) & ~is_start)
    marks = tf.zeros_like(lattice.owners, tf.bool)

    def step(slots: tf.Tensor, marks: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        marks = tf.tensor_scatter_nd_update(marks, tf.expand_dims(slots, 1), tf.ones_like(slots, tf.bool))
        slots = tf.gather(previous, slots)
        return tf.boolean_mask(slots, ~tf.gather(is_start, slots)), marks

    _, marks = tf.while_loop(lambda slots, _: tf.size(slots) > 0, step, (ends, marks), shape_invariants=(FLAT, FLAT))
    return indices(marks)
