"""Ids to texts as TensorFlow operations, with the result of a tokenizer's ``decode``."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.typing import Tokenizer
from duonlp.util.json_text import to_json
from duonlp.util.reading import parse_json
from tfnlp.text.added_tokens import quote
from tfnlp.text.characters import changes, row_ids
from tfnlp.text.merges import byte_letters

DECODERS = ("ByteLevel", "Metaspace", "WordPiece")
"""Decoders that spell a token in one way at the beginning of a text and in one way elsewhere."""

CLEAN_UP = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"),
    (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip
"""What Transformers replaces in decoded text with clean_up_tokenization_spaces."""

CLEAN_UP_TOKENS = (*CLEAN_UP[:7], (" do not", " don't"), *CLEAN_UP[7:])
"""What the decoder WordPiece replaces in a token."""


def pattern_pairs(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return replacements of texts as replacements of patterns of RE2."""
    return [(quote(old), new) for old, new in pairs]


class Detokenizer(tf.Module):
    """The ``decode`` of a fast tokenizer.

    Args:
        tokenizer: A fast tokenizer of Transformers.
        skip_special_tokens: See the tokenizer's ``decode``.
        clean_up_tokenization_spaces: See the tokenizer's ``decode``; None for the tokenizer's default.

    Raises:
        InputError: The decoder cannot be put in a graph.
    """

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, clean_up_tokenization_spaces: bool | None = None
    ) -> None:
        super().__init__()
        backend = tokenizer.backend_tokenizer
        spec = parse_json(backend.to_str())
        decoder = spec["decoder"]
        if decoder is not None and decoder["type"] not in DECODERS:
            raise InputError(
                f"the decoder {to_json(decoder)[:200]} cannot be put in a graph; expected one of {', '.join(DECODERS)}"
            )
        self._between = " " if decoder is None or decoder["type"] == "WordPiece" else ""
        self._clean_up = pattern_pairs(CLEAN_UP_TOKENS) if (decoder or {}).get("cleanup") else []
        self._is_bytes = decoder is not None and decoder["type"] == "ByteLevel"
        clean_up = clean_up_tokenization_spaces
        if clean_up is None:
            clean_up = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._cleans_up = clean_up and spec["model"]["type"] != "BPE"
        vocabulary = backend.get_vocab(True)
        size = max(vocabulary.values()) + 1
        self._first, self._other = np.full(size, b"", object), np.full(size, b"", object)
        self._is_text = np.zeros(size, bool)
        special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
        for token, number in vocabulary.items():
            self._is_text[number] = not (skip_special_tokens and token in special)
        spell = _spell_bytes if self._is_bytes else _speller(backend)
        for token, number in vocabulary.items():
            self._first[number], self._other[number] = spell(token)

    def __call__(self, ids: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
        """Return texts, string [B].

        Args:
            ids: int32 [n], those of one text after another; those outside the vocabulary are left out.
            lengths: int32 [B], number of ids of each text.
        """
        inside = (ids >= 0) & (ids < len(self._is_text))
        safe = tf.where(inside, ids, 0)
        keep = inside & tf.gather(tf.constant(self._is_text), safe)
        rows = tf.boolean_mask(row_ids(lengths), keep)
        texts = self.join(self.spelled(tf.boolean_mask(safe, keep), changes(rows)), rows, tf.size(lengths))
        if self._cleans_up:
            for old, new in pattern_pairs(CLEAN_UP):
                texts = tf.strings.regex_replace(texts, old, new)
        return texts

    def spelled(self, ids: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Return how tokens, int32 [n], are spelled where they are the first of a text, bool [n], or elsewhere: string [n]."""
        return tf.where(first, tf.gather(tf.constant(self._first), ids), tf.gather(tf.constant(self._other), ids))

    def spelled_text(self, texts: tf.Tensor, first: tf.Tensor) -> tf.Tensor:
        """Return how texts, string [n], would be spelled if they were tokens; see :meth:`spelled`."""
        other = tf.strings.join([tf.fill(tf.shape(texts), self._between), texts])
        for old, new in self._clean_up:
            other = tf.strings.regex_replace(other, old, new)
        return tf.where(first, texts, other)

    def join(self, pieces: tf.Tensor, rows: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """Return the texts of pieces, string [n], of ``count`` rows, int32 [n] ascending: string [count]."""
        joined = tf.strings.unsorted_segment_join(pieces, rows, count)
        return tf.strings.unicode_transcode(joined, "UTF-8", "UTF-8") if self._is_bytes else joined


def _speller(backend: Any) -> Any:
    decoder = backend.decoder
    decode = (lambda tokens: " ".join(tokens)) if decoder is None else decoder.decode

    def spell(token: str) -> tuple[bytes, bytes]:
        return decode([token]).encode(), decode(["a", token])[1:].encode()

    return spell


def _spell_bytes(token: str) -> tuple[bytes, bytes]:
    values = {letter: byte for byte, letter in enumerate(byte_letters())}
    known = all(letter in values for letter in token)
    text = bytes(values[letter] for letter in token) if known else token.encode()
    return text, text
