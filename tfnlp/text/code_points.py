"""Tables over all code points, made by asking the tokenizers' own components about every character.

So they are never another version of Unicode than these components.
"""

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf
from tokenizers import Regex, Tokenizer, pre_tokenizers

CODE_POINTS = 0x110000
PAGE = 256

SPACE, ALONE = 1, 2
"""Classes of characters: whitespace between words, and what is not part of a word of others."""

SEPARATORS = "\u16a0\u1402\u2801"
"""Characters that separate the others while a normalizer is probed."""


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


def hf_component(name: str, spec: str) -> Any:
    """Return a component of a tokenizer, such as its "normalizer", from its description in JSON."""
    parts = {"normalizer": "null", "pre_tokenizer": "null", "post_processor": "null", "decoder": "null", name: spec}
    fields = ",".join(f'"{key}":{value}' for key, value in parts.items())
    model = '{"type":"WordPiece","unk_token":"","continuing_subword_prefix":"","max_input_chars_per_word":1,"vocab":{}}'
    return getattr(Tokenizer.from_str(f'{{"version":"1.0","added_tokens":[],{fields},"model":{model}}}'), name)


def probe(normalize: Callable[[str], str]) -> list[str]:
    """Return the results for the characters of PROBED, each alone."""
    characters = probed_characters()
    for separator in SEPARATORS:
        results = normalize(separator.join(characters)).split(separator)
        own = characters.index(separator)  # the separator itself gives two empty results instead of one
        if len(results) == len(characters) + 1:
            return [*results[:own], separator, *results[own + 2 :]]
    return [normalize(character) for character in characters]


def combining_ranks(normalize: Callable[[str], str]) -> np.ndarray:
    """Return the canonical combining class of each code point by which a normalizer sorts marks, int32; 0 for others."""
    ranks = np.zeros(0x110000, np.int32)
    lowest = "\u0334"  # a mark of class 1, which moves before marks of any other class
    for code in range(0x300, 0x1F000):
        rank = unicodedata.combining(chr(code))
        if rank > 1 and normalize(f"{chr(code)}{lowest}") == f"{lowest}{chr(code)}":
            ranks[code] = rank
    for code in (
        np.flatnonzero([unicodedata.combining(chr(code)) == 1 for code in range(0x20000)]) if ranks.any() else ()
    ):
        ranks[code] = int(normalize(f"\u0301{chr(code)}") == f"{chr(code)}\u0301")
    return ranks


@lru_cache(maxsize=8)
def character_classes(spec: str) -> CodePointTable:
    """Return SPACE for what a pre-tokenizer removes, ALONE for what it does not join with letters, and 0 for others.

    Args:
        spec: Its description in JSON.
    """
    characters = probed_characters()
    pieces = hf_component("pre_tokenizer", spec).pre_tokenize_str("".join(f"a{c}" for c in characters) + "a")
    offsets = np.array([offset for _, offset in pieces])  # [pieces, 2]
    covered = np.zeros(2 * len(characters) + 2, np.int32)
    np.add.at(covered, offsets[:, 0], 1)
    np.add.at(covered, offsets[:, 1], -1)
    classes = np.where(np.cumsum(covered)[1:-1:2] > 0, 0, SPACE)
    single = offsets[:, 0][(offsets[:, 1] - offsets[:, 0] == 1) & (offsets[:, 0] % 2 == 1)]
    classes[single // 2] = ALONE
    return CodePointTable(spread(classes, np.int32))


@lru_cache(maxsize=1)
def regex_classes() -> CodePointTable:
    r"""Return 1 for ``\s``, 2 for ``\p{L}``, 3 for ``\p{N}`` and 0 for others, as tokenizers' regular expressions do."""
    characters = probed_characters()
    classes = np.zeros(len(characters), np.int32)
    for number, pattern in enumerate((r"\s+", r"\p{L}+", r"\p{N}+"), 1):
        pieces = pre_tokenizers.Split(Regex(pattern), "isolated").pre_tokenize_str("".join(characters))
        # Matches alternate with what is between them, which comes first.
        for _, (start, end) in pieces[1::2]:
            classes[start:end] = number
    return CodePointTable(spread(classes, np.int32))
