"""Classify the tokens of a vocabulary: special tokens, sentinels, sentence ends and word starts."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from duonlp.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# Character classes of the first and last character of a byte-level token, as in GPT-2's pre-tokenization regex.
SPACE, LETTER, DIGIT, OTHER, LINE = range(5)

# Full stops, question and exclamation marks (full-width forms included), then optional closing quotes and brackets.
_SENTENCE_END = re.compile("[.!?\u2026\u3002\uff01\uff1f]+[\"'\u201d\u2019\u00bb)\\]]*")
_WORD_MARKER = re.compile(r"^(?:##|[Ġ▁])")


def vocabulary_size(tokenizer: "PreTrainedTokenizerFast") -> int:
    """Return the largest token id plus one."""
    special_ids = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    return max([*tokenizer.get_vocab().values(), *special_ids]) + 1


def special_tokens(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """Return a mask of the special token ids, bool [V]. Ids without a token count as special.

    Raises:
        InputError: Every token is special.
    """
    special_ids = set(tokenizer.all_special_ids)
    special_ids |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    is_special = np.ones(vocabulary_size(tokenizer), dtype=bool)
    is_special[sorted(set(tokenizer.get_vocab().values()) - special_ids)] = False
    if is_special.all():
        raise InputError(
            "every token of the tokenizer is special, so none can be masked; use a tokenizer with text tokens"
        )
    return is_special


def sentinels(tokenizer: "PreTrainedTokenizerFast") -> np.ndarray:
    """Return the ids of the consecutive sentinels <extra_id_0>, <extra_id_1>, ... in the vocabulary, int32 [n]."""
    vocabulary, ids = tokenizer.get_vocab(), []
    while (index := vocabulary.get(f"<extra_id_{len(ids)}>")) is not None:
        ids.append(index)
    return np.asarray(ids, dtype=np.int32)


def sentence_ends(tokenizer: "PreTrainedTokenizerFast", tokens: Sequence[str] | None = None) -> np.ndarray:
    """Return a mask of the tokens that end a sentence, bool [V].

    Args:
        tokenizer: A `transformers` fast tokenizer.
        tokens: Sentence-ending tokens as spelled in the vocabulary. By default every token that consists of full stops,
            question marks and exclamation marks, optionally followed by closing quotes or brackets.

    Raises:
        InputError: A token is not in the vocabulary, or no token of the vocabulary ends a sentence.
    """
    vocabulary = tokenizer.get_vocab()
    ends = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    if tokens is None:
        for token, index in vocabulary.items():
            ends[index] = _SENTENCE_END.fullmatch(_WORD_MARKER.sub("", token)) is not None
        if not ends.any():
            raise InputError(
                "no token of the vocabulary ends sentences (., !, ?); name the tokens that do: sentence_ends=['.', ...]"
            )
        return ends
    if isinstance(tokens, str) or not tokens:
        raise InputError(f"sentence_ends is {tokens!r}; give a list of tokens, such as ['.', '!', '?']")
    for token in tokens:
        if token not in vocabulary:
            raise InputError(
                f"sentence_ends contains {token!r}, which is not in the vocabulary; use the vocabulary's spelling"
            )
        ends[vocabulary[token]] = True
    return ends


@dataclass(frozen=True)
class WordBorders:
    """Rules that say where words begin, from a token and the one before it.

    Attributes:
        begins: bool [V], tokens that always begin a word.
        first: int8 [V], class of each token's first character (SPACE, LETTER, DIGIT, OTHER or LINE).
        last: int8 [V], class of each token's last character. Two neighbors of different classes are two words.
    """

    begins: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def starts(self, ids: np.ndarray, special: np.ndarray, segment_ids: np.ndarray | None) -> np.ndarray:
        """Return a mask of the positions where a word begins, bool [B, T].

        Args:
            ids: int [B, T].
            special: bool [B, T], True at special tokens, which are words of their own.
            segment_ids: int [B, T] or None; a word never crosses a segment boundary.
        """
        starts = self.begins[ids] | special
        before = self.last[ids[:, :-1]]
        starts[:, 1:] |= special[:, :-1] | ((before != SPACE) & (before != self.first[ids[:, 1:]]))
        if segment_ids is not None:
            starts[:, 1:] |= segment_ids[:, 1:] != segment_ids[:, :-1]
        starts[:, 0] = True
        return starts


def word_borders(tokenizer: "PreTrainedTokenizerFast") -> WordBorders:
    """Return the word boundary rules of a WordPiece, byte-level or Unigram tokenizer.

    Raises:
        InputError: The tokenizer's tokens do not mark word boundaries.
    """
    size = vocabulary_size(tokenizer)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    begins = np.zeros(size, dtype=bool)
    first, last = np.zeros((2, size), dtype=np.int8)
    if description["model"]["type"] == "WordPiece":
        continuation = description["model"]["continuing_subword_prefix"]
        for index, token in tokens.items():
            begins[index] = not token.startswith(continuation)
    elif _has_component(description, "ByteLevel"):
        classes = _byte_level_classes()
        for index, token in tokens.items():
            body = token[1:] if token[:1] == "Ġ" and len(token) > 1 else token
            first[index], last[index] = (classes.get(character, LETTER) for character in (body[:1], body[-1:]))
            begins[index] = classes.get(token[:1]) in (SPACE, LINE)
    elif (
        description["model"]["type"] == "Unigram" or _has_component(description, "Metaspace") or "▁" in tokens.values()
    ):
        for index, token in tokens.items():
            begins[index] = token.startswith("▁")
    else:
        raise InputError(
            f"whole_words needs WordPiece, byte-level or Unigram tokens, which mark where words begin; this "
            f"{description['model']['type']} tokenizer marks nothing: mask single tokens instead (whole_words=False)"
        )
    return WordBorders(begins, first, last)


def _has_component(description: dict, kind: str) -> bool:
    """Return whether a tokenizer.json has a pre-tokenizer or decoder of this type."""
    components = [component for name in ("pre_tokenizer", "decoder") if (component := description.get(name))]
    components += [
        part for component in components for part in component.get("pretokenizers", []) + component.get("decoders", [])
    ]
    return any(component["type"] == kind for component in components)


def _byte_level_classes() -> dict[str, int]:
    """Return the character class of each of the 256 characters that stand for bytes (GPT-2's byte-to-unicode table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    classes, remapped = {}, 0
    for byte in range(256):
        character = chr(byte) if byte in printable else chr(256 + remapped)
        remapped += byte not in printable
        text = chr(byte)
        if text == " ":
            classes[character] = SPACE
        elif text.isspace() and byte < 128:
            classes[character] = LINE
        elif text.isdigit() and byte < 128:
            classes[character] = DIGIT
        else:
            # Bytes from 128 on are parts of non-ASCII characters, which are mostly letters.
            classes[character] = LETTER if byte >= 128 or text.isalpha() else OTHER
    return classes
