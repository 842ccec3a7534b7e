"""Texts as flat tensors of code points, and tables over all code points.

A batch is one list of characters, however long its texts are, so that every step is a few vectorized operations.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

CODE_POINTS = 0x110000
PAGE = 256


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

    def take(self, indices: tf.Tensor) -> "Characters":
        """Return the characters with these indices, int32 [n]."""
        return Characters(*(tf.gather(column, indices) for column in self))

    def keep(self, mask: tf.Tensor) -> "Characters":
        """Return the characters where mask, bool [C], is True."""
        return self.take(tf.where(mask)[:, 0])

    def with_piece_starts(self) -> "Characters":
        """Return the characters with ``first`` True where a piece begins, and nowhere else."""
        return self._replace(first=changes(self.pieces))

    def expand(self, lengths: tf.Tensor) -> tuple["Characters", tf.Tensor]:
        """Repeat each character ``lengths`` times, int32 [C].

        Returns:
            The characters [n], and the number of each one among the copies of one character, int32 [n].
        """
        indices = tf.repeat(tf.range(tf.size(lengths)), lengths)
        within = tf.range(tf.size(indices)) - tf.gather(tf.cumsum(lengths, exclusive=True), indices)
        return self.take(indices), within

    def insert_before(self, mask: tf.Tensor, code: int) -> "Characters":
        """Insert a character before those where mask, bool [C], is True; it begins the word, and stands for the same."""
        copies, within = self.expand(1 + tf.cast(mask, tf.int32))
        has_inserted = tf.repeat(mask, 1 + tf.cast(mask, tf.int32))
        inserted = has_inserted & (within == 0)
        return copies._replace(
            codes=tf.where(inserted, code, copies.codes),
            first=copies.first & (~has_inserted | inserted),
        )

    def words(self) -> tf.RaggedTensor:
        """Return the code points of the words, int32 [W, None]."""
        return tf.RaggedTensor.from_row_starts(self.codes, tf.where(self.first)[:, 0], validate=False)


def decode(texts: tf.Tensor) -> Characters:
    """Return the characters of texts in UTF-8, string [B], of which each is a piece."""
    codes = tf.strings.unicode_decode(texts, "UTF-8")
    owners = tf.cast(codes.value_rowids(), tf.int32)
    starts = tf.range(tf.size(owners)) - tf.gather(tf.cast(codes.row_starts(), tf.int32), owners)
    return Characters(codes.flat_values, owners, starts, starts + 1, changes(owners))


def ragged(values: tf.Tensor, lengths: tf.Tensor) -> tf.RaggedTensor:
    """Return values [n] as rows of these lengths [m]."""
    return tf.RaggedTensor.from_row_lengths(values, tf.cast(lengths, tf.int64), validate=False)


def encode(words: tf.RaggedTensor) -> tf.Tensor:
    """Return the words, int32 [W, None], in UTF-8, string [W]."""
    return tf.strings.unicode_encode(words, "UTF-8")


def changes(values: tf.Tensor) -> tf.Tensor:
    """Return where values [C] differ from the previous ones, bool [C]; the first always does."""
    return tf.concat([tf.ones_like(values[:1], tf.bool), values[1:] != values[:-1]], 0)


def shifted(values: tf.Tensor, by: int, fill: int | bool) -> tf.Tensor:
    """Return the values [C] of the characters ``by`` places later (earlier if negative), and ``fill`` beyond the ends."""
    size = tf.size(values)
    padding = tf.fill([tf.minimum(abs(by), size)], tf.cast(fill, values.dtype))
    return tf.concat([values[by:], padding] if by > 0 else [padding, values[: tf.maximum(size + by, 0)]], 0)


class CodePointTable(tf.Module):
    """A number for every code point, stored as pages of which equal ones are kept once.

    Args:
        values: int32 [CODE_POINTS].
    """

    def __init__(self, values: np.ndarray) -> None:
        super().__init__()
        pages, index = np.unique(np.asarray(values, np.int32).reshape(-1, PAGE), axis=0, return_inverse=True)
        self._values, self._index = pages.reshape(-1), index.reshape(-1).astype(np.int32) * PAGE

    def __call__(self, codes: tf.Tensor) -> tf.Tensor:
        """Return the numbers of code points, int32 [C]."""
        start = tf.gather(tf.constant(self._index), tf.bitwise.right_shift(codes, 8))
        return tf.gather(tf.constant(self._values), start + tf.bitwise.bitwise_and(codes, PAGE - 1))


PROBED = (*range(0xD800), *range(0xE000, 0x40000), *range(0xE0000, 0xE1000), 0x50000, 0xF0000)
"""The characters that tokenizers are probed with: all but those of the unassigned and the private planes, which are alike."""


@lru_cache(maxsize=1)
def probed_characters() -> list[str]:
    """Return the characters of PROBED."""
    return [chr(code) for code in PROBED]


def spread(values: Any, dtype: Any) -> np.ndarray:
    """Return an array over all code points, given the values of PROBED; surrogates get 0."""
    values = np.asarray(values, dtype)
    table = np.zeros(CODE_POINTS, dtype)
    table[0x40000:], table[0xF0000:] = values[-2], values[-1]
    table[np.arange(0x4FFFE, CODE_POINTS, 1 << 16)[:, None] + [0, 1]] = values[PROBED.index(0x3FFFE)]  # no characters
    table[np.array(PROBED[:-2])] = values[:-2]
    return table
