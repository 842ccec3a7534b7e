"""Patterns, which turn a text into a sentence with a blank, and verbalizers, the words that stand for labels there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from duonlp.errors import InputError
from duonlp.tasks.base import describe
from duonlp.training.objectives.prompt import Words
from duonlp.typing import Tokenizer
from duonlp.util.suggestions import nearest
from duonlp.util.tokenization import tokenize

DEFAULT_PATTERN = "{text} This is about {mask}."


@dataclass(frozen=True)
class Prompt:
    """A text in a pattern, as tokens.

    Attributes:
        inputs: int32 [T] each: input_ids, and token_type_ids if the tokenizer has them.
        text: int [n], positions of the text's tokens.
        blank: int [k], positions of the tokens in place of ``{mask}``.
    """

    inputs: dict[str, np.ndarray]
    text: np.ndarray
    blank: np.ndarray

    @property
    def ids(self) -> np.ndarray:
        """Token ids, int32 [T]."""
        return self.inputs["input_ids"]


@dataclass(frozen=True)
class Pattern:
    """A template that makes a sentence with a blank of a text: "{text} This issue is about {mask}.".

    Attributes:
        template: Text with ``{text}`` and ``{mask}``, once each.

    Raises:
        InputError: The template lacks one of them, or has it several times.
    """

    template: str

    def __post_init__(self) -> None:
        if not isinstance(self.template, str):
            raise InputError(f"the pattern is {describe(self.template)}; it must be a text such as {DEFAULT_PATTERN!r}")
        for name in ("{text}", "{mask}"):
            if (count := self.template.count(name)) != 1:
                raise InputError(
                    f"the pattern {self.template!r} has {name} {count} times; it must have it once, as {DEFAULT_PATTERN!r} has"
                )

    def fill(self, text: str, blank: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
        """Return the sentence, and the ranges of characters of the text and of what is in place of ``{mask}``."""
        order = sorted(("{text}", "{mask}"), key=self.template.index)
        before, after = self.template.split(order[0])
        between, after = after.split(order[1])
        first, second = (text, blank) if order[0] == "{text}" else (blank, text)
        start = len(before) + len(first) + len(between)
        ranges = (len(before), len(before) + len(first)), (start, start + len(second))
        of_text, of_blank = ranges if order[0] == "{text}" else ranges[::-1]
        return before + first + between + second + after, of_text, of_blank

    def encode(
        self, tokenizer: Tokenizer, texts: Sequence[str], blanks: Sequence[str], max_length: int
    ) -> list[Prompt]:
        """Return the tokens of texts in the pattern. Of a sentence that is too long, the end of the text is cut off.

        Args:
            tokenizer: A fast tokenizer of Transformers, which adds its special tokens to the whole sentence.
            texts: The texts.
            blanks: What each text gets in place of ``{mask}``.
            max_length: Maximum number of tokens, special tokens included.

        Raises:
            InputError: The tokenizer is not a fast one, or there is no room for a text.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise InputError(
                f"patterns need a fast tokenizer, got {type(tokenizer).__name__}; load one with "
                "transformers.AutoTokenizer.from_pretrained(...)"
            )
        texts = [text.strip() for text in texts]
        prompts: list[Prompt | None] = [None] * len(texts)
        pending = list(range(len(texts)))
        while pending:
            filled = [self.fill(texts[i], blanks[i]) for i in pending]
            encoded = tokenize(
                tokenizer, [sentence for sentence, _, _ in filled], return_offsets_mapping=True, verbose=False
            )
            too_long = []
            for row, (i, (_, of_text, of_blank)) in enumerate(zip(pending, filled, strict=True)):
                offsets = np.asarray(encoded["offset_mapping"][row]).reshape(-1, 2)
                text, blank = _overlap(offsets, of_text), _overlap(offsets, of_blank)
                excess = len(offsets) - max_length
                if excess <= 0:
                    names = [name for name in ("input_ids", "token_type_ids") if name in encoded]
                    inputs = {name: np.asarray(encoded[name][row], np.int32) for name in names}
                    prompts[i] = Prompt(inputs, text, blank)
                    continue
                if excess >= len(text):
                    raise InputError(
                        f"max_length is {max_length}, but the pattern {self.template!r} has {len(offsets) - len(text)} tokens "
                        "without a text; set a larger max_length"
                    )
                end = offsets[text[-excess - 1], 1] - of_text[0]
                # At least one character less, so that cutting ends.
                texts[i] = texts[i][: min(end, len(texts[i]) - 1)].rstrip()
                too_long.append(i)
            pending = too_long
        return [prompt for prompt in prompts if prompt is not None]


def _overlap(offsets: np.ndarray, characters: tuple[int, int]) -> np.ndarray:
    """Return the positions of the tokens, with offsets [T, 2], that have some of a range of characters."""
    start, end = characters
    return np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 1] > offsets[:, 0]))


def as_patterns(pattern: str | Sequence[str]) -> tuple[Pattern, ...]:
    """Return one or several templates as patterns.

    Raises:
        InputError: There are none, or one of them is not a pattern.
    """
    templates = (pattern,) if isinstance(pattern, str) else tuple(pattern)
    if not templates:
        raise InputError(f"there is no pattern; pass one such as {DEFAULT_PATTERN!r}")
    return tuple(map(Pattern, templates))


