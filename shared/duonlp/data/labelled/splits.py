"""Split labeled texts so that each label is spread evenly: parts, held-out shares and nested slices of growing size."""

from collections.abc import Sequence

import numpy as np

from duonlp.data.labelled.texts import LabelledTexts
from duonlp.errors import InputError

ALL = "all"
SLICES: tuple[int | str, ...] = (8, 16, 32, 64, 128, ALL)
"""Default sizes of nested slices; "all" is the number of texts."""


def stratified_split(
    texts: LabelledTexts, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> list[LabelledTexts]:
    """Split texts into parts with about the same share of every label, by iterative stratification.

    Follows Sechidis, Tsoumakas and Vlahavas, "On the Stratification of Multi-Label Data" (2011): the texts of the label that
    fewest remaining texts have are assigned first, each to the part that still lacks most of this label, of equal ones to the
    part that lacks most texts, of equal ones to a random one. Beyond the paper, the parts have exact sizes: a full part gets no
    more, and where each part lacks less than one text of a label, the next goes to the part that is furthest behind its share
    of all texts. (Otherwise, 8 texts of each of 150 labels would all be split 6, 1, 1 instead of 5.6, 1.2, 1.2 on average.)
    Texts without a label are assigned last. A label with fewer texts than there are parts is missing from some of them, those
    with the smaller fractions: the only text of a label goes to the part with the largest.

    Args:
        texts: Texts with one or several labels each. Duplicates may land in different parts, so drop them before.
        fractions: Share of each part, all above 0, adding up to 1. Sizes are rounded to add up to the number of texts.
        seed: Seed of the order in which texts are considered and of ties.

    Returns:
        The parts, each in the order of `texts`.

    Raises:
        InputError: The fractions or the seed are invalid, or a part would be empty.
    """
    shares = np.asarray(fractions, np.float64) if _are_numbers(fractions) else np.zeros(0)
    if not len(shares) or not (np.isfinite(shares) & (shares > 0)).all() or abs(shares.sum() - 1) > 1e-6:
        raise InputError(f"fractions are {fractions!r}; give numbers above 0 that add up to 1, such as 0.7, 0.15, 0.15")
    rng = _generator(seed)
    sizes = _sizes(shares / shares.sum(), len(texts))
    if (sizes == 0).any():
        raise InputError(
            f"fractions are {', '.join(f'{share:g}' for share in shares)}, which leave a part of {len(texts)} texts empty; give "
            "more texts or fewer or larger parts"
        )
    labels = indicators(texts)
    part_of = _stratify(labels, sizes, np.outer(shares / shares.sum(), labels.sum(0)), rng)
    return [texts.take(np.flatnonzero(part_of == part)) for part in range(len(sizes))]


def balanced_split(texts: LabelledTexts, fraction: float, seed: int = 0) -> tuple[LabelledTexts, LabelledTexts]:
    """Hold out a share of the texts, with about the same share of every label, as :func:`stratified_split` does.

    Args:
        texts: Texts with one or several labels each.
        fraction: Share to hold out, between 0 and 1.
        seed: Seed of ties.

    Returns:
        The remaining and the held-out texts.

    Raises:
        InputError: The fraction or the seed is invalid, or one side would be empty.
    """
    if not _are_numbers([fraction]) or not 0 < fraction < 1:
        raise InputError(f"fraction is {fraction!r}; give a number between 0 and 1, the share of texts to hold out")
    rest, held_out = stratified_split(texts, (1 - fraction, fraction), seed)
    return rest, held_out


def nested_slices(texts: LabelledTexts, sizes: Sequence[int | str] = SLICES, seed: int = 0) -> list[LabelledTexts]:
    """Return slices of the texts in which every label appears as early as possible, each within all larger ones.

    First come texts that cover the labels: again and again one with most labels that no text has yet, of equal ones one with
    fewest other labels. Thus a slice has every label if it has as many texts as there are labels, and often if it has
    fewer. What a slice has room for beyond that is chosen by iterative stratification (see :func:`stratified_split`), so that its
    labels are as frequent as in all texts.

    Args:
        texts: Texts with one or several labels each.
        sizes: Number of texts of each slice, in any order; "all" is all of them.
        seed: Seed of ties; the slices of another seed are others.

    Returns:
        A slice for each size, in the order of `sizes`, each in the order of `texts`.

    Raises:
        InputError: There are no sizes, one is not a positive integer or larger than the number of texts, or the seed is invalid.
    """
    if isinstance(sizes, (str, bytes, int)) or not len(sizes):
        raise InputError(f"sizes are {sizes!r}; give a list of numbers of texts, such as 8, 16, 32, 'all'")
    counts = [_slice_size(size, len(texts)) for size in sizes]
    rng = _generator(seed)
    labels = indicators(texts)
    cover = _cover(labels, rng)
    frequencies = labels.mean(0)
    rows = np.arange(len(texts))
    slices = {}
    for size in sorted(set(counts), reverse=True):
        first = cover[:size]
        others = np.setdiff1d(rows, first)
        needed = frequencies * size - labels[first].sum(0)
        desired = np.stack([needed, labels[others].sum(0) - needed])
        part_of = _stratify(labels[others], np.array([size - len(first), len(rows) - size]), desired, rng)
        rows = np.sort(np.concatenate([first, others[part_of == 0]]))
        slices[size] = texts.take(rows)
    return [slices[size] for size in counts]


def indicators(texts: LabelledTexts) -> np.ndarray:
    """Return which labels each text has, bool [n, C], of single-label texts too."""
    if texts.multi_label:
        return texts.labels > 0
    return texts.labels[:, None] == np.arange(len(texts.label_names))


def _stratify(labels: np.ndarray, sizes: np.ndarray, desired: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Assign texts to parts by iterative stratification.

    Args:
        labels: Which labels each text has, bool [n, C].
        sizes: Number of texts of each part, which add up to n.
        desired: Number of texts of each label that each part should get, [parts, C].
        rng: Decides the order of texts and ties.

    Returns:
        The part of each text, int64 [n].
    """
    part_of = np.full(len(labels), -1, np.int64)
    order = rng.permutation(len(labels))
    lacking = [list(map(float, row)) for row in desired.T]  # by label, then part
    room = sizes.tolist()
    rows, columns = np.nonzero(labels[order])
    labels_of = [part.tolist() for part in np.split(columns, np.cumsum(labels[order].sum(1))[:-1])]
    texts_of = [order[rows[columns == label]] for label in range(labels.shape[1])] if len(rows) else []
    position = np.argsort(order)
    remaining = totals = labels.sum(0)
    ties = rng.random(len(labels)).tolist()
    shares, left = (sizes / max(1, len(labels))).tolist(), len(labels)
    while len(remaining) and remaining.any():
        rarest = int(np.where(remaining > 0, remaining, len(labels) + 1).argmin())
        wanted = lacking[rarest]
        is_rare = totals[rarest] < len(room)
        chosen = texts_of[rarest][part_of[texts_of[rarest]] < 0]
        for text in chosen.tolist():
            place = position[text]
            behind = [count - share * left for count, share in zip(room, shares)]
            part = _neediest(wanted, room, behind, is_rare, ties[place])
            part_of[text] = part
            room[part] -= 1
            left -= 1
            for label in labels_of[place]:
                lacking[label][part] -= 1.0
        remaining = remaining - labels[chosen].sum(0)
    unassigned = order[part_of[order] < 0]
    part_of[unassigned] = rng.permutation(np.repeat(np.arange(len(room)), room))
    return part_of


def _neediest(wanted: Sequence[float], room: Sequence[int], behind: Sequence[float], is_rare: bool, tie: float) -> int:
    """Return the part that gets the next text of a label; none that is full.

    Args:
        wanted: Number of texts of this label that each part lacks.
        room: Number of texts that each part lacks.
        behind: Number of texts by which each part is behind its share of all texts assigned so far.
        is_rare: Whether the label has fewer texts than there are parts.
        tie: A random number in [0, 1).
    """
    parts = [part for part, count in enumerate(room) if count > 0]
    most = max(wanted[part] for part in parts)
    if most >= 1 or is_rare:
        best = [part for part in parts if wanted[part] == most]
        if len(best) > 1:
            largest = max(room[part] for part in best)
            best = [part for part in best if room[part] == largest]
    else:  # what remains after rounding down
        best = [part for part in parts if wanted[part] > 0] or parts
        furthest = max(behind[part] for part in best)
        best = [part for part in best if behind[part] == furthest]
    return best[int(tie * len(best))]


def _cover(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return texts that together have every label, the ones that add most labels first."""
    order = rng.permutation(len(labels))
    shuffled = labels[order]
    sizes = shuffled.sum(1)
    gains = sizes.astype(np.int64)  # labels that no chosen text has
    missing = shuffled.any(0)
    chosen = []
    while missing.any():
        # of those with the most new labels, the one with the fewest others
        best = int((gains * (labels.shape[1] + 1) - (sizes - gains)).argmax())
        new = shuffled[best] & missing
        chosen.append(order[best])
        gains = gains - shuffled[:, new].sum(1)
        missing = missing & ~new
    return np.array(chosen, np.int64)


def _sizes(shares: np.ndarray, count: int) -> np.ndarray:
    """Return whole sizes in proportion to the shares that add up to `count`, by largest remainders."""
    exact = shares * count
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(sizes - exact, kind="stable")  # the largest remainder first
    sizes[order[: count - int(sizes.sum())]] += 1
    return sizes


def _slice_size(size: int | str, count: int) -> int:
    if isinstance(size, str) and size == ALL:
        return count
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise InputError(f"a slice has the size {size!r}; give a positive number of texts or {ALL!r}")
    if size > count:
        raise InputError(
            f"a slice of {size} texts is larger than the data, {count} texts; give sizes up to {count}, or {ALL!r}"
        )
    return int(size)


def _generator(seed: int) -> np.random.Generator:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise InputError(f"seed is {seed!r}; it must be a non-negative integer")
    return np.random.default_rng(seed)


def _are_numbers(values: Sequence[float]) -> bool:
    if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
        return False
    return all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)
