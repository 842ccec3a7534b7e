"""Add augmented copies to labeled texts."""

from collections.abc import Sequence

import numpy as np

from duonlp.augmentation.augmenter import Augmenter
from duonlp.data.labelled.texts import LabelledTexts, Text
from duonlp.errors import InputError
from duonlp.util.console import Progress

CHUNK = 128
"""Number of texts after which progress is shown."""


def augment_texts(
    texts: LabelledTexts,
    augmenter: Augmenter,
    per_text: int = 1,
    *,
    seed: int = 0,
    originals: bool = True,
    keep_unchanged: bool = False,
    progress: bool | None = False,
) -> LabelledTexts:
    """Return labeled texts with augmented copies, which have the labels of their texts.

    Args:
        texts: The texts, or pairs of texts, both of which are augmented.
        augmenter: Makes the copies.
        per_text: Number of copies of each text.
        seed: Seed of the copies.
        originals: Whether the result has the texts themselves too, each before its copies.
        keep_unchanged: Whether to keep copies that are the text itself or repeat an earlier copy.
        progress: Whether to show a progress bar; None shows one on a terminal if it takes long.

    Returns:
        The texts; the id of a copy is that of its text with "+1", "+2", ...

    Raises:
        InputError: An argument is out of range, or no copy differs from its text.
    """
    made = copies_of(texts.texts, augmenter, per_text, seed, progress)
    rows, ids, result = [], [], []
    for row, (text, copies) in enumerate(zip(texts.texts, made, strict=True)):
        numbered = [(copy, f"{texts.ids[row]}+{number}") for number, copy in enumerate(copies, 1)]
        if not keep_unchanged:
            numbered = new_copies(text, numbered)
        for copy, name in [*([(text, texts.ids[row])] if originals else []), *numbered]:
            rows.append(row)
            ids.append(name)
            result.append(copy)
    if texts.texts and len(rows) == originals * len(texts):
        raise InputError(nothing_new(len(texts)))
    return LabelledTexts(result, texts.labels[np.array(rows, np.int64)], texts.label_names, ids)


def new_copies(text: Text, numbered: Sequence[tuple[Text, str]]) -> list[tuple[Text, str]]:
    """Return the (copy, name) pairs without copies that are the text itself or repeat an earlier one."""
    first = {copy: name for copy, name in reversed(numbered) if copy != text}
    return [(copy, name) for copy, name in numbered if first.get(copy) == name]


def nothing_new(count: int) -> str:
    """Return the error message for texts whose copies are all identical to them."""
    return (
        f"no copy of the {count} texts differs from its text; check that they have words outside of protected parts, or use "
        "another augmenter or other settings"
    )


def copies_of(
    texts: Sequence[Text], augmenter: Augmenter, per_text: int, seed: int, progress: bool | None = False
) -> list[list[Text]]:
    """Return the copies of texts or pairs of texts, with a progress bar."""
    copies: list[list[Text]] = []
    with Progress(len(texts), progress, "augmentation") as bar:
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            parts = [part for text in chunk for part in ((text,) if isinstance(text, str) else text)]
            made = iter(augmenter.augment(parts, per_text, seed))
            for text in chunk:
                copies.append(
                    list(next(made)) if isinstance(text, str) else list(zip(next(made), next(made), strict=True))
                )
            bar.advance(len(chunk))
    return copies
