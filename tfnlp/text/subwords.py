"""Models of tokenizers, which split words into subwords, as TensorFlow operations.

A model takes the different words of a batch, string [U], and returns ids and offsets of their subwords.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError, MissingExtraError
from tfnlp.text.characters import places, row_ids


class Subwords(NamedTuple):
    """Subwords of words.

    Attributes:
        ids: int32 [n].
        begins: int32 [n], first character of each in its word.
        ends: int32 [n], end of its characters.
        lengths: int32 [U], number of those of each word.
    """

    ids: tf.Tensor
    begins: tf.Tensor
    ends: tf.Tensor
    lengths: tf.Tensor

    def of(self, words: tf.Tensor) -> "Subwords":
        """Return the subwords of words given by their indices, int32 [W]."""
        lengths = tf.gather(self.lengths, words)
        rows = row_ids(lengths)
        first = tf.gather(tf.cumsum(self.lengths, exclusive=True), words)
        index = tf.gather(first, rows) + places(lengths, rows)
        return Subwords._make([*(tf.gather(column, index) for column in self[:3]), lengths])


SubwordModel = Callable[[tf.Tensor], Subwords]


def hash_table(keys: Any, values: Any, default: int, key_dtype: tf.DType) -> tf.lookup.StaticHashTable:
    """Return a table from keys to integers, int64 [n]."""
    initializer = tf.lookup.KeyValueTensorInitializer(
        tf.constant(keys, key_dtype), tf.constant(np.asarray(values, np.int64)), key_dtype, tf.int64
    )
    return tf.lookup.StaticHashTable(initializer, default)


def string_table(values: Mapping[Any, int]) -> tf.lookup.StaticHashTable:
    """Return a table from strings, str or bytes, to integers that returns -1 for others."""
    return hash_table(list(values), list(values.values()), -1, tf.string)


def tensorflow_text() -> Any:
    """Return the module, whose operations are registered by importing it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        import tensorflow_text
    except ImportError as error:
        raise MissingExtraError(
            f"tokenizing in a graph needs tensorflow-text ({error}); pip install 'duonlp[serving]'"
        ) from error
    return tensorflow_text


class WordPiece(tf.Module):
    """The longest subwords first, from left to right; a word that does not end up in subwords is unknown.

    Args:
        spec: The model in tokenizer.json.

    Raises:
        InputError: The vocabulary lacks the unknown token.
    """

    def __init__(self, spec: Mapping[str, Any]) -> None:
        super().__init__()
        vocabulary, unknown = spec["vocab"], spec["unk_token"]
        if unknown not in vocabulary:
            raise InputError(
                f"the vocabulary lacks the unknown token {unknown!r}, without which the tokenizer raises an error for unknown "
                "words; add it to the vocabulary"
            )
        self._longest = int(spec["max_input_chars_per_word"])
        used = {character for token in vocabulary for character in token}
        self._unknown_word = next(chr(code) for code in range(0x10FFFF, 0, -1) if chr(code) not in used)
        self._table = string_table(vocabulary)
        self._tokenizer = tensorflow_text().WordpieceTokenizer(
            self._table, suffix_indicator=spec["continuing_subword_prefix"], max_bytes_per_word=2**31 - 1,
            max_chars_per_token=max(map(len, vocabulary)), token_out_type=tf.int64, unknown_token=unknown,
        )  # fmt: skip

    def __call__(self, words: tf.Tensor) -> Subwords:
        """Return the subwords of words, string [U]."""
        too_long = tf.strings.length(words, unit="UTF8_CHAR") > self._longest
        ids, begins, ends = self._tokenizer.tokenize_with_offsets(tf.where(too_long, self._unknown_word, words))
        lengths = tf.cast(ids.row_lengths(), tf.int32)
        whole = tf.gather(tf.where(too_long, tf.strings.length(words), -1), row_ids(lengths))
        ids, begins, ends = (tf.cast(x.flat_values, tf.int32) for x in (ids, begins, ends))
        return in_characters(words, Subwords(ids, begins, tf.where(whole >= 0, whole, ends), lengths))


def byte_values(words: tf.Tensor) -> tf.Tensor:
    """Return the bytes of words, string [U], one after another, as int32 [n]."""
    return tf.cast(tf.io.decode_raw(tf.strings.reduce_join(words), tf.uint8), tf.int32)


def in_characters(words: tf.Tensor, subwords: Subwords) -> Subwords:
    """Return subwords whose offsets are in bytes with offsets in characters; a part of a character stands for all of it.

    Args:
        words: string [U].
        subwords: Their subwords.
    """
    is_first = tf.bitwise.bitwise_and(byte_values(words), 0xC0) != 0x80
    characters = tf.concat([tf.cumsum(tf.cast(is_first, tf.int32)) - 1, [0]], 0)
    base = tf.gather(tf.cumsum(tf.strings.length(words), exclusive=True), row_ids(subwords.lengths))
    before = tf.gather(characters, base)
    begins = tf.gather(characters, base + subwords.begins) - before
    ends = tf.gather(characters, base + subwords.ends - 1) - before + 1
    return Subwords(subwords.ids, begins, ends, subwords.lengths)
