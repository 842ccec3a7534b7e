"""Pre-tokenizers of tokenizers as TensorFlow operations: characters to words."""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from duonlp.errors import InputError
from duonlp.util.json_text import to_json
from tfnlp.text.characters import Characters, shifted
from tfnlp.text.code_points import ALONE, SPACE, character_classes, regex_classes

Splitter = Callable[[Characters], Characters]

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""The pattern of GPT-2's words, as in ByteLevel."""


def make_splitter(spec: Mapping[str, Any] | None) -> list[Splitter]:
    """Return the steps of a pre-tokenizer as tokenizer.json describes it.

    Raises:
        InputError: A step cannot be put in a graph.
    """
    kind = "" if spec is None else spec["type"]
    if spec is None:
        return []
    if kind == "Sequence":
        return [step for part in spec["pretokenizers"] for step in make_splitter(part)]
    if kind in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit"):
        return [SplitByClass(to_json({"type": kind}), merges=kind == "Whitespace")]
    if (kind == "Digits" and spec["individual_digits"]) or (kind == "Punctuation" and spec["behavior"] == "Isolated"):
        return [SplitByClass(to_json(spec), merges=False)]
    if kind == "Metaspace" and len(spec["replacement"]) == 1:
        return [Metaspace(spec["replacement"], spec["prepend_scheme"], bool(spec.get("split", True)))]
    if kind == "ByteLevel":
        prefix: list[Splitter] = [add_prefix_space] if spec["add_prefix_space"] else []
        return [*prefix, *([GPT2Words()] if spec.get("use_regex", True) else [])]
    # The pattern covers every text, so that matches may be isolated, or all else removed.
    if kind == "Split" and spec["pattern"].get("Regex") == GPT2 and (spec["behavior"], spec["invert"]) in (
        ("Isolated", False), ("Removed", True),
    ):  # fmt: skip
        return [GPT2Words()]
    raise InputError(
        f"the pre-tokenizer {to_json(spec)[:200]} cannot be put in a graph; use a tokenizer whose pre-tokenizers are among "
        "BertPreTokenizer, Whitespace, WhitespaceSplit, Digits, Punctuation, Metaspace and ByteLevel"
    )


class SplitByClass(tf.Module):
    """Split at whitespace, which is removed, and at characters that are words of their own.

    Args:
        spec: The pre-tokenizer in JSON.
        merges: Whether a run of such characters is one word.
    """

    def __init__(self, spec: str, merges: bool) -> None:
        super().__init__()
        self._classes, self._merges = character_classes(spec), merges

    def __call__(self, characters: Characters) -> Characters:
        """Return the characters of words."""
        classes = self._classes(characters.codes)
        before = shifted(classes, -1, SPACE)
        starts = (before == SPACE) | (before != classes)
        if not self._merges:
            starts |= classes == ALONE
        return characters._replace(first=carried(characters.first, classes == SPACE) | starts).keep(classes != SPACE)


def carried(first: tf.Tensor, removed: tf.Tensor) -> tf.Tensor:
    """Return ``first`` such that a word that begins with removed characters begins with what follows them, bool [C]."""
    return first | shifted(removed, -1, False)


class Metaspace(tf.Module):
    """Replace spaces by a visible character, with which words begin.

    Args:
        replacement: The character.
        scheme: "always", "first" or "never": which words get one if they have none.
        split: Whether to split at it.
    """

    def __init__(self, replacement: str, scheme: str, split: bool) -> None:
        super().__init__()
        self._code, self._scheme, self._split = ord(replacement), scheme, split

    def __call__(self, characters: Characters) -> Characters:
        """Return the words."""
        characters = characters._replace(codes=tf.where(characters.codes == ord(" "), self._code, characters.codes))
        if self._scheme != "never":
            lacks = characters.first & (characters.codes != self._code)
            if self._scheme == "first":
                lacks &= characters.starts == 0
            characters = characters.insert_before(lacks, self._code)
        return (
            characters._replace(first=characters.first | (characters.codes == self._code))
            if self._split
            else characters
        )


def add_prefix_space(characters: Characters) -> Characters:
    """Insert a space before each word that does not begin with one."""
    return characters.insert_before(characters.first & (characters.codes != ord(" ")), ord(" "))


class GPT2Words(tf.Module):
    r"""Split as the pattern GPT2 does, without its lookahead, which TensorFlow's regular expressions lack.

    A run of whitespace before something else leaves its last character to what follows: a space becomes a part of it, and other
    whitespace a word of its own. A run at the end is one word.
    """

    def __init__(self) -> None:
        super().__init__()
        self._classes = regex_classes()

    def __call__(self, characters: Characters) -> Characters:
        """Return the words."""
        codes, first = characters.codes, characters.first
        classes = self._classes(codes)
        is_space, last = classes == 1, shifted(first, 1, True)
        after_space = shifted(is_space, -1, False) & ~first
        before_text = ~last & ~shifted(is_space, 1, False)
        attaches = shifted(codes, -1, 0) == ord(" ")
        starts = (
            tf.where(
                is_space,
                ~after_space | before_text,
                tf.where(after_space, ~attaches, shifted(classes, -1, 0) != classes),
            )
            | first
        )
        one, two = self._contractions(codes, starts, last)
        either = one | two
        starts &= ~(shifted(either, -1, False) | shifted(two, -2, False)) | first
        starts |= shifted(one, -2, False) | shifted(two, -3, False)
        return characters._replace(first=starts)

    def _contractions(self, codes: tf.Tensor, starts: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Return where a word such as 's begins, and where one such as 're, bool [C] each."""
        begins = starts & (codes == ord("'")) & ~last
        second, third = (
            tf.where(~last if n == 1 else ~last & ~shifted(last, 1, True), shifted(codes, n, 0), 0) for n in (1, 2)
        )

        def is_pair(pair: str) -> tf.Tensor:
            return (second == ord(pair[0])) & (third == ord(pair[1]))

        one = begins & tf.reduce_any(tf.expand_dims(second, 1) == [ord(c) for c in "stmd"], axis=1)
        return one, begins & (is_pair("re") | is_pair("ve") | is_pair("ll"))