@dataclass(frozen=True)
class Verbalizer:
    """The words that stand for each label in a pattern.

    Attributes:
        label_names: Names of the labels.
        words: One or several words of each label.
    """

    label_names: tuple[str, ...]
    words: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, label_names: Sequence[str], words: Mapping[str, str | Sequence[str]] | None = None) -> "Verbalizer":
        """Return the verbalizer of labels.

        Args:
            label_names: Names of the labels.
            words: Word, or words, of each label; None for the labels' names with spaces in place of underscores.

        Raises:
            InputError: There are fewer than two labels, a label has no words, or there are words of a label that does not exist.
        """
        names = tuple(label_names)
        if len(names) < 2:
            raise InputError(f"the labels are {', '.join(names) or 'none'}; pass at least two")
        if words is None:
            words = {name: name.replace("_", " ") for name in names}
        if missing := [name for name in names if name not in words]:
            raise InputError(
                f"the verbalizer has no word for {', '.join(map(repr, missing))}; give every label one or more"
            )
        if unknown := next((name for name in words if name not in names), None):
            raise InputError(
                f"the verbalizer has words for {unknown!r}, but the labels are {', '.join(names)}{nearest(unknown, names)}"
            )
        chosen = {name: (value,) if isinstance(value, str) else tuple(value) for name, value in words.items()}
        for name, of_label in chosen.items():
            if not of_label or not all(isinstance(word, str) and word.strip() for word in of_label):
                raise InputError(f"the words of {name!r} are {describe(words[name])}; give a word, or a list of words")
        return cls(names, tuple(tuple(word.strip() for word in chosen[name]) for name in names))

    def tokens(self, tokenizer: Tokenizer, patterns: Sequence[Pattern]) -> Words:
        """Return the token ids of the words as they are tokenized in place of ``{mask}``.

        Raises:
            InputError: A word has an unknown token, two labels have the same tokens, patterns give a word different tokens, or
                the tokenizer has no mask token.
        """
        flat = [word for words in self.words for word in words]
        tokens: list[tuple[int, ...]] = []
        for pattern in patterns:
            current = _word_tokens(tokenizer, pattern, flat)
            if tokens and current != tokens:
                word = next(word for word, a, b in zip(flat, current, tokens, strict=True) if a != b)
                raise InputError(
                    f"the tokens of {word!r} differ between the patterns {patterns[0].template!r} and {pattern.template!r}; put "
                    "{mask} behind a space in all of them"
                )
            tokens = current
        owners: dict[tuple[int, ...], str] = {}
        labels = [name for name, words in zip(self.label_names, self.words, strict=True) for _ in words]
        for word, ids, name in zip(flat, tokens, labels, strict=True):
            if not ids or tokenizer.unk_token_id in ids:
                raise InputError(
                    f"the word {word!r} of the label {name!r} has a token that the tokenizer does not know; give the label "
                    "another word with verbalizer="
                )
            if owners.setdefault(ids, name) != name:
                raise InputError(
                    f"the labels {owners[ids]!r} and {name!r} have the same tokens, those of {word!r}; give one of them another "
                    "word with verbalizer="
                )
        of_words = iter(tokens)
        return tuple(tuple(next(of_words) for _ in words) for words in self.words)


def _word_tokens(tokenizer: Tokenizer, pattern: Pattern, words: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the tokens that in place of the mask make the sentence with each word, with the space before it if the mask has it.

    Raises:
        InputError: There are none, because the tokenizer merges characters of the word and of the pattern.
    """
    (masked,) = encode_masked(tokenizer, pattern, ["a"], 1, 10**6)
    before, after = masked.ids[: masked.blank[0]].tolist(), masked.ids[masked.blank[0] + 1 :].tolist()
    tokens = []
    for word, prompt in zip(words, pattern.encode(tokenizer, ["a"] * len(words), words, 10**6), strict=True):
        ids = prompt.ids.tolist()
        end = len(ids) - len(after)
        if ids[: len(before)] != before or ids[end:] != after or end < len(before):
            raise InputError(
                f"the tokenizer merges {word!r} with characters of the pattern {pattern.template!r}; put spaces around {{mask}}"
            )
        tokens.append(tuple(ids[len(before) : end]))
    return tokens


def num_masks(words: Words) -> int:
    """Return the number of masks that the longest word needs."""
    return max(len(word) for of_label in words for word in of_label)


def pad_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt], width: int, prefix: str = "") -> dict[str, np.ndarray]:
    """Return the inputs of prompts padded on the right, int32 [B, width] by name, without positions of masks."""
    pads = {"input_ids": tokenizer.pad_token_id or 0, "token_type_ids": 0}
    arrays = {name: np.full((len(prompts), width), pads[name], np.int32) for name in prompts[0].inputs}
    arrays["attention_mask"] = np.zeros((len(prompts), width), np.int32)
    for row, prompt in enumerate(prompts):
        for name, values in prompt.inputs.items():
            arrays[name][row, : len(values)] = values
        arrays["attention_mask"][row, : len(prompt.ids)] = 1
    return {prefix + name: array for name, array in arrays.items()}


def encode_masked(
    tokenizer: Tokenizer, pattern: Pattern, texts: Sequence[str], masks: int, max_length: int
) -> list[Prompt]:
    """Return texts in a pattern with a number of mask tokens in its blank.

    Raises:
        InputError: The tokenizer has no mask token; also as in :meth:`Pattern.encode`.
    """
    if getattr(tokenizer, "mask_token_id", None) is None:
        raise InputError(
            "prompts need a tokenizer with a mask token, and this one has none; use a masked language model and its tokenizer"
        )
    return pattern.encode(tokenizer, texts, [tokenizer.mask_token * masks] * len(texts), max_length)
