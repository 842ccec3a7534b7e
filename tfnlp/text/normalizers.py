"""Normalizers of tokenizers as TensorFlow operations.

Normalizers that map every character by itself are probed: the real one is run on all characters, so that tables of Unicode are
never a version apart.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import tensorflow as tf

from duonlp.errors import InputError
from duonlp.util.json_text import to_json
from tfnlp.text.characters import Characters, changes, indices, shifted
from tfnlp.text.code_points import (
    SPACE,
    CodePointTable,
    character_classes,
    combining_ranks,
    hf_component,
    probe,
    probed_characters,
    spread,
)

BY_CHARACTER = ("BertNormalizer", "Lowercase", "StripAccents", "NFD", "NFKD", "Nmt")
"""Normalizers whose result for a text is that for its characters, joined, up to the order of combining marks."""

Normalizer = Callable[[Characters], Characters]


def make_normalizer(spec: Mapping[str, Any] | None) -> list[Normalizer]:
    """Return the steps of a normalizer as tokenizer.json describes it.

    Raises:
        InputError: A step cannot be put in a graph.
    """
    steps: list[Normalizer] = []
    run: list[Mapping[str, Any]] = []

    def flush() -> None:
        if run:
            steps.extend(_by_character(to_json({"type": "Sequence", "normalizers": list(run)})))
            run.clear()

    for part in _flat(spec):
        if is_by_character(part):
            run.append(part)
        else:
            flush()
            steps.append(_other(part))
    flush()
    return steps


def _flat(spec: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    if spec is None:
        return []
    if spec["type"] == "Sequence":
        return [part for inner in spec["normalizers"] for part in _flat(inner)]
    return [spec]


def is_by_character(spec: Mapping[str, Any]) -> bool:
    """Return whether a normalizer maps every character by itself."""
    if spec["type"] != "Replace":
        return spec["type"] in BY_CHARACTER
    pattern = spec["pattern"].get("String", spec["pattern"].get("Regex", ""))
    return len(pattern) == 1 and ("String" in spec["pattern"] or pattern not in ".^$*+?()[{\\|")


def _other(spec: Mapping[str, Any]) -> Normalizer:
    kind = spec["type"]
    if kind == "Strip":
        return Strip(bool(spec["strip_left"]), bool(spec["strip_right"]))
    if kind == "Prepend" and len(spec["prepend"]) == 1:
        return lambda characters: characters.insert_before(characters.first, ord(spec["prepend"]))
    if kind == "Replace" and len(spec["content"]) == 1:
        pattern, content = spec["pattern"], ord(spec["content"])
        if pattern.get("Regex") == " {2,}":
            return lambda characters: replace_runs(characters, ord(" "), content)
        literal = pattern.get("String", "")
        if len(literal) == 2 and literal[0] == literal[1]:
            return lambda characters: replace_doubles(characters, ord(literal[0]), content)
    raise InputError(
        f"the normalizer {to_json(spec)[:200]} cannot be put in a graph; use a tokenizer whose normalizers are among "
        f"{', '.join(BY_CHARACTER)}, Precompiled, Strip, Prepend and Replace of a character"
    )


@lru_cache(maxsize=16)
def _by_character(spec: str) -> list[Normalizer]:
    """Return the steps of normalizers that map every character by itself, in JSON."""
    normalizer = hf_component("normalizer", spec)
    results = probe(normalizer.normalize_str)
    steps: list[Normalizer] = [CharacterMap(results)]
    ranks = combining_ranks(normalizer.normalize_str)
    return steps + ([Reorder(ranks)] if ranks.any() else [])


class CharacterMap(tf.Module):
    """Replace each character by any number of others.

    Args:
        results: What each character of PROBED becomes.
    """

    def __init__(self, results: Sequence[str]) -> None:
        super().__init__()
        numbers: dict[str, int] = {}
        characters = probed_characters()
        kinds = [0 if a == b else 1 + numbers.setdefault(b, len(numbers)) for a, b in zip(characters, results)]
        replacements = ["\0", *numbers]  # 0 is for characters that stay
        self._table = CodePointTable(spread(kinds, np.int32))
        self._lengths = np.array([len(text) for text in replacements], np.int32)
        self._begins = np.concatenate([[0], np.cumsum(self._lengths)[:-1]]).astype(np.int32)
        self._codes = np.array([ord(c) for text in replacements for c in text], np.int32)

    def __call__(self, characters: Characters) -> Characters:
        """Return the mapped characters."""
        kinds = self._table(characters.codes)
        copies, within = characters.expand(tf.gather(tf.constant(self._lengths), kinds))
        kinds = self._table(copies.codes)
        codes = tf.gather(tf.constant(self._codes), tf.gather(tf.constant(self._begins), kinds) + within)
        codes = tf.where(kinds == 0, copies.codes, codes)
        return copies._replace(codes=codes, first=changes(copies.pieces))


class Reorder(tf.Module):
    """Sort combining marks by their class, stably, as canonical decomposition does.

    Args:
        ranks: int32 [code points], combining classes.
    """

    def __init__(self, ranks: np.ndarray) -> None:
        super().__init__()
        self._table = CodePointTable(ranks)

    def __call__(self, characters: Characters) -> Characters:
        """Return the characters in canonical order."""
        ranks = self._table(characters.codes)

        def sort() -> tf.Tensor:
            groups = tf.cumsum(tf.cast((ranks == 0) | changes(characters.pieces), tf.int32))
            return tf.gather(characters.codes, tf.argsort(groups * 256 + ranks, stable=True))

        out_of_order = tf.reduce_any((ranks > 0) & (shifted(ranks, -1, 0) > ranks))
        return characters._replace(codes=tf.cond(out_of_order, sort, lambda: characters.codes))


class Strip(tf.Module):
    """Remove whitespace at the beginning and the end of each piece.

    Args:
        left: Whether to do so at the beginning.
        right: Whether to do so at the end.
    """

    def __init__(self, left: bool, right: bool) -> None:
        super().__init__()
        self._left, self._right = left, right

    def __call__(self, characters: Characters) -> Characters:
        """Return the remaining characters."""
        count = tf.size(characters.codes)
        is_text = character_classes('{"type":"WhitespaceSplit"}')(characters.codes) != SPACE
        index = tf.range(count)
        pieces = tf.cumsum(tf.cast(changes(characters.pieces), tf.int32)) - 1
        begins = tf.math.segment_min(tf.where(is_text, index, count), pieces)
        ends = tf.math.segment_max(tf.where(is_text, index, -1), pieces)
        keep = tf.ones_like(is_text)
        if self._left:
            keep &= index >= tf.gather(begins, pieces)
        if self._right:
            keep &= index <= tf.gather(ends, pieces)
        return characters.keep(keep).with_piece_starts()


def replace_runs(characters: Characters, code: int, content: int) -> Characters:
    """Replace each run of at least two of a character by one other character, which stands for the last of them."""
    is_code, starts = characters.codes == code, changes(characters.pieces)
    follows = is_code & shifted(is_code, -1, False) & ~starts
    goes_on = shifted(follows, 1, False)
    codes = tf.where(follows & ~goes_on, content, characters.codes)
    return characters._replace(codes=codes).keep(~goes_on).with_piece_starts()


def replace_doubles(characters: Characters, code: int, content: int) -> Characters:
    """Replace two of a character by one other character, which stands for the second, from left to right."""
    is_code = characters.codes == code
    starts = changes(characters.pieces) | ~is_code | ~shifted(is_code, -1, False)
    run = tf.gather(indices(starts), tf.cumsum(tf.cast(starts, tf.int32)) - 1)
    is_second = is_code & ((tf.range(tf.size(is_code)) - run) % 2 == 1)
    codes = tf.where(is_second, content, characters.codes)
    return characters._replace(codes=codes).keep(~shifted(is_second, 1, False)).with_piece_starts()
