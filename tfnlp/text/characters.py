"""Texts as flat tensors of code points.

A batch is one list of characters, however long its texts are, so that every step is a few vectorized operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class Characters(NamedTuple):
    """The characters of a batch, in order.

    Attributes:
        codes: int32 [C], code points.
        pieces: int32 [C], the piece of a text that each belongs to, ascending.
        starts: int32 [C], first character of the text that each stands for.
        ends: int32 [C], end of the characters that each stands for.
        first: bool [C], whether each begins a word.
    """

    codes: tf.Tensor
    pieces: tf.Tensor
    starts: tf.Tensor
    ends: tf.Tensor
    first: tf.Tensor

    def take(self, index: tf.Tensor) -> "Characters":
        """Return the characters at these indices, int32 [n]."""
        return Characters(*(tf.gather(column, index) for column in self))

    def keep(self, mask: tf.Tensor) -> "Characters":
        """Return the characters where mask, bool [C], is True."""
        return self.take(indices(mask))

    def with_piece_starts(self) -> "Characters":
        """Return the characters with ``first`` True where a piece begins, and nowhere else."""
        return self._replace(first=changes(self.pieces))

    def expand(self, lengths: tf.Tensor) -> tuple["Characters", tf.Tensor]:
        """Repeat each character ``lengths`` times, int32 [C].

        Returns:
            The characters [n], and the number of each one among the copies of one character, int32 [n].
        """
        rows = row_ids(lengths)
        return self.take(rows), places(lengths, rows)

    def insert_before(self, mask: tf.Tensor, code: int) -> "Characters":
        """Insert a character before those where mask, bool [C], is True; it begins the word, and stands for the same."""
        copies, within = self.expand(1 + tf.cast(mask, tf.int32))
        is_copy = within == 1
        inserted = shifted(is_copy, 1, False)
        return copies._replace(codes=tf.where(inserted, code, copies.codes), first=copies.first & ~is_copy)

    def words(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the words in UTF-8, string [W], and the first character of each, int32 [W]."""
        starts = indices(self.first)
        lengths = tf.concat([starts[1:], [tf.size(self.codes)]], 0)[: tf.size(starts)] - starts
        return tf.strings.unicode_encode(ragged(self.codes, lengths), "UTF-8"), starts

    def texts(self, count: tf.Tensor) -> tf.Tensor:
        """Return the texts of ``count`` pieces in UTF-8, string [count]."""
        lengths = tf.math.unsorted_segment_sum(tf.ones_like(self.pieces), self.pieces, count)
        return tf.strings.unicode_encode(ragged(self.codes, lengths), "UTF-8")


def decode(texts: tf.Tensor) -> Characters:
    """Return the characters of texts in UTF-8, string [B], of which each is a piece."""
    codes, lengths = code_points(texts)
    owners = row_ids(lengths)
    starts = places(lengths, owners)
    return Characters(codes, owners, starts, starts + 1, changes(owners))


def code_points(texts: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the code points of texts in UTF-8, string [B], int32 [C], and their numbers, int32 [B]."""
    codes = tf.strings.unicode_decode(texts, "UTF-8")
    return codes.flat_values, tf.cast(codes.row_lengths(), tf.int32)


def dense(
    values: tf.Tensor, lengths: tf.Tensor, fill: Any, columns: int | tf.Tensor | None = None, left: bool = False
) -> tf.Tensor:
    """Return values [n] of rows of these lengths, int32 [m], as [m, columns].

    Args:
        values: The values.
        lengths: Their numbers.
        fill: What to pad with.
        columns: Number of columns; None for that of the longest row.
        left: Whether to pad on the left.
    """
    columns = tf.reduce_max(tf.concat([lengths, [0]], 0)) if columns is None else columns
    rows = row_ids(lengths)
    place = places(lengths, rows)
    if left:
        place += columns - tf.gather(lengths, rows)
    empty = tf.fill([tf.size(lengths), columns], tf.constant(fill, values.dtype))
    return tf.tensor_scatter_nd_update(empty, tf.stack([rows, place], 1), values)


def indices(mask: tf.Tensor) -> tf.Tensor:
    """Return where a mask, bool [C], is True, int32 [n]."""
    return tf.cast(tf.where(mask)[:, 0], tf.int32)


def row_ids(lengths: tf.Tensor) -> tf.Tensor:
    """Return the row of each value of rows of these lengths, int32 [m] to [n]."""
    starts = tf.cumsum(lengths, exclusive=True)
    total = tf.reduce_sum(lengths)
    begun = tf.scatter_nd(tf.expand_dims(starts, 1), tf.ones_like(starts), tf.expand_dims(total + 1, 0))
    return tf.cumsum(begun)[:total] - 1


def places(lengths: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
    """Return the number of each value in its row, int32 [n], given ``row_ids(lengths)``."""
    return tf.range(tf.size(rows)) - tf.gather(tf.cumsum(lengths, exclusive=True), rows)


def interleaved(lengths: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return in which order to put the values of several parts so that those of row 0 come first, and so on.

    Args:
        lengths: int32 [m] for each part, number of its values in each row.

    Returns:
        int32 [n], indices of the concatenated values of the parts.
    """
    row_starts, before, targets = tf.cumsum(tf.add_n(lengths), exclusive=True), tf.zeros_like(lengths[0]), []
    for own in lengths:
        rows = row_ids(own)
        targets.append(tf.gather(row_starts + before, rows) + places(own, rows))
        before += own
    target = tf.concat(targets, 0)
    return tf.scatter_nd(tf.expand_dims(target, 1), tf.range(tf.size(target)), tf.expand_dims(tf.size(target), 0))


def ragged(values: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Return values [n] as rows of these lengths, int32 [m]."""
    splits = tf.concat([[0], tf.cumsum(tf.cast(lengths, tf.int64))], 0)
    rows: Any = tf.RaggedTensor
    return rows.from_row_splits(values, splits, validate=False)


def changes(values: tf.Tensor) -> tf.Tensor:
    """Return where values [C] differ from the previous ones, bool [C]; the first always does."""
    return tf.concat([tf.ones_like(values[:1], tf.bool), values[1:] != values[:-1]], 0)


def shifted(values: tf.Tensor, by: int, fill: int | bool) -> tf.Tensor:
    """Return the values [C] of the characters ``by`` places later (earlier if negative), and ``fill`` beyond the ends."""
    size = tf.size(values)
    padding = tf.fill([tf.minimum(abs(by), size)], tf.cast(fill, values.dtype))
    return tf.concat([values[by:], padding] if by > 0 else [padding, values[: tf.maximum(size + by, 0)]], 0)


FLAT = tf.TensorSpec([None], tf.int32).shape
"""The shape of lists, as an invariant of loops."""
