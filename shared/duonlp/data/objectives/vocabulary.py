"""What an objective must know of a tokenizer: which tokens are special, which begin words, end sentences or stand for spans."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError

# What the last or first character of a byte-level token is, as GPT-2's splitting into words tells them apart.
SPACE, LETTER, DIGIT, OTHER, LINE = range(5)

# Full stops, question and exclamation marks, in wide forms too, and what may close behind them.
_ENDS_SENTENCE = re.compile("[.!?\u2026\u3002\uff01\uff1f]+[\"'\u201d\u2019\u00bb)\\]]*")
_MARKS_OF_WORDS = re.compile(r"^(?:##|[Ġ▁])")


def vocabulary_size(tokenizer) -> int:
    """One more than the largest id."""
    special = [*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder]
    return max([*tokenizer.get_vocab().values(), *special]) + 1


def special_tokens(tokenizer) -> np.ndarray:
    """Returns bool [V]: which ids are special; those that no token has count as such.

    Raises:
        InputError: all are.
    """
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    is_special = np.ones(vocabulary_size(tokenizer), dtype=bool)
    is_special[sorted(set(tokenizer.get_vocab().values()) - special)] = False
    if is_special.all():
        raise InputError("the tokenizer has special tokens alone; there is nothing to mask")
    return is_special


def sentinels(tokenizer) -> np.ndarray:
    """Returns the ids of <extra_id_0>, <extra_id_1>, ... as far as the tokenizer has them, int32 [n]."""
    vocabulary, found = tokenizer.get_vocab(), []
    while (index := vocabulary.get(f"<extra_id_{len(found)}>")) is not None:
        found.append(index)
    return np.asarray(found, dtype=np.int32)


def sentence_ends(tokenizer, tokens: Sequence[str] | None = None) -> np.ndarray:
    """Returns bool [V]: which tokens end a sentence.

    Args:
        tokenizer: a `transformers` fast tokenizer.
        tokens: those that do, as the vocabulary spells them; by default all that are nothing but full stops, question
            marks, exclamation marks and what may close behind them (a quotation mark, a bracket).

    Raises:
        InputError: a token is not in the vocabulary, or none is there that ends sentences.
    """
    vocabulary = tokenizer.get_vocab()
    ends = np.zeros(vocabulary_size(tokenizer), dtype=bool)
    if tokens is None:
        for token, index in vocabulary.items():
            ends[index] = _ENDS_SENTENCE.fullmatch(_MARKS_OF_WORDS.sub("", token)) is not None
        if not ends.any():
            raise InputError(
                "no token of the vocabulary ends sentences (., !, ?); name those that do: sentence_ends=['.', ...]"
            )
        return ends
    if isinstance(tokens, str) or not tokens:
        raise InputError(f"sentence_ends is {tokens!r}; give a list of tokens, such as ['.', '!', '?']")
    for token in tokens:
        if token not in vocabulary:
            raise InputError(f"sentence_ends has {token!r}, which is no token of the vocabulary")
        ends[vocabulary[token]] = True
    return ends


@dataclass(frozen=True)
class WordBorders:
    """Where words begin, from two neighbouring tokens: `begins[id]` always, else where `last` and `first` differ."""

    begins: np.ndarray
    first: np.ndarray
    last: np.ndarray

    def starts(self, ids: np.ndarray, special: np.ndarray, segment_ids: np.ndarray | None) -> np.ndarray:
        """Returns bool [B, T]: a word begins at each true position."""
        starts = self.begins[ids] | special
        before = self.last[ids[:, :-1]]
        starts[:, 1:] |= special[:, :-1] | ((before != SPACE) & (before != self.first[ids[:, 1:]]))
        if segment_ids is not None:
            starts[:, 1:] |= segment_ids[:, 1:] != segment_ids[:, :-1]
        starts[:, 0] = True
        return starts


def word_borders(tokenizer) -> WordBorders:
    """Reads from a tokenizer where its words begin.

    Raises:
        InputError: its kind does not tell.
    """
    size = vocabulary_size(tokenizer)
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens = {index: token for token, index in tokenizer.get_vocab().items()}
    begins = np.zeros(size, dtype=bool)
    first, last = np.zeros((2, size), dtype=np.int8)
    if description["model"]["type"] == "WordPiece":
        continued = description["model"]["continuing_subword_prefix"]
        for index, token in tokens.items():
            begins[index] = not token.startswith(continued)
    elif _has_part(description, "ByteLevel"):
        kinds = _byte_level_kinds()
        for index, token in tokens.items():
            body = token[1:] if token[:1] == "Ġ" and len(token) > 1 else token
            first[index], last[index] = (kinds.get(character, LETTER) for character in (body[:1], body[-1:]))
            begins[index] = kinds.get(token[:1]) in (SPACE, LINE)
    elif description["model"]["type"] == "Unigram" or _has_part(description, "Metaspace") or "▁" in tokens.values():
        for index, token in tokens.items():
            begins[index] = token.startswith("▁")
    else:
        raise InputError(
            f"whole_words needs WordPiece, byte-level or Unigram tokens, which say where words begin; this tokenizer is "
            f"{description['model']['type']} without any of their marks: mask tokens instead (whole_words=False)"
        )
    return WordBorders(begins, first, last)


def _has_part(description: dict, kind: str) -> bool:
    parts = [part for name in ("pre_tokenizer", "decoder") if (part := description.get(name))]
    parts += [each for part in parts for each in part.get("pretokenizers", []) + part.get("decoders", [])]
    return any(part["type"] == kind for part in parts)


def _byte_level_kinds() -> dict[str, int]:
    """The kind of each of the 256 characters that stand for bytes in byte-level tokens (GPT-2's table)."""
    plain = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    kinds, moved = {}, 0
    for byte in range(256):
        character = chr(byte) if byte in plain else chr(256 + moved)
        moved += byte not in plain
        text = chr(byte)
        if text == " ":
            kinds[character] = SPACE
        elif text.isspace() and byte < 128:
            kinds[character] = LINE
        elif text.isdigit() and byte < 128:
            kinds[character] = DIGIT
        else:
            # A byte of 128 and more is part of a character in another script: most often a letter.
            kinds[character] = LETTER if byte >= 128 or text.isalpha() else OTHER
    return kinds
